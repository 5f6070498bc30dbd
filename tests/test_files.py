from pathlib import Path

import pytest
from conftest import run

import files


def test_a_write_that_fails_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(OSError, match="full") as error, files.atomic_write(path) as file:
        file.write(b"new")
        raise OSError(28, "disk full")
    assert error.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_another_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in ("old", "new"):
        with files.atomic_folder(path) as folder:
            (folder / content).write_text(content)
        assert [p.name for p in path.iterdir()] == [content]
    with pytest.raises(ValueError, match="no"), files.atomic_folder(path) as folder:
        (folder / "third").write_text("")
        raise ValueError("no")
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")


def test_a_full_disk_is_told_in_a_line(tmp_path: Path) -> None:
    script = tmp_path / "full.py"
    script.write_text(
        "import sys, pathlib, configurator, files\n"
        "def main(settings):\n"
        "    files.append_line(pathlib.Path('/dev/full'), 'a line')\n"
        "sys.argv = ['train.py']\n"
        "configurator.run('train', main, '')\n"
    )
    done = run(script, env={"PYTHONPATH": "."})
    assert done.returncode == 1
    assert done.stderr.startswith("error: /dev/full: No space left on device. Make room")
