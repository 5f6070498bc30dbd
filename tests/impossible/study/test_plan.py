"""The runs of a study, their config files and their commands."""

import os
from pathlib import Path

import pytest

from impossible import checkpoint, files
from impossible.evaluation import interventions
from impossible.settings import Settings, UserError, load, read_config
from impossible.study import plan as plans
from impossible.study.plan import OF_ONE_START, Plan
from impossible.study.tasks import Command, Task

CONFIG = """
languages = ["no_hop", "partial_reverse"]
seeds = [1, 2]
n_layer = 3
"""


def plan(tmp_path: Path, *options: str, config: str = CONFIG) -> Plan:
    path, study_dir = tmp_path / "study.py", f"study_dir = '{tmp_path / 'study'}'"
    path.write_text(config if "study_dir" in config else f"{config}\n{study_dir}", "utf-8")
    return plans.read([str(path), *options], "usage")


def test_each_run_has_a_config_file_that_the_single_commands_read(tmp_path: Path) -> None:
    made = plan(tmp_path, "--dropout=0.5", "--compile=false", "--sample_seed=3")
    plans.write_configs(made.runs)
    names = [f"{language}-seed-{n}" for language in ("no_hop", "partial_reverse") for n in (1, 2)]
    assert [run.name for run in made.runs] == names
    run = made.runs[3]
    path = [str(run.config)]
    commands = ("prepare.py", "train.py", "convert_to_hf.py", "eval.py")
    prepare, train, convert, evaluate = (load(command, path)[0] for command in commands)
    assert train == run.settings
    assert (train.language, train.seed, train.n_layer) == ("partial_reverse", 2, 3)
    assert (train.dropout, train.compile, evaluate.sample_seed) == (0.5, False, 3)
    assert prepare.data_dir == train.data_dir == evaluate.data_dir
    assert train.out_dir == convert.out_dir == evaluate.out_dir == str(run.folder)
    assert prepare.data_seed == Settings.data_seed
    assert evaluate.eval_dir == str(tmp_path / "study")
    (command,) = made.preparing.commands
    assert command.configs == (str(made.runs[0].config), str(made.runs[2].config)), "once each"

    made = plan(tmp_path, "--vary_data=true")
    assert len({run.settings.data_dir for run in made.runs}) == 4
    assert [run.values["data_seed"] for run in made.runs] == [1, 2, 1, 2]
    assert len(made.preparing.commands[0].configs) == 4


def test_evaluations_are_commands_of_the_runs_that_they_are_for(tmp_path: Path) -> None:
    evaluations = "--evaluations=perplexity,markers,pairs=blimp"
    of_pairs = ("--leading_space=true", "--pairs_columns=good,bad")
    made = plan(tmp_path, evaluations, *of_pairs, "--surprisals=true")
    hop, other = made.runs[0], made.runs[2]
    assert [str(command) for command in hop.commands] == [
        f"python train.py {hop.config}",
        f"python convert_to_hf.py {hop.config}",
        f"python eval.py {hop.config} --surprisals",
        f"python eval.py {hop.config} --markers",
        f"python eval.py {hop.config} --pairs=blimp --leading_space --pairs_columns=good,bad",
    ]
    assert not any("--markers" in command.options for command in other.commands), "it has none"
    perplexity, markers, pairs = made.joint(made.runs).commands
    assert perplexity.configs == pairs.configs == tuple(str(run.config) for run in made.runs)
    assert markers.configs == tuple(str(run.config) for run in made.runs[:2])
    assert perplexity.options == ("--surprisals", "--device=cpu")
    assert markers.options == ("--markers", "--device=cpu")


def test_interventions_are_for_three_languages_and_find_the_sentences_of_two(
    tmp_path: Path,
) -> None:
    assert tuple(interventions._READ) == plans._INTERVENED
    languages = "--languages=no_hop,word_hop,phrase_hop"
    options = ("--evaluations=perplexity,interventions", "--published_pattern", "--vary_data")
    no_hop, _, word_hop, _, phrase_hop, _ = plan(tmp_path, languages, *options).runs
    for run in (no_hop, word_hop):
        assert run.commands[-1].options == ("--interventions", "--published_pattern")
    assert phrase_hop.commands[-1].options == ()
    # Where eval.py looks for them.
    assert word_hop.settings.data_dir.replace("word_hop", "no_hop") == no_hop.settings.data_dir


def test_runs_with_several_gpus_are_started_by_torchrun(tmp_path: Path) -> None:
    def first(*options: str) -> Command:
        return plan(tmp_path, *options).runs[0].commands[0]

    for device in ("--device=cuda", "--cluster=slurm"):
        command = first("--gpus=2", device)
        assert str(command).startswith("torchrun --standalone --nproc_per_node=2 train.py ")
    for on_cpu in (("--device=cpu",), ("--cluster=slurm", "--device=cpu")):
        assert str(first("--gpus=2", *on_cpu)).startswith("python train.py ")
    assert first("--gpus=2", "--device=cuda").key == first("--device=cpu").key == "train.py"


def test_what_depends_on_a_setting_is_done_again_when_it_changes(tmp_path: Path) -> None:
    def inputs(*options: str) -> list[dict[str, str]]:
        run = plan(tmp_path, *options).runs[0]
        return [run.inputs(command) for command in run.commands]

    before = inputs()
    for option, changes in (
        ("--log_interval=7", [False, False, False]),
        ("--device=cpu", [False, False, False]),
        ("--model_license=apache-2.0", [False, True, False]),
        ("--sample_seed=7", [False, False, True]),
        ("--n_layer=1", [True, False, False]),
    ):
        assert [a != b for a, b in zip(inputs(option), before, strict=True)] == changes, option


def test_a_missing_control_is_told(tmp_path: Path) -> None:
    (warning,) = plans.missing_controls(plan(tmp_path))
    assert warning == "PartialReverse has no control in this study: add no_reverse"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('languages = ["no_hop"]\nseeds = [1]', "a list of two or more"),
        ('languages = ["no_hops"]', "unknown language 'no_hops'. Did you mean 'no_hop'"),
        ('languages = "no_hop"', "line 1: languages must be a list of strings, not 'no_hop'"),
        ("seeds = [1, 1]", "seeds = .* a list of one or more, without duplicates"),
        ("seeds = [1, -1]", "seeds = .* a list of whole numbers, 0 or more"),
        ("out_dir = 'here'", "out_dir is set, but a study sets it itself"),
        ("vary_data = True\ndata_seed = 3", "data_seed is set, but a study sets it"),
        ("n_head = 5", "n_head = 5 is invalid"),  # before anything begins
        ("evaluations = ['pears']", "evaluations = .* must be a list of: perplexity, markers"),
        ("evaluations = ['pairs']", "pairs=SOURCE"),
        ("publish = 'mine'", "publish = 'mine' is invalid. It must be USER/PREFIX"),
        ("publish = 'ada/-x'", "is not the name of a repo"),
        ("publish = 'ada/" + 60 * "x" + "'", "PREFIX has up to 59 characters"),
        ("evaluations = ['stimuli=gone.csv']", "there is no file gone.csv"),
        (
            "languages = ['no_hop']\nevaluations = ['interventions']",
            "Add word_hop to the languages",
        ),
        ("device = 'cuda:1'", "device = cuda:1 names one GPU"),
        ("private = True", "combined with --publish="),
        ("hours = 0.01", "5 minutes or more"),
        ("study_dir = ' '", "study_dir = ' ' is invalid. It must be the name of a folder"),
        ("langauges = ['no_hop']", "line 1: unknown setting 'langauges'. Did you mean 'languages'"),
    ],
)
def test_mistakes_are_told_before_anything_begins(
    config: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        plan(tmp_path, config=config)


def test_a_list_is_separated_by_commas_and_one_config_file_is_named(tmp_path: Path) -> None:
    assert plan(tmp_path, "--seeds=3, 4").settings.seeds == (3, 4)
    several = r"found: .*, 4\. Separate list items .* --seeds=1,2"
    with pytest.raises(UserError, match=several):
        plan(tmp_path, "--seeds", "3", "4")
    with pytest.raises(UserError, match=r"expected one config file, .* found: none"):
        plans.read(["--seeds=1,2"], "usage")


def test_a_run_is_not_continued_with_settings_that_its_results_depend_on(tmp_path: Path) -> None:
    mistaken = plan(tmp_path, "--corpus=gone")
    plans.write_configs(mistaken.runs)
    mistaken.runs[0].error_file.write_text("it failed at once")
    made = plan(tmp_path, "--corpus=sotu")
    plans.require_same(made)  # nothing has begun
    plans.write_configs(made.runs)
    (made.runs[0].folder / checkpoint.STATE).touch()
    for run in made.runs[1:]:
        checkpoint.path_of(run.folder, 0).touch()
    for option, changed in (
        ("--n_layer=4", "n_layer was 3 and is now 4"),
        ("--corpus=babylm", "corpus was 'sotu' and is now 'babylm'"),
    ):
        with pytest.raises(UserError, match=rf"begun with other settings: {changed}.*--study_dir="):
            plans.require_same(plan(tmp_path, "--corpus=sotu", option))
    assert {read_config(path)["corpus"] for path in tmp_path.rglob("config.py")} == {"sotu"}
    other = plan(tmp_path, "--corpus=sotu", "--batch_size=4", "--seeds=1,2,3")
    plans.require_same(other)
    plans.write_configs(other.runs)
    configs = sorted(tmp_path.rglob("config.py"))
    assert len(configs) == 6
    assert all(read_config(path)["batch_size"] == 4 for path in configs)


def test_the_content_of_files_that_are_named_counts(tmp_path: Path) -> None:
    names = ("corpus/train/a.txt", "verbs/train/a.conllu", "pairs/a.jsonl", "pairs.jsonl", "s.csv")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as it was")
    sources = ("pairs={}/pairs", "pairs={}/pairs.jsonl", "stimuli={}/s.csv")
    evaluations = ",".join(source.format(tmp_path) for source in sources)
    folders = (f"--corpus={tmp_path / 'corpus'}", f"--annotations={tmp_path / 'verbs'}")
    run = plan(tmp_path, f"--evaluations={evaluations}", *folders).runs[0]
    before = list(map(run.inputs, run.commands))

    def changed() -> list[int]:
        """The commands whose inputs are others than the last time."""
        after = list(map(run.inputs, run.commands))
        changes = [i for i, (a, b) in enumerate(zip(after, before, strict=True)) if a != b]
        before[:] = after
        return changes

    assert changed() == []
    # train, convert, and the three evaluations
    for name, place in zip(names, (0, 0, 2, 3, 4), strict=True):
        stat = (tmp_path / name).stat()
        (tmp_path / name).write_text("as it is!")  # of the same size
        os.utime(tmp_path / name, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert changed() == [place], name
    (tmp_path / "pairs" / "b.jsonl").write_text("more")
    assert changed() == [2]
    (tmp_path / "pairs" / ".DS_Store").touch()
    assert changed() == []
    (tmp_path / "pairs" / "b.jsonl").rename(tmp_path / "pairs" / "paradigm.jsonl")
    assert changed() == [2], "names of files are those of paradigms"


def done(task: Task) -> None:
    """Record that the commands of a task are done as they are now."""
    inputs = {command.key: task.inputs(command) for command in task.commands}
    files.write_json(task.state_file, {"finished": inputs})


def finish(run: plans.Run) -> None:
    """Make the files by which a run is known to be done."""
    run.last_checkpoint.touch()
    (run.folder / "hf").mkdir(exist_ok=True)
    (run.folder / "hf" / "manifest.json").touch()
    done(run)


def test_material_that_was_moved_away_changes_nothing(tmp_path: Path) -> None:
    corpus, pairs = tmp_path / "corpus", tmp_path / "pairs.jsonl"
    corpus.mkdir()
    (corpus / "a.txt").write_text("as it was")
    pairs.write_text("as it was")
    made = plan(tmp_path, f"--corpus={corpus}", f"--evaluations=perplexity,pairs={pairs}")
    plans.write_configs(made.runs)
    for run in made.runs:
        finish(run)
    run, joint = made.runs[0], made.joint(made.runs)
    done(joint)
    assert made.joint(made.runs[1:]).following, "other runs"
    corpus.rename(tmp_path / "elsewhere")
    pairs.unlink()
    assert run.following is None
    assert joint.following is None, "the joint results are still those"
    pairs.write_text("as it is!")
    assert run.following == run.commands[-1]
    done(run)
    assert joint.following == joint.commands[0]
    pairs.unlink()
    corpus.mkdir()
    assert run.following == run.commands[0], "another corpus of that name"


def test_what_is_done_is_done_again_when_its_result_is_gone(tmp_path: Path) -> None:
    made = plan(tmp_path)
    plans.write_configs(made.runs)
    run, joint = made.runs[0], made.joint(made.runs)
    for one in made.runs:
        finish(one)
    done(joint)
    assert run.following is joint.following is None
    (run.folder / "hf" / "manifest.json").unlink()
    assert run.following.script == "convert_to_hf.py"
    run.last_checkpoint.unlink()
    assert run.following.script == "train.py"
    finish(run)  # trained again
    assert joint.following.script == "eval.py"
    for text in ("", '{"done": ', "[1]", '{"d": null}', "\0\0"):
        run.state_file.write_text(text)
        assert run.following.script == "train.py", "each command skips what is done"


def test_the_command_to_repeat_a_study_lacks_what_belongs_to_one_start(tmp_path: Path) -> None:
    start = ["--at_once", "2", "--retry", "--cluster=local", "--at_once=3", "--gpus", "0"]
    start += ["--private=false", "--n_layer=2", "--vary_data", "--seeds=3,4"]
    expected = [str(tmp_path / "study.py"), "--n_layer=2", "--vary_data=True", "--seeds=3,4"]
    assert plan(tmp_path, *start).arguments(OF_ONE_START) == expected
