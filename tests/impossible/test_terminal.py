"""Output that cannot be written: no reader, a full disk, a closed stream, a limited encoding."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from test_train import losses

Config = Callable[..., Path]
PERTURB = f"{sys.executable} perturb.py"


def shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_without_an_output_ends_quietly() -> None:
    done = shell(f"{PERTURB} >&-")
    assert done.returncode == 0
    assert done.stderr == ""


def test_characters_that_an_encoding_lacks_are_escaped() -> None:
    done = shell(f"{PERTURB} no_reverse 'All is well.'", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "\\U0001f141" in done.stdout


@pytest.mark.parametrize(
    "after", ["2>&1 | head -1", pytest.param("> /dev/full", marks=pytest.mark.slow)]
)
def test_training_goes_on_without_its_output(
    after: str, config: Config, trained: Path, tmp_path: Path
) -> None:
    path = config(out_dir=str(tmp_path / "ü"))
    done = shell(f"{sys.executable} train.py {path} {after}", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert losses(tmp_path / "ü") == losses(trained)
