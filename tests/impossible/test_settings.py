import dataclasses
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import numpy as np
import pytest
import torch
from conftest import ROOT, fail, succeed
from hypothesis import given
from hypothesis import strategies as st

from impossible.evaluation.measures import MEASURES
from impossible.settings import (
    LARGEST_SEED,
    READS,
    Settings,
    UserError,
    explanations,
    read_config,
)
from impossible.settings import load as load_all
from impossible.study import plan as plans
from impossible.study.plan import OF_STUDY, Study
from model import GPTConfig

SEEDS = ("seed", "init_seed", "order_seed")
COMMANDS = {**READS, "study.py": OF_STUDY}  # the settings that each command reads
NAMES = [field.name for field in dataclasses.fields(Study)]


def load(command: str, arguments: list[str], *others: object) -> Settings:
    """The settings of a command with one config file."""
    (settings,) = load_all(command, arguments, *others)
    return settings


def study(*arguments: str) -> Study:
    return plans.read(list(arguments), "usage").settings


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_the_published_recipe() -> None:
    s = load("train.py", [])
    assert (s.language, s.n_layer, s.n_head, s.n_embd) == ("partial_reverse", 12, 12, 768)
    assert (s.tokens_per_step, s.max_steps, s.warmup_steps) == (2**19, 3000, 300)
    assert (s.learning_rate, s.beta1, s.beta2, s.weight_decay) == (6e-4, 0.9, 0.999, 0.1)
    assert (s.seed, s.block_size, s.dropout) == (41, 1024, 0.1)
    assert (s.data_dir, s.out_dir) == ("data/partial_reverse", "out/partial_reverse")
    assert load("prepare.py", []).data_seed == 41


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, '"""A docstring."""\nn_layer = 3\nseed = 7\nlearning_rate = 1\n')
    for more in (["--seed=9", "--compile=false"], ["--seed", "9", "--compile=false"]):
        s = load("train.py", [str(path), *more])
        assert (s.n_layer, s.seed, s.n_head, s.compile) == (3, 9, 12, False)
        assert type(s.learning_rate) is float
    path.write_text("n_layer = 3\n", encoding="utf-8-sig")
    assert read_config(path) == {"n_layer": 3}, "a byte order mark is no part of it"


def test_one_config_serves_all_commands(tmp_path: Path) -> None:
    text = "corpus = 'sotu'\nn_layer = 3\ncompile = False\nsentences = True\nmodel_license = 'gpl'"
    path = str(write(tmp_path, text))
    for command in READS:
        s = load(command, [path, "--data_dir=a", "--out_dir=b"])
        assert (s.data_dir, s.out_dir, s.corpus, s.n_layer) == ("a", "b", "sotu", 3)
        assert (s.compile, s.sentences, s.model_license) == (False, True, "gpl")


def test_only_settings_that_a_command_reads_must_fit_together(tmp_path: Path) -> None:
    """Those of other commands have their defaults, and cannot be set on its command line."""
    step = ["--step=7", "--max_steps=9", "--block_size=8", "--tokens_per_step=8"]
    assert load("batch_viewer.py", step).step == 7
    path = str(write(tmp_path, "pairs = 'blimp'\nsentences = True\nstep = 9"))
    assert load("train.py", [path, "--max_steps=3", "--warmup_steps=0"]).max_steps == 3
    for command, message in (("eval.py", "left out, as pairs is set"), ("train.py", "divisor")):
        with pytest.raises(UserError, match=message):
            load_all(command, [path, *(["--batch_size=3"] if command == "train.py" else [])])


def test_evaluation_takes_several_configs_and_the_others_one() -> None:
    paths = ["config/no_reverse.py", "config/full_reverse.py"]
    runs = load_all("eval.py", [*paths, "--sample_seed=3"])
    assert [(s.language, s.sample_seed) for s in runs] == [("no_reverse", 3), ("full_reverse", 3)]
    assert "takes only one config file, but several were given" in fail("train.py", *paths)


def test_the_folder_of_a_run_is_enough_where_there_is_no_config() -> None:
    def of_run(out_dir: Path) -> dict[str, str]:
        return {"language": "no_hop", "data_dir": f"data of {out_dir}"}

    for line in ("--out_dir=mine", "--out_dir mine", "--out_dir=other --out_dir=mine"):
        s = load("eval.py", line.split(), of_run)
        assert (s.language, s.data_dir, s.out_dir) == ("no_hop", "data of mine", "mine")
    s = load("eval.py", ["--out_dir=mine", "--data_dir=other"], of_run)
    assert (s.language, s.data_dir) == ("no_hop", "other")
    s = load("eval.py", ["--out_dir=", "--sample_seed=3"], of_run)
    assert s.language == "partial_reverse"
    assert not load("train.py", ["--tracker_project", "my.py", "--compile=false"]).compile
    s = load("eval.py", ["config/full_reverse.py", "--out_dir=mine"], of_run)
    assert s.language == "full_reverse"


def test_every_config_of_the_project_is_valid() -> None:
    for path in (ROOT / "config").glob("*.py"):
        if path.stem.startswith("study"):
            values = read_config(path, Study)
            assert list(study(str(path)).languages) == list(values["languages"])
            assert "language" not in values
            continue
        for command in READS:
            assert load(command, [str(path)]).language == read_config(path)["language"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_layer = __import__('os').mkdir('{tmp}/was_run')", "not a plain assignment"),
        ("n_layer: int = 3", "not a plain assignment"),
        ("n_layer = n_head = 3", "not a plain assignment"),
        ("print('hello')", "not a plain assignment"),
        ("n_layers = 3", "Did you mean 'n_layer'"),
        ("n_layer = 3.0", "n_layer must be a whole number, not 3.0"),
        ("n_layer = True", "n_layer must be a whole number, not True"),
        ("compile = 1", "compile must be True or False, not 1"),
        ("dropout = '0.1'", "dropout must be a number"),
        ("language = 3", "language must be a string"),
        ("seed = 4", "seed is set twice"),
        ("n_layer = ", "is not valid Python: invalid syntax"),
    ],
)
def test_a_config_is_parsed_and_never_executed(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 1\n" + text.format(tmp=tmp_path))
    with pytest.raises(UserError) as error:
        read_config(path)
    assert message in str(error.value)
    assert "some.py" in str(error.value) and "line 2" in str(error.value)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus=sotu"], "train.py has no setting corpus; it is a setting of prepare.py"),
        (["config/partial_revers.py"], "Did you mean 'config/partial_reverse.py'?"),
        (["no_revers"], "unknown config file 'no_revers'"),
        (["--batch_size=3"], "a divisor of the 512 blocks of a step"),
        (["--n_head=7"], "a divisor of n_embd = 768, such as 6"),
        (["--warmup_steps=3001"], "at most max_steps, which is 3000"),
        (["--tokens_per_step=1000"], "a multiple of block_size = 1024, such as 1024"),
        (["--dropout=1.0"], "0 or more, and less than 1"),
        (["--dropout=nan"], "dropout must be a number, not 'nan'"),
        (["--device=cuda:x"], "auto, cpu, cuda"),
        (["--learning_rate=-1"], "more than 0"),
        (["--seed=-1"], "0 or more"),
        *((f"--{name}={2**32}".split(), "at most 4294967295") for name in SEEDS),
        (["--max_steps=0"], "1 or more"),
        (["--learning_rate=1e400"], "a finite number"),
        (["--tokens_per_step=1048576000000"], "at most 4294967296"),
        ([f"--tokens_per_step={2**32}", "--batch_size=3"], "of the 4194304 blocks"),
        (["--out_dir=out/\udcff"], "text in UTF-8"),
        (["\udcff.py"], "unknown config file"),
        (["--compile=maybe"], "compile must be True or False, not 'maybe'"),
        (["--learning_rat=1"], "unknown setting 'learning_rat'. Did you mean 'learning_rate'?"),
        (["--n_layer=three"], "n_layer must be a whole number, not 'three'"),
        (["--dtype=float8"], "one of auto, float32, bfloat16, float16"),
        (["-n_layer=3"], "Did you mean 'n_layer'?"),
        (["--n_layer"], "--n_layer has no value"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load("train.py", arguments)
    assert message in str(error.value)


def test_the_largest_seed_is_taken_by_numpy_and_torch() -> None:
    np.random.RandomState(LARGEST_SEED)
    torch.Generator().manual_seed(LARGEST_SEED)
    names = {"train.py": "seed", "prepare.py": "data_seed", "eval.py": "sample_seed"}
    for command, name in names.items():
        assert getattr(load(command, [f"--{name}={LARGEST_SEED}"]), name) == LARGEST_SEED
        with pytest.raises(UserError, match="at most 4294967295"):
            load(command, [f"--{name}={2**32}"])
    path = "config/study_laptop.py"
    assert study(path, f"--seeds=0,{LARGEST_SEED}").seeds == (0, LARGEST_SEED)
    with pytest.raises(UserError, match="whole numbers, 0 or more, at most 4294967295"):
        study(path, f"--seeds=0,{2**64}")


def test_an_item_of_a_list_may_contain_a_comma_in_a_config_file(tmp_path: Path) -> None:
    source = f"stimuli={tmp_path}/a, b.csv"
    (tmp_path / "a, b.csv").touch()
    text = f"languages = ['no_reverse']\nevaluations = ['perplexity', {source!r}]\n"
    assert study(str(write(tmp_path, text))).evaluations == ("perplexity", source)
    with pytest.raises(UserError, match="a name with a comma: only in the config file"):
        study("config/study_laptop.py", "--evaluations=perplexity,stimuli=a, b.csv")


def test_a_config_of_the_project_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("train.py", ["config/full_reverse.py"]).language == "full_reverse"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "full_reverse.py").write_text("language = 'no_reverse'")
    assert load("train.py", ["config/full_reverse.py"]).language == "no_reverse", "the nearer one"


HELP = """
import runpy, sys
modules, path = set(sys.modules), list(sys.path)
for script in sys.argv[1:]:
    sys.argv[:], sys.path[:] = [script, "--help"], path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("impossible", "model", "perturb"):
            del sys.modules[name]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
"""


@pytest.mark.slow
def test_help_needs_no_docstrings() -> None:
    shown = succeed("-OO", "-c", HELP, *COMMANDS, "perturb.py", processes=1)
    assert re.findall(r"^usage: (\S+)", shown, re.MULTILINE) == list(COMMANDS)
    assert "Languages: no_reverse" in shown


@hypothesis.settings(max_examples=30)
@given(st.floats(min_value=1e-9, max_value=1e9))
def test_any_number_means_the_same_in_a_file_and_on_the_command_line(value: float) -> None:
    assert load("train.py", [f"--learning_rate={value!r}"]).learning_rate == value
    with TemporaryDirectory() as folder:
        path = write(Path(folder), f"learning_rate = {value!r}")
        assert load("train.py", [str(path)]).learning_rate == value


@hypothesis.settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(NAMES), st.integers() | st.text()))
def test_whatever_stands_in_a_config_is_taken_or_refused_with_a_word(values: dict) -> None:
    for name, value in values.items():
        with TemporaryDirectory() as folder:
            path = write(Path(folder), f"{name} = {value!a}")
            try:
                typed = read_config(path, Study)[name]
            except UserError as error:
                assert name in str(error)
            else:
                assert typed == (float(value) if isinstance(typed, float) else value)


def test_help_lists_the_settings_of_the_command_and_what_they_mean() -> None:
    texts = explanations(Study)
    for command, read in COMMANDS.items():
        shown = succeed(command, "--help")
        assert f"python {command} config/" in shown, "the usage of it"
        assert re.findall(r"--(\w+)=.*\n     ", shown.split("\nsettings:")[1]) == read
        assert all(texts[name] in " ".join(shown.split()) for name in read)


def test_every_setting_is_read_and_explained() -> None:
    paths = [*ROOT.glob("*.py"), *(ROOT / "impossible").rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in paths)
    read = set(re.findall(r"\b(?:s|t|settings|self|study|own)(?=\.(\w+))", code))
    # These reach the model as a whole, by name, through checkpoint.model_config.
    read |= {field.name for field in dataclasses.fields(GPTConfig)}
    read |= set(MEASURES)  # by name, to choose the measure
    assert set(NAMES) <= read
    assert all(map(explanations(Study).get, NAMES))
    assert {name for names in COMMANDS.values() for name in names} == set(NAMES)


@pytest.mark.slow
def test_each_process_but_the_first_leaves_it_time_to_tell(tmp_path: Path) -> None:
    """A mistake that one process alone meets is told all the same."""
    script = tmp_path / "one.py"
    script.write_text(
        "import os, time\n"
        "from impossible.settings import UserError, run_command\n"
        "def main(settings):\n"
        "    if os.environ['LOCAL_RANK'] == '0' and settings.seed == 1:\n"
        "        time.sleep(60)\n"
        "    raise UserError('mistake of ' + os.environ['LOCAL_RANK'])\n"
        "run_command('train.py', main, '')\n"
    )
    env = {"PYTHONPATH": str(ROOT)}
    for seed in (0, 1):
        error = fail(script, f"--seed={seed}", processes=2, env=env)
        assert error == f"error: mistake of {seed}"
