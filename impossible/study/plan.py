"""The plan of a study: its runs, each with a folder and a config file of its own, and its commands.

The commands of a run need only its config file and their options, so anybody can type them again.
"""

import dataclasses
import functools
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch

import perturb
from impossible import checkpoint, files, records
from impossible.hub import publish
from impossible.settings import (
    LARGEST_SEED,
    READS,
    RECIPE,
    Count,
    Rule,
    Settings,
    Size,
    UserError,
    find_config,
    matches,
    parse,
    read_config,
)
from impossible.study.tasks import Command, Task, content_hash, hash_of
from impossible.text.tokenizer import GPT2_SIZE, Tokenizer
from model import GPT

_SHORTEST = 5  # minutes of a job on SLURM: it needs two to save
_LONGEST_TITLE = 59  # characters of a collection on the Hub
# Settings that the study decides for each run.
_OWN = "language unit seed data_dir out_dir eval_dir model revisions test_language test_data_dir "
_OWN += "markers interventions pairs stimuli push_to_hub overwrite init_seed order_seed"
# Settings of eval.py that belong to one evaluation alone: options of its command.
_OPTIONS = {"perplexity": ("sentences", "surprisals", "entropies")}
_OPTIONS |= {"pairs": ("leading_space", "pairs_columns"), "interventions": ("published_pattern",)}
_INTERVENED = ("no_hop", "token_hop", "word_hop")  # the languages of --interventions
# Settings that results do not depend on.
_PLACES = ("data_dir", "out_dir", "eval_dir", "device", "workers")

_SOME = Rule(
    lambda values: 0 < len(values) == len(set(values)), "a list of one or more, without duplicates"
)
_SEEDS = Rule(
    lambda seeds: all(0 <= seed <= LARGEST_SEED for seed in seeds),
    f"a list of whole numbers, 0 or more, at most {LARGEST_SEED}",
)
_EVALUATIONS = Rule(
    lambda kinds: all(
        re.fullmatch(r"perplexity|markers|interventions|(pairs|stimuli)=.+", kind) for kind in kinds
    ),
    "a list of: perplexity, markers, interventions, pairs=SOURCE, stimuli=FILE (a name with a "
    "comma: only in the config file)",
)
_HOURS = Rule(lambda hours: hours * 60 >= _SHORTEST, f"{_SHORTEST} minutes or more")
_PREFIX = matches(
    rf"|[^/]+/[^/]{{1,{_LONGEST_TITLE}}}",
    f"USER/PREFIX, where PREFIX has up to {_LONGEST_TITLE} characters",
)


@dataclass(frozen=True)
class Study(Settings):
    """The settings of study.py. Those of its runs are in the same config file."""

    # the languages to train, by their names in perturb.py
    languages: Annotated[tuple[str, ...], _SOME] = ("no_reverse", "partial_reverse", "full_reverse")
    # values of `seed`: each language is trained once with each
    seeds: Annotated[tuple[int, ...], _SOME, _SEEDS] = (0, 14, 41, 53, 96)
    vary_data: bool = False  # each seed also sets `data_seed`, and has its own token files
    # folder of the study: data, runs and results
    study_dir: Annotated[str, matches(r".*\S.*", "the name of a folder")] = "out/study"
    # what to evaluate: perplexity, markers, interventions, pairs=SOURCE or stimuli=FILE (as for
    # eval.py)
    evaluations: Annotated[tuple[str, ...], _SOME, _EVALUATIONS] = ("perplexity",)
    # where to execute the runs: local (on this machine) or slurm (as SLURM jobs)
    cluster: Literal["local", "slurm"] = "local"
    # number of GPUs for each run (on a machine without GPUs: one core; 0 on SLURM: no GPU)
    gpus: Size = 1
    at_once: Size = 0  # runs at a time on this machine (0: as many as its GPUs or cores allow)
    partition: str = ""  # for SLURM: the partition of the jobs
    account: str = ""  # for SLURM: the account of the jobs
    # for SLURM: time limit of each job; a job that reaches it is requeued and resumed
    hours: Annotated[float, _HOURS] = 24.0
    cpus: Count = 4  # for SLURM: CPU cores of each job
    memory_gb: Count = 32  # for SLURM: memory of each job, in GB
    # set by study.py in its SLURM jobs: the part to execute (prepare, a run, or results)
    job: str = ""
    # USER/PREFIX: when all runs are done, publish each one as the repo
    # USER/PREFIX-LANGUAGE-seed-N, and put all of them into one collection on the Hub
    publish: Annotated[str, _PREFIX] = ""
    retry: bool = False  # try failed runs again
    status: bool = False  # only show the state of all runs

    def __post_init__(self) -> None:
        super().__post_init__()
        is_alone = len(self.languages) * len(self.seeds) == 1
        self.require(not is_alone, "seeds", "a list of two or more, as there is only one language")
        fits = self.publish or not self.private
        self.require(fits, "private", "left out, or combined with --publish=USER/PREFIX")


_OF_RUNS = [f.name for f in dataclasses.fields(Settings) if f.name not in ("private", "dry_run")]
OF_STUDY = [f.name for f in dataclasses.fields(Study) if f.name not in _OF_RUNS]
# Options that somebody who repeats a study does not need.
OF_ONE_START = {*OF_STUDY} - {"languages", "seeds", "vary_data", "study_dir", "evaluations"}


@dataclass(frozen=True)
class Run(Task):
    """The commands that train, export and evaluate one language with one seed."""

    language: str
    seed: int
    values: dict[str, Any]  # of its config file

    @property
    def config(self) -> Path:
        """Its config file."""
        return self.folder / "config.py"

    @functools.cached_property
    def settings(self) -> Settings:
        """The settings of its commands. Raises UserError for invalid ones."""
        return Settings(**self.values)

    @property
    def tokens(self) -> int:
        """The number of tokens that it is trained on."""
        return self.settings.max_steps * self.settings.tokens_per_step

    @property
    def parameters(self) -> int:
        """The number of parameters of its model."""
        source = self.settings.tokenizer
        sizes = {"gpt2": GPT2_SIZE, "train": self.settings.vocab_size}
        size = sizes.get(source) or Tokenizer((), Path(source)).end_of_text
        vocab_size = size + 1 + len(perturb.get(self.language).markers)
        with torch.device("meta"):
            model = GPT(checkpoint.model_config(self.settings, vocab_size))
        return sum(p.numel() for p in model.parameters())

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint after its last step."""
        return checkpoint.path_of(self.folder, self.settings.max_steps)

    def inputs(self, command: Command) -> dict[str, str]:
        """A hash of the settings that a command reads, and one of each corpus or file."""
        if command.script == "train.py":
            names = RECIPE
            sources = [self.settings.corpus.removeprefix("hf:"), self.settings.annotations]
        else:
            names = READS[command.script]
            options = (option.partition("=") for option in command.options)
            sources = [value for name, _, value in options if name in ("--pairs", "--stimuli")]
        values = {name: getattr(self.settings, name) for name in names if name not in _PLACES}
        paths = [Path(source).expanduser() for source in sources if source]
        contents = {str(path): content_hash(path) for path in paths if path.exists()}
        return {"settings": hash_of(values), **contents}

    def has_result(self, command: Command) -> bool:
        """Whether the last checkpoint or the list of exports still exists."""
        if command.script == "train.py":
            return self.last_checkpoint.exists()
        if command.script == "convert_to_hf.py":
            return (checkpoint.hf_dir(self.folder) / "manifest.json").exists()
        return True


@dataclass(frozen=True)
class Joint(Task):
    """The commands that evaluate several runs together."""

    runs: list[Run]
    is_repeated: ClassVar[bool] = False

    def inputs(self, command: Command) -> dict[str, str]:
        """The command, and for each run a hash of its record and of its last checkpoint's time."""
        inputs = {"command": str(command)}
        for run in self.runs:
            time_ns = run.last_checkpoint.stat().st_mtime_ns
            inputs[run.name] = hash_of([run.state.finished, time_ns])
        return inputs

    def results_since(self, time_ns: int) -> dict[str, str]:
        """The SHA-256 of joint results, as eval.py records them in hidden files beside them."""
        return records.recorded_in(self.folder, time_ns)


@dataclass(frozen=True)
class Plan:
    """The runs of a study, in the order in which they are started."""

    settings: Study
    runs: list[Run]
    config: Path  # of the study, as it was typed
    options: dict[str, Any]  # settings that were given on the command line

    @property
    def folder(self) -> Path:
        """The folder of the study."""
        return Path(self.settings.study_dir)

    @property
    def locked_folder(self) -> Path:
        """The folder that a process locks while it executes the study; eval.py locks `folder`."""
        return self.folder / "runs"

    @property
    def name(self) -> str:
        """The name of the study: that of its folder."""
        return self.folder.resolve().name

    def arguments(self, left_out: Collection[str] = ()) -> list[str]:
        """The arguments that were typed, without the options in `left_out`."""
        options = {name: v for name, v in self.options.items() if name not in left_out}
        texts = {k: ",".join(map(str, v)) if type(v) is tuple else v for k, v in options.items()}
        return [str(self.config), *(f"--{name}={text}" for name, text in texts.items())]

    @property
    def preparing(self) -> Task:
        """The task that prepares all token files; it reads the text once."""
        configs = {run.values["data_dir"]: str(run.config) for run in reversed(self.runs)}
        command = Command("prepare.py", tuple(reversed(configs.values())))
        return Task("prepare", self.folder / "prepare.txt", [command])

    def joint(self, runs: list[Run]) -> Joint:
        """The task that evaluates several runs together."""
        configs: dict[tuple[str, ...], tuple[str, ...]] = {}  # options -> of the runs
        for command in (command for run in runs for command in run.commands):
            if command.script == "eval.py":
                configs[command.options] = (*configs.get(command.options, ()), *command.configs)
        commands = [
            # On a CPU, as each run has saved its scores.
            Command("eval.py", paths, (*options, "--device=cpu"))
            for options, paths in configs.items()
        ]
        return Joint("results", self.folder / "results.txt", commands, runs)

    def repo(self, run: Run) -> str:
        """The repo on the Hub that a run is published as."""
        language = run.language.replace("_", "-")
        return f"{self.settings.publish}-{language}-seed-{run.seed}"

    def publishing(self, run: Run) -> Task:
        """The task that publishes a run."""
        private = ("--private",) if self.settings.private else ()
        options = (f"--push_to_hub={self.repo(run)}", *private)
        command = Command("convert_to_hf.py", (str(run.config),), options)
        return Task(self.repo(run), run.folder / "publish.txt", [command])


def read(arguments: list[str], usage: str) -> Plan:
    """The plan of a config file and options: [config file] [--name=value ...].

    Raises UserError for mistakes, including those that a command would find only later.
    """
    configs, options = parse("study.py", OF_STUDY, arguments, Study, usage, others=_OF_RUNS)
    if len(configs) != 1:
        raise UserError(
            "expected one config file, such as config/study_laptop.py; found: "
            f"{', '.join(map(str, configs)) or 'none'}. Separate list items by commas: --seeds=1,2"
        )
    config = find_config(configs[0])
    values = read_config(config, Study) | options
    study = Study(**{name: value for name, value in values.items() if name in OF_STUDY})
    shared = {name: value for name, value in values.items() if name in _OF_RUNS}
    _check_settings(study, shared)
    runs = [_run(study, shared, lang, seed) for lang in study.languages for seed in study.seeds]
    plan = Plan(study, runs, configs[0], options)
    for run in runs:
        for command in READS:
            run.settings.check(command)
        if study.publish:
            publish.require_valid(plan.repo(run))
    return plan


def _check_settings(study: Study, shared: dict[str, Any]) -> None:
    """Raise UserError if the settings of the study and those of its runs do not fit together."""
    for name in [*_OWN.split(), *["data_seed"] * study.vary_data]:
        if name in shared:
            raise UserError(
                f"{name} is set, but a study sets it itself for each run. Leave it out of the "
                "config file and the command line."
            )
    if ":" in shared.get("device", ""):
        raise UserError(
            f"device = {shared['device']} names one GPU, but a study chooses one for each run. Set "
            "--device=cuda, and the variable CUDA_VISIBLE_DEVICES to the GPUs that it may use."
        )
    for kind in study.evaluations:
        measure, _, source = kind.partition("=")
        if measure == "stimuli" and not Path(source).is_file():
            raise UserError(f"evaluations: there is no file {source}, which should hold stimuli.")
        missing = [name for name in ("no_hop", "word_hop") if name not in study.languages]
        if measure == "interventions" and missing:
            raise UserError(
                "evaluations: interventions read the sentences of no_hop and word_hop. Add "
                f"{' and '.join(missing)} to the languages, or leave interventions out."
            )


def _run(study: Study, shared: dict[str, Any], language: str, seed: int) -> Run:
    """One run. shared: settings of the other commands, the same for all runs."""
    root, name = Path(study.study_dir), f"{language}-seed-{seed}"
    folder = root / "runs" / name
    values = {
        "language": language,
        "seed": seed,
        **({"data_seed": seed} if study.vary_data else {}),
        "data_dir": str(root / "data" / (name if study.vary_data else language)),
        "out_dir": str(folder),
        "eval_dir": str(root),
    }
    is_for = {"markers": perturb.get(language).hops, "interventions": language in _INTERVENED}
    of_options = [option for options in _OPTIONS.values() for option in options]
    values |= {name: value for name, value in shared.items() if name not in of_options}
    config = (str(folder / "config.py"),)
    processes = study.gpus if is_on_gpus(study, shared.get("device", "auto")) else 1
    commands = [
        Command("train.py", config, processes=max(1, processes)),
        Command("convert_to_hf.py", config),
    ]
    for kind in study.evaluations:
        measure = kind.partition("=")[0]
        chosen = {name: shared[name] for name in _OPTIONS.get(measure, ()) if shared.get(name)}
        options = [f"--{n}" if value is True else f"--{n}={value}" for n, value in chosen.items()]
        if measure != "perplexity":
            options.insert(0, f"--{kind}")
        if is_for.get(measure, True):
            commands.append(Command("eval.py", config, tuple(options)))
    return Run(name, folder / "output.txt", commands, language, seed, values)


def is_on_gpus(study: Study, device: str) -> bool:
    """Whether runs are trained on GPUs (on SLURM, if `gpus` is not 0). device: the setting."""
    if study.cluster == "slurm":
        return device != "cpu" and study.gpus > 0
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def missing_controls(plan: Plan) -> list[str]:
    """A sentence about each language whose control is not part of the study."""
    languages = [perturb.get(name) for name in plan.settings.languages]
    return [
        f"{language.title} has no control in this study: "
        + (f"add {language.control}" if language.control else "its row in perturb.py names none")
        for language in languages
        if language.control not in plan.settings.languages
    ]


def write_configs(runs: list[Run]) -> None:
    """Write the config file of each run."""
    for run in runs:
        title = perturb.get(run.language).title
        text = f'"""{title} with seed {run.seed}: a run of a study."""\n\n'
        text += "".join(f"{name} = {value!r}\n" for name, value in run.values.items())
        run.folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_write(run.config) as file:
            file.write(text.encode())


def require_same(plan: Plan) -> None:
    """Raise UserError if a run was begun with other settings that weights or data depend on.

    A run is begun once it has a checkpoint or a state to resume from.
    """
    names = dict.fromkeys([*RECIPE, *READS["prepare.py"]])
    for run in plan.runs:
        state = checkpoint.state_path(run.folder)
        is_begun = state.exists() or checkpoint.list_checkpoints(run.folder)
        if not run.config.exists() or not is_begun:
            continue
        before = Settings(**read_config(run.config))
        changed = [
            f"{name} was {getattr(before, name)!r} and is now {getattr(run.settings, name)!r}"
            for name in names
            if name not in _PLACES and getattr(before, name) != getattr(run.settings, name)
        ]
        if changed:
            raise UserError(
                f"{run.folder} was begun with other settings: {'; '.join(changed)}. Put the old "
                "values back, or begin another study with --study_dir="
            )
