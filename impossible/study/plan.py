"""The plan of a study: its runs, each with a folder and a config file of its own.

The commands of a run read nothing but its config file, so that anybody can type them again.
"""

import dataclasses
import functools
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

import perturb
from impossible import checkpoint, files
from impossible.hub import publish
from impossible.settings import (
    LARGEST_SEED,
    READS,
    RECIPE,
    Settings,
    UserError,
    find_config,
    parse,
    read_config,
)
from impossible.text.tokenizer import END_OF_TEXT_ID
from model import GPT, GPTConfig

ROOT = Path(__file__).parent.parent.parent
_SHORTEST = 5  # minutes of a job on SLURM: it needs two to save
_LONGEST_TITLE = 59  # characters of a collection on the Hub
# What the study itself decides for each run.
_OWN = ("language", "seed", "data_dir", "out_dir", "eval_dir", "model", "revisions")
_OWN += ("test_language", "test_data_dir", "markers", "pairs", "stimuli", "push_to_hub")
_OWN += ("overwrite", "init_seed", "order_seed")
# Settings of eval.py for one kind of evaluation alone.
_OF_PERPLEXITY = ("sentences", "surprisals", "entropies")
_OF_PAIRS = ("leading_space",)
# Settings that results do not depend on.
_PLACES = ("data_dir", "out_dir", "eval_dir", "device")
# Options that somebody who repeats a study does not need.
_OF_ONE_START = ("retry", "status", "dry_run", "publish", "private", "cluster", "at_once")
_OF_ONE_START += ("partition", "account", "hours", "cpus", "memory_gb", "gpus")
# What the tokens depend on.
_OF_TEXT = ("corpus", "sotu_years", "text_column", "segmenter", "invalid_utf8", "data_seed")
_OF_TEXT += ("annotations",)


@dataclass(frozen=True)
class Study(Settings):
    """The settings of study.py. Those of its runs are in the same config file."""

    languages: tuple[str, ...] = ("no_reverse", "partial_reverse", "full_reverse")  # of the study
    seeds: tuple[int, ...] = (0, 14, 41, 53, 96)  # for each language, one run for each `seed`
    vary_data: bool = False  # each seed also sets `data_seed`, so that it has its own token files
    study_dir: str = "out/study"  # folder of the study: data, runs and results
    # what to evaluate: perplexity, markers, pairs=SOURCE or stimuli=FILE (as for eval.py)
    evaluations: tuple[str, ...] = ("perplexity",)
    # where the runs are executed: on this machine, or as jobs of SLURM
    cluster: Literal["local", "slurm"] = "local"
    # number of GPUs for each run (a machine without GPUs: one core instead; SLURM, 0: none)
    gpus: int = 1
    at_once: int = 0  # on this machine, runs at a time (0: one for each GPU or core)
    partition: str = ""  # for SLURM: the partition of the jobs
    account: str = ""  # for SLURM: the account of the jobs
    # for SLURM: time limit of each job; a job that reaches it is resumed in another one
    hours: float = 24.0
    cpus: int = 4  # for SLURM: CPU cores of each job
    memory_gb: int = 32  # for SLURM: memory of each job, in GB
    # when all is done, publish each run as a repo named USER/PREFIX-LANGUAGE-seed-N, and all of
    # them in one collection on the Hub: USER/PREFIX
    publish: str = ""
    retry: bool = False  # run again what failed
    status: bool = False  # show the state of all runs, and do nothing

    def __post_init__(self) -> None:
        super().__post_init__()
        s, check = self, self.require
        for name, least in {"gpus": 0, "at_once": 0, "cpus": 1, "memory_gb": 1}.items():
            check(getattr(s, name) >= least, name, f"{least} or more")
        for name in ("languages", "seeds", "evaluations"):
            values = getattr(s, name)
            check(len(values) > 0, name, "a list of one or more")
            check(len(set(values)) == len(values), name, "a list without duplicates")
        are_seeds = min(s.seeds) >= 0 and max(s.seeds) <= LARGEST_SEED
        check(are_seeds, "seeds", f"a list of whole numbers, 0 or more, at most {LARGEST_SEED}")
        for value in s.evaluations:
            known = re.fullmatch(r"perplexity|markers|(pairs|stimuli)=.+", value)
            expected = "a list of: perplexity, markers, pairs=SOURCE, stimuli=FILE"
            check(
                known, "evaluations", f"{expected} (a name with a comma: only in the config file)"
            )
        check(s.study_dir.strip(), "study_dir", "the name of a folder")
        check(s.hours * 60 >= _SHORTEST, "hours", f"{_SHORTEST} minutes or more")
        form = re.fullmatch(rf"|[^/]+/[^/]{{1,{_LONGEST_TITLE}}}", s.publish)
        prefix = f"USER/PREFIX, where PREFIX has up to {_LONGEST_TITLE} characters"
        check(form, "publish", prefix)
        fits = s.publish or not s.private
        check(fits, "private", "left out, or combined with --publish=USER/PREFIX")


_OF_RUNS = [f.name for f in dataclasses.fields(Settings) if f.name not in ("private", "dry_run")]
OF_STUDY = [f.name for f in dataclasses.fields(Study) if f.name not in _OF_RUNS]


class Command(NamedTuple):
    """One of the project's commands, with its arguments."""

    script: str
    configs: list[str]
    options: Sequence[str] = ()
    processes: int = 1  # torchrun for several

    @property
    def arguments(self) -> list[str]:
        """Config files and options."""
        return [*self.configs, *self.options]

    @property
    def key(self) -> str:
        """What it does, however and wherever it is started."""
        return shlex.join([self.script, *self.options])

    def __str__(self) -> str:
        """The line that a person would type."""
        start = ["python"]
        if self.processes > 1:
            start = ["torchrun", "--standalone", f"--nproc_per_node={self.processes}"]
        return shlex.join([*start, self.script, *self.arguments])

    @property
    def line(self) -> list[str]:
        """The same for a process of this Python."""
        start = [sys.executable, "-u"]
        if self.processes > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone"]
            start += [*torchrun, f"--nproc_per_node={self.processes}"]
        return [*start, str(ROOT / self.script), *self.arguments]


@dataclass(frozen=True)
class Run:
    """One language with one seed."""

    language: str
    seed: int
    values: dict[str, Any]  # of its config file

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.language}-seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """Its checkpoints, its log and all else."""
        return Path(self.values["out_dir"])

    @property
    def config(self) -> Path:
        """Its config file."""
        return self.folder / "config.py"

    @property
    def output(self) -> Path:
        """What its commands print."""
        return self.folder / "output.txt"

    @functools.cached_property
    def settings(self) -> Settings:
        """The settings of its commands. Raises UserError."""
        return Settings(**self.values)

    @property
    def tokens(self) -> int:
        """The tokens that it is trained on."""
        return self.settings.max_steps * self.settings.tokens_per_step

    @property
    def data_dir(self) -> Path:
        """Its token files."""
        return Path(self.values["data_dir"])

    @property
    def model_config(self) -> GPTConfig:
        """The shape of its model."""
        vocab_size = END_OF_TEXT_ID + 1 + len(perturb.get(self.language).markers)
        return checkpoint.model_config(self.settings, vocab_size)

    @property
    def parameters(self) -> int:
        """How many its model has."""
        with torch.device("meta"):
            return sum(p.numel() for p in GPT(self.model_config).parameters())


@dataclass(frozen=True)
class Plan:
    """The runs of a study, in the order in which they are started."""

    settings: Study
    runs: list[Run]
    line: str  # the command that was typed
    text: str  # of its config file
    shared: dict[str, Any]  # the settings of all runs
    processes: int  # that train a run

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return Path(self.settings.study_dir)

    @property
    def name(self) -> str:
        """The name of that folder."""
        return self.folder.resolve().name

    @property
    def preparing(self) -> Command:
        """Prepares all token files; it reads the text once."""
        first: dict[Path, str] = {}
        for run in self.runs:
            first.setdefault(run.data_dir, str(run.config))
        return Command("prepare.py", list(first.values()))

    def repo(self, run: Run) -> str:
        """The repo on the Hub that a run is published as."""
        language = run.language.replace("_", "-")
        return f"{self.settings.publish}-{language}-seed-{run.seed}"

    def commands(self, run: Run) -> list[Command]:
        """The commands that train, export and evaluate one run, in order."""
        config = [str(run.config)]
        return [
            Command("train.py", config, processes=self.processes),
            Command("convert_to_hf.py", config),
            *(found for kind in self.settings.evaluations for found in self._evaluate(kind, [run])),
        ]

    def joint(self, runs: list[Run]) -> list[Command]:
        """The commands that evaluate several runs together."""
        return [
            # On a CPU, as the scores are there already.
            found._replace(options=[*found.options, "--device=cpu"])
            for kind in self.settings.evaluations
            for found in self._evaluate(kind, runs)
        ]

    def _evaluate(self, kind: str, runs: list[Run]) -> list[Command]:
        """The command of one evaluation, with the runs that it is for; none if there are none."""
        if kind == "markers":
            runs = [run for run in runs if perturb.get(run.language).hops]
        configs = [str(run.config) for run in runs]
        return [Command("eval.py", configs, self.options(kind))] if runs else []

    def options(self, kind: str) -> list[str]:
        """The options of an evaluation."""
        names = {"perplexity": _OF_PERPLEXITY, "pairs": _OF_PAIRS}.get(kind.partition("=")[0], ())
        given = [f"--{name}" for name in names if self.shared.get(name)]
        return given if kind == "perplexity" else [f"--{kind}", *given]


def digest(run: Run, command: Command) -> str:
    """What the result of a command depends on: a hash of its settings, and one of each material.

    The hash of material that does not exist is empty.
    """
    names = RECIPE if command.script == "train.py" else READS[command.script]
    values = {name: getattr(run.settings, name) for name in names if name not in _PLACES}
    settings = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    contents = (_content(path) if path.exists() else "" for path in _material(run, command))
    return ":".join([settings, *contents])


def is_same(before: str, now: str) -> bool:
    """Whether two digests agree. Material that does not exist now counts as unchanged."""
    return all(new in ("", old) for old, new in zip_longest(before.split(":"), now.split(":")))


def _material(run: Run, command: Command) -> list[Path]:
    """What may be the files and folders that are given by name, and that a command depends on."""
    if command.script == "train.py":
        names = [run.settings.corpus.removeprefix("hf:"), run.settings.annotations]
    else:
        options = (option.partition("=") for option in command.options)
        names = [value for name, _, value in options if name in ("--pairs", "--stimuli")]
    return [Path(name).expanduser() for name in names if name]


def _content(path: Path) -> str:
    """The SHA-256 of a file; of a folder, one over the names and contents of its files."""
    paths = [path] if path.is_file() else sorted(path.rglob("*"))
    stats = [(p, p.stat()) for p in paths if p.is_file() and not p.name.startswith(".")]
    return _sha256_of(path, tuple((p, stat.st_size, stat.st_mtime_ns) for p, stat in stats))


@functools.lru_cache  # a file is read again when its size or its time has changed
def _sha256_of(folder: Path, described: tuple[tuple[Path, int, int], ...]) -> str:
    hashes = [(str(path.relative_to(folder)), files.sha256(path)) for path, *_ in described]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def read(arguments: list[str], usage: str) -> Plan:
    """The plan of a config file and options: [config file] [--name=value ...].

    Raises UserError for a setting that the study decides itself.
    """
    configs, values = parse("study.py", OF_STUDY, arguments, Study, usage, others=_OF_RUNS)
    config = _only(configs)
    values = read_config(config, Study) | values
    study = Study(**{name: value for name, value in values.items() if name in OF_STUDY})
    shared = {name: value for name, value in values.items() if name in _OF_RUNS}
    for name in _OWN:
        if name in shared:
            raise UserError(
                f"{name} is set, but a study sets it itself for each run. Leave it out of the "
                "config file and the command line."
            )
    if study.vary_data and "data_seed" in shared:
        raise UserError("data_seed is set, but vary_data = True sets it. Leave one of them out.")
    if len(study.languages) * len(study.seeds) < 2:
        raise UserError(
            "a study compares two or more runs, but there is one language and one seed. Add some, "
            "or use the single commands (prepare.py, train.py, ...)."
        )
    if ":" in shared.get("device", ""):
        raise UserError(
            f"device = {shared['device']} names one GPU, but a study chooses one for each run. Set "
            "--device=cuda, and the variable CUDA_VISIBLE_DEVICES to the GPUs that it may use."
        )
    line = shlex.join(["python", "study.py", *_repeatable(arguments)])
    text = config.read_text(encoding="utf-8-sig").strip()
    processes = study.gpus if is_on_gpus(study, shared) else 1
    plan = Plan(study, _runs(study, shared), line, text, shared, max(1, processes))
    _check(plan)
    return plan


def _only(configs: list[Path]) -> Path:
    """The one config file of a study. Raises UserError if there is another number of them."""
    if len(configs) > 1:
        raise UserError(
            f"a study has one config file, but several were given: {', '.join(map(str, configs))}. "
            "Separate the items of a list by commas: --seeds=1,2"
        )
    if not configs:
        raise UserError(
            "name the config file of a study, such as config/study_laptop.py (small) or "
            "config/study_reverse.py (at full size)."
        )
    return find_config(configs[0])


def _repeatable(arguments: list[str]) -> list[str]:
    """The arguments without options, and their values, that a repetition does not need."""
    kept, is_value = [], False
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--").replace("-", "_").partition("=")
        is_left_out = argument.startswith("--") and name in _OF_ONE_START
        if not is_left_out and not is_value:
            kept.append(argument)
        is_value = is_left_out and not equals and type(getattr(Study, name)) is not bool
    return kept


def is_on_gpus(study: Study, shared: dict[str, Any]) -> bool:
    """Whether the runs are trained on GPUs: on SLURM, if they ask for any."""
    device = shared.get("device", "auto")
    if study.cluster == "slurm":
        return device != "cpu" and study.gpus > 0
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def _runs(study: Study, shared: dict[str, Any]) -> list[Run]:
    """The runs. shared: settings of the other commands, the same for all runs."""
    return [
        Run(language, seed, _values(study, shared, language, seed))
        for language in study.languages
        for seed in study.seeds
    ]


def _check(plan: Plan) -> None:
    """Raise UserError for a mistake that a command would find only later."""
    for language in plan.settings.languages:
        perturb.get(language)
    for run in plan.runs:
        for command in READS:
            run.settings.check(command)
        if plan.settings.publish:
            publish.require_valid(plan.repo(run))
    for kind in plan.settings.evaluations:
        name, _, source = kind.partition("=")
        given = {option.removeprefix("--").partition("=")[0]: True for option in plan.options(kind)}
        measure = {name: source} if source else {}
        Settings(**plan.runs[0].values | given | measure).check("eval.py")
        if name == "stimuli" and not Path(source).is_file():
            raise UserError(f"evaluations: there is no file {source}, which should hold stimuli.")


def missing_controls(plan: Plan) -> list[str]:
    """The controls that the languages of a study lack, by the titles of both."""
    languages = [perturb.get(name) for name in plan.settings.languages]
    return [
        f"{language.title} has no control in this study: "
        + (f"add {language.control}" if language.control else "its row in perturb.py names none")
        for language in languages
        if language.control not in plan.settings.languages
    ]


def _values(study: Study, shared: dict[str, Any], language: str, seed: int) -> dict[str, Any]:
    folder = Path(study.study_dir)
    data = f"{language}-seed-{seed}" if study.vary_data else language
    varied = {"data_seed": seed} if study.vary_data else {}
    alone = (*_OF_PERPLEXITY, *_OF_PAIRS)  # options of the commands
    return {
        "language": language,
        "seed": seed,
        **varied,
        "data_dir": str(folder / "data" / data),
        "out_dir": str(folder / "runs" / f"{language}-seed-{seed}"),
        "eval_dir": str(folder),
        **{name: shared[name] for name in shared if name not in (*varied, *alone)},
    }


def write_configs(plan: Plan) -> None:
    """Write the config file of each run."""
    for run in plan.runs:
        text = (
            f'"""{perturb.get(run.language).title} with seed {run.seed}: a run of a study."""\n\n'
        )
        text += "".join(f"{name} = {value!r}\n" for name, value in run.values.items())
        if not run.config.exists() or run.config.read_text(encoding="utf-8") != text:
            run.folder.mkdir(parents=True, exist_ok=True)
            with files.atomic_write(run.config) as file:
                file.write(text.encode())


def require_same(plan: Plan) -> None:
    """Raise UserError if a run was begun with other settings that weights or data depend on.

    A run is begun once it has a checkpoint or a state to resume from.
    """
    for run in plan.runs:
        is_begun = checkpoint.state_path(run.folder).exists() or checkpoint.list_checkpoints(
            run.folder
        )
        if not run.config.exists() or not is_begun:
            continue
        before = Settings(**read_config(run.config))
        names = [*RECIPE, *_OF_TEXT]
        changed = [
            f"{name} was {getattr(before, name)!r} and is now {getattr(run.settings, name)!r}"
            for name in names
            if getattr(before, name) != getattr(run.settings, name)
        ]
        if changed:
            raise UserError(
                f"{run.folder} was begun with other settings: {'; '.join(changed)}. Put the old "
                "values back, or begin another study with --study_dir="
            )
