import ast
import dataclasses
from pathlib import Path

import pytest
from conftest import ROOT, fail, run
from hypothesis import given
from hypothesis import strategies as st

import configurator
from configurator import COMMANDS, Settings, load, read_config
from errors import UserError
from model import GPTConfig

FIELDS = dataclasses.fields(Settings)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_the_published_recipe() -> None:
    s = load("train", [])
    assert (s.language, s.n_layer, s.n_head, s.n_embd) == ("partial_reverse", 12, 12, 768)
    assert (s.tokens_per_step, s.max_steps, s.warmup_steps) == (2**19, 3000, 300)
    assert (s.learning_rate, s.beta1, s.beta2, s.weight_decay) == (6e-4, 0.9, 0.999, 0.1)
    assert (s.seed, s.data_seed, s.block_size, s.dropout) == (41, 41, 1024, 0.1)
    assert (s.data_dir, s.out_dir) == ("data/partial_reverse", "out/partial_reverse")


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, '"""A docstring."""\nn_layer = 3\nseed = 7\nlearning_rate = 1\n')
    s = load("train", ["--seed=9", str(path), "--compile=false"])
    assert (s.n_layer, s.seed, s.n_head, s.compile) == (3, 9, 12, False)
    assert type(s.learning_rate) is float


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_of_the_project_is_valid(path: Path) -> None:
    assert Settings(**read_config(path)).language


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "n_layer = __import__('os').mkdir('{tmp}/was_run')",
        "n_layer = 3 + n_head",
        "n_layer: int = 3",
        "n_layer = n_head = 3",
        "n_layer += 1",
        "for n_layer in (1, 2): pass",
        "print('hello')",
    ],
)
def test_a_config_cannot_run_code(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 1\n" + text.format(tmp=tmp_path))
    with pytest.raises(UserError, match=r"some\.py, line 2: .* not a plain assignment"):
        read_config(path)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_layers = 3", "did you mean 'n_layer'"),
        ("n_layer = 3.0", "n_layer must be a whole number, not 3.0"),
        ("n_layer = True", "n_layer must be a whole number, not True"),
        ("compile = 1", "compile must be True or False, not 1"),
        ("dropout = '0.1'", "dropout must be a number"),
        ("language = 3", "language must be a string"),
        ("n_layer = 3\nn_layer = 4", "n_layer is set twice"),
        ("n_layer = ", "not valid Python"),
    ],
)
def test_a_mistake_in_a_config_is_explained(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_config(path)
    assert message.lower() in str(error.value).lower()
    assert "some.py" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n_layers=3"], "Did you mean 'n_layer'"),
        (["--n_layer", "3"], "written --key=value"),
        (["-n_layer=3"], "written --key=value"),
        (["--n_layer=three"], "n_layer must be a whole number, not 'three'"),
        (["--dropout=nan"], "dropout must be a number, not 'nan'"),
        (["--compile=maybe"], "compile must be True or False"),
        (["--corpus=sotu"], "train.py does not read corpus; it is for prepare.py"),
        (["config/no_such.py"], "unknown config file"),
        (["config/no_reverse.py", "config/full_reverse.py"], "two config files"),
        (
            ["--batch_size=3"],
            "a divisor of the 512 blocks of a step",
        ),
        (["--n_head=7"], "a divisor of n_embd = 768, such as 6"),
        (["--warmup_steps=3001"], "at most max_steps, which is 3000"),
        (["--tokens_per_step=1000"], "a multiple of block_size = 1024, such as 1024"),
        (["--dropout=1.0"], "from 0 to below 1"),
        (["--dtype=float8"], "one of auto, float32"),
        (["--device=tpu"], "auto, cpu, cuda"),
        (["--device=cuda:x"], "auto, cpu, cuda"),
        (["--learning_rate=-1"], "above 0"),
        (["--seed=-1"], "0 or more"),
        (["--max_steps=0"], "at least 1"),
        (["--learning_rate=1e400"], "learning_rate must be a number, not inf"),
        (["--tokens_per_step=1048576000000"], "at most 4294967296"),
        (["--out_dir=out/\udcff"], "out_dir holds bytes that are not UTF-8"),
        (["\udcff.py"], "unknown config file"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load("train", arguments)
    assert message in str(error.value)


def test_every_command_takes_the_places_of_a_recipe() -> None:
    for command in COMMANDS:
        s = load(command, ["--data_dir=a", "--out_dir=b"])
        assert (s.data_dir, s.out_dir) == ("a", "b")


def test_a_config_of_the_project_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("train", ["config/full_reverse.py"]).language == "full_reverse"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "full_reverse.py").write_text("language = 'no_reverse'")
    assert load("train", ["config/full_reverse.py"]).language == "no_reverse", "the nearer one"


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("n_layer = 3\n", encoding="utf-8-sig")
    assert read_config(path) == {"n_layer": 3}


@pytest.mark.parametrize("script", [f"{name}.py" for name in (*COMMANDS, "perturb")])
def test_help_needs_no_docstrings(script: str) -> None:
    done = run("-OO", script, "--help")
    assert done.returncode == 0, done.stderr
    assert script in done.stdout or "Languages" in done.stdout


@pytest.mark.timeout(30)
def test_no_number_is_too_large_for_a_quick_answer() -> None:
    for number in (2**32, 2**40):
        with pytest.raises(UserError):
            load("train", [f"--tokens_per_step={number}", "--batch_size=3"])


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_any_number_means_the_same_in_a_file_and_on_the_command_line(value: float) -> None:
    assert load("train", [f"--learning_rate={value!r}"]).learning_rate == value


@given(st.dictionaries(st.sampled_from([f.name for f in FIELDS]), st.integers() | st.text()))
def test_whatever_stands_in_a_config_is_taken_or_refused_with_a_word(values: dict) -> None:
    path = Path(__file__)  # only its name is used
    for key, value in values.items():
        try:
            typed = configurator._typed(key, value, str(path))
        except UserError as error:
            assert key in str(error)
        else:
            assert typed == (float(value) if isinstance(typed, float) else value)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_settings_that_a_command_reads_and_no_others(command: str) -> None:
    text = configurator.help_text(command, "usage")
    for field in FIELDS:
        assert (f"  --{field.name}: " in text) == (command in field.metadata["read_by"])


def test_every_setting_is_read_by_the_commands_that_it_names() -> None:
    for command in COMMANDS:
        names = [command, *{"train": ["log"], "evaluate": ["series", "evaluation", "tables"]}.get(command, [])]
        texts = [(ROOT / f"{name}.py").read_text(encoding="utf-8") for name in names]
        tree = ast.parse("\n".join(texts))
        read = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and ast.unparse(node.value)
            in ("settings", "s", "run.settings", "self.settings", "runs[0]")
        }
        # These reach the model as a whole, by name, through checkpoint.model_config.
        read |= {field.name for field in dataclasses.fields(GPTConfig)}
        for field in FIELDS:
            if command in field.metadata["read_by"]:
                assert field.name in read, f"{command}.py does not read {field.name}"


def test_each_process_but_the_first_leaves_it_time_to_tell(tmp_path: Path) -> None:
    """A mistake that one process alone meets is told all the same."""
    script = tmp_path / "one.py"
    script.write_text(
        "import os, sys, time, configurator, errors\n"
        "def main(settings):\n"
        "    if os.environ['LOCAL_RANK'] == '0' and sys.argv[-1] == '--seed=1':\n"
        "        time.sleep(60)\n"
        "    raise errors.UserError('mistake of ' + os.environ['LOCAL_RANK'])\n"
        "configurator.run('train', main, '')\n"
    )
    env = {"PYTHONPATH": str(ROOT)}
    assert fail(script, "--seed=0", processes=2, env=env) == "error: mistake of 0"
    assert fail(script, "--seed=1", processes=2, env=env) == "error: mistake of 1"
