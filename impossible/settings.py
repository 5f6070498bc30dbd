"""All settings in one table, config files, the command line, and the errors of a command.

A value on the command line takes precedence over one in the config file, which takes precedence
over the default: that of the published PartialReverse. All commands can share one config file; each
reads only its own settings. A config file contains literal assignments (`n_layer = 12`) and is
parsed, never executed. The comment beside or above a setting is its help on the command line.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import math
import os
import re
import signal
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO

CONFIG_DIR = Path(__file__).parent.parent / "config"
DEFAULT_CONFIG = CONFIG_DIR / "partial_reverse.py"
_WAIT_FOR_FIRST = 5.0  # seconds
_EXPECTED = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}

_POSITIVE = r"(?=[\d.]*[1-9])(\d+\.?\d*|\.\d+)"  # a number such as 2 or 0.5

LARGEST_SEED = 2**32 - 1  # that numpy's and torch's generators all take


class UserError(Exception):
    """A mistake in the input (settings, files, network), reported without a traceback."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name, with the most similar known name or else all of them.

    kind: the kind of thing that is named ("setting", "language", ...), for the message.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    return UserError(f"unknown {kind} {name!r}. {hint}")


@dataclass(frozen=True)
class Recipe:
    """The settings that the weights depend on: they cannot be changed when a run is resumed."""

    language: str = "partial_reverse"  # a name from the table in perturb.py
    position_embeddings: bool = True  # false: the variant without positional encodings
    # Data
    block_size: int = 1024  # context length, in tokens
    tokens_per_step: int = 524288  # number of tokens in one optimizer step, over all processes
    max_steps: int = 3000  # total number of optimizer steps
    # Model
    n_layer: int = 12  # number of transformer blocks
    n_head: int = 12  # attention heads in each transformer block
    n_embd: int = 768  # width of the model
    dropout: float = 0.1  # dropout rate of embeddings, attention weights and residual branches
    # divide attention scores by (layer index + 1), in addition to the usual scaling
    scale_attn_by_inverse_layer_idx: bool = True
    # Optimization
    warmup_steps: int = 300  # steps to the peak of the learning rate; then it falls linearly to 0
    learning_rate: float = 6e-4  # peak of the learning rate
    beta1: float = 0.9  # AdamW's decay rate of the first moment
    beta2: float = 0.999  # AdamW's decay rate of the second moment
    weight_decay: float = 0.1  # AdamW's weight decay, on matrices and embeddings only
    grad_clip: float = 1.0  # largest norm of the gradient (0: no clipping)
    # precision of matrix products (auto: bfloat16 or else float16 on cuda, float32 elsewhere)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 41  # of dropout, of sample.py, and of what has no seed of its own below
    init_seed: int = -1  # seed of the initial weights (-1: as seed)
    order_seed: int = -1  # seed of the order of blocks (-1: as seed)
    # Checkpoints and validation
    checkpoint_interval: int = 100  # steps between checkpoints
    # more checkpoints: steps such as 0,1,2,4 (0: the initial model); log2 (0, 1, 2, 4, ... up to
    # checkpoint_interval); or babylm (after 1M to 10M, 20M to 100M and 200M to 1,000M words)
    extra_checkpoints: str = ""
    eval_blocks: int = 512  # number of validation blocks to use (0: all)

    @property
    def seed_of_weights(self) -> int:
        """The seed of the initial weights."""
        return self.seed if self.init_seed < 0 else self.init_seed

    @property
    def seed_of_order(self) -> int:
        """The seed of the order of blocks."""
        return self.seed if self.order_seed < 0 else self.order_seed

    @property
    def blocks_per_step(self) -> int:
        """Blocks of one optimizer step, of all processes together."""
        return self.tokens_per_step // self.block_size


@dataclass(frozen=True)
class Settings(Recipe):
    """The settings of all commands. Raises UserError for an invalid value.

    Whether the values fit together is for `check`: each command looks only at those that it reads.
    """

    data_dir: str = ""  # folder of the token files (if empty: data/LANGUAGE)
    out_dir: str = ""  # folder of the run (if empty: out/LANGUAGE, plus _no_pos without positions)
    # prepare.py
    corpus: str = "babylm"  # babylm, babylm_10M, sotu, hf:NAME (a dataset), or a folder of texts
    sotu_years: str = "1950-2000"  # for sotu: first and last year of the speeches
    text_column: str = "text"  # for hf:NAME: the column that holds the text
    # sentencex: find sentences within each line; line: every line is one sentence
    segmenter: Literal["sentencex", "line"] = "sentencex"
    # error: stop at bytes that are not UTF-8; replace: replace them by U+FFFD and count them
    invalid_utf8: Literal["error", "replace"] = "error"
    # for the Hop languages: a folder of sentences in CoNLL-U, in place of a corpus and spaCy
    annotations: str = ""
    # threads that split and encode sentences, and processes that annotate them (0: one per core)
    workers: int = 0
    data_seed: int = 41  # seed of the order of sentences in the training and validation data
    # train.py
    verify_data: bool = False  # compare the token files with the hashes in meta.json first
    batch_size: int = 8  # number of blocks in a micro-batch (per process)
    # how the processes divide a step: equal, auto (by their speed, measured at the start), or
    # fixed shares such as 2,3
    shares: str = "equal"
    eval_interval: int = 100  # steps between validations (there is also one at each checkpoint)
    log_interval: int = 1  # steps between log lines
    device: str = "auto"  # auto (cuda if available, else mps, else cpu), cuda, cuda:N, mps or cpu
    compile: bool = True  # compile the model with torch.compile
    # where else the log goes: Weights & Biases, or Trackio, which is local (pip install NAME)
    tracker: Literal["none", "wandb", "trackio"] = "none"
    tracker_project: str = "impossible-gpt2"  # name of the tracker's project
    # batch_viewer.py
    step: int = 1  # the step to show, from 1 to max_steps
    contains: str = ""  # find the steps that read this text, instead of showing one step
    # convert_to_hf.py
    push_to_hub: str = ""  # publish the exports as revisions of this repo: USER/NAME
    private: bool = False  # make the repo (or those of a study) private
    overwrite: bool = False  # replace revisions on the Hub even if they are not of this run
    dry_run: bool = False  # export, and show what would be published; or show a study's plan
    model_license: str = "mit"  # licence of the published model, by the Hub's name for it
    # eval and sample.py
    revisions: str = ""  # checkpoints by name or step, with commas (if empty: every checkpoint-N)
    # models in place of the run in out_dir, separated by commas: exported folders, repos on the
    # Hub (USER/NAME), and `run` for the run itself
    model: str = ""
    test_language: str = ""  # evaluate on this language's test split (if empty: the model's own)
    # folder of the test data (if empty: data_dir, or data/TEST_LANGUAGE for another language)
    test_data_dir: str = ""
    sentences_per_genre: int = 1000  # sentences to sample from each genre (all if it has fewer)
    sample_seed: int = 0  # seed for sampling the test sentences
    drop_duplicates: bool = False  # leave out test sentences whose text was sampled before
    sentences: bool = False  # also write a table of all sentences and their perplexities
    surprisals: bool = False  # also write a table of the surprisal of every token, in bits
    # also measure how predictable each test language is by itself, by n-gram models
    entropies: bool = False
    # instead of perplexities, the surprisal of the first marker of sentences in a Hop language
    markers: bool = False
    # instead of perplexities, minimal pairs: `blimp` (from the Hub), or jsonl files with
    # sentence_good and sentence_bad (one file, or a folder of them)
    pairs: str = ""
    # encode the sentences of minimal pairs after a space, as lm-evaluation-harness does
    leading_space: bool = False
    # instead of perplexities, the surprisal of these sentences: a csv or jsonl file with item,
    # condition and text, and optionally marker_place, perturbed, region and occurrence
    stimuli: str = ""
    # folder for joint results of several runs, and for results of exported models, of models from
    # the Hub and of runs whose own folder is read-only
    eval_dir: str = "out/evaluation"
    checkpoint: str = ""  # checkpoints by name or step, with commas, or `all` (if empty: the last)
    prompt: str = "He clean"  # text to continue
    samples: int = 1  # number of continuations to generate with each checkpoint
    new_tokens: int = 20  # number of tokens to generate for each continuation
    temperature: float = 1.0  # below 1: prefer likely tokens; 0: always the most likely token
    top_k: int = 200  # sample only from this many of the most likely tokens (0: from all)
    undo: bool = False  # also print each continuation with the perturbation undone

    def __post_init__(self) -> None:
        variant = "" if self.position_embeddings else "_no_pos"
        folders = {"data_dir": f"data/{self.language}", "out_dir": f"out/{self.language}{variant}"}
        for name, folder in folders.items():
            object.__setattr__(self, name, getattr(self, name) or folder)
        for name, kind in types(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, str):
                self.require(is_utf8(value), name, "text in UTF-8 (rename the file)")
            if isinstance(value, float):
                self.require(math.isfinite(value), name, "a finite number")
            if typing.get_origin(kind) is Literal:
                self.require(value in kind.__args__, name, f"one of {', '.join(kind.__args__)}")
        for least, names in _LEAST.items():
            for name in names.split():
                self.require(getattr(self, name) >= least, name, f"{least} or more")
        for name in ["seed", "data_seed", "sample_seed", "init_seed", "order_seed"]:
            self.require(getattr(self, name) <= LARGEST_SEED, name, f"at most {LARGEST_SEED}")
        for name in ["dropout", "beta1", "beta2"]:
            self.require(0 <= getattr(self, name) < 1, name, "0 or more, and less than 1")
        self.require(self.learning_rate > 0, "learning_rate", "more than 0")
        self.require(self.tokens_per_step <= 2**32, "tokens_per_step", f"at most {2**32}")
        shares = re.fullmatch(rf"equal|auto|{_POSITIVE}(,{_POSITIVE})*", self.shares)
        self.require(shares, "shares", "equal, auto, or positive numbers such as 2,3")
        device = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device)
        self.require(device, "device", "auto, cpu, cuda, cuda:N or mps")

    def require(self, holds: Any, name: str, expected: str) -> None:
        """Raise UserError unless a condition on the value of a setting holds."""
        if not holds:
            value = getattr(self, name)
            value = list(value) if isinstance(value, tuple) else value  # as in a config file
            raise UserError(f"{name} = {value!r} is invalid. It must be {expected}.")

    def check(self, command: str) -> None:
        """Raise UserError if settings that a command reads do not fit together."""
        if command in ("train.py", "batch_viewer.py"):
            near = max(1, self.blocks_per_step) * self.block_size
            multiple = f"a multiple of block_size = {self.block_size}, such as {near}"
            self.require(self.tokens_per_step % self.block_size == 0, "tokens_per_step", multiple)
        if command == "train.py":
            self._check_training()
        if command == "batch_viewer.py":
            within = f"a step of the run, from 1 to max_steps, which is {self.max_steps}"
            self.require(1 <= self.step <= self.max_steps, "step", within)
        if command == "eval.py":
            self._check_measures()
        if command == "convert_to_hf.py":
            for name in ("private", "overwrite", "dry_run"):
                fits = self.push_to_hub or not getattr(self, name)
                self.require(fits, name, "left out, or combined with --push_to_hub=USER/NAME")

    def _check_training(self) -> None:
        s, check = self, self.require
        within = f"at most max_steps, which is {s.max_steps}"
        check(s.warmup_steps <= s.max_steps, "warmup_steps", within)
        near = next(d for d in range(min(s.n_head, s.n_embd), 0, -1) if s.n_embd % d == 0)
        check(
            s.n_embd % s.n_head == 0, "n_head", f"a divisor of n_embd = {s.n_embd}, such as {near}"
        )
        divisor = f"a divisor of the {s.blocks_per_step} blocks of a step"
        check(s.blocks_per_step % s.batch_size == 0, "batch_size", divisor)
        steps = re.fullmatch(r"|log2|babylm|\d+(,\d+)*", s.extra_checkpoints)
        last = max(map(int, re.findall(r"\b\d+\b", s.extra_checkpoints)), default=0)
        expected = f"log2, babylm, or steps from 0 to {s.max_steps} such as 0,1,2,4"
        check(steps and last <= s.max_steps, "extra_checkpoints", expected)

    def _check_measures(self) -> None:
        measures = [name for name in ("pairs", "markers", "stimuli") if getattr(self, name)]
        for name in measures[1:]:
            self.require(False, name, f"left out, as {measures[0]} is set: one measure at a time")
        for name in ("sentences", "surprisals", "entropies") if measures else ():
            self.require(not getattr(self, name), name, f"left out, as {measures[0]} is set")
        fits = self.pairs or not self.leading_space
        self.require(fits, "leading_space", "left out, or combined with --pairs=")

    def read_by(self, command: str) -> dict[str, Any]:
        """The settings that a command reads, by name."""
        return {name: getattr(self, name) for name in READS[command]}


# The smallest value of each number.
_LEAST = {
    2: "block_size",  # a token is predicted from another
    1: "n_layer n_head n_embd tokens_per_step batch_size max_steps checkpoint_interval "
    "eval_interval log_interval sentences_per_genre samples new_tokens",
    0: "seed data_seed sample_seed workers warmup_steps eval_blocks weight_decay grad_clip "
    "temperature top_k",
    -1: "init_seed order_seed",
}
_RUN = "language position_embeddings data_dir out_dir"
RECIPE = [field.name for field in dataclasses.fields(Recipe)]
# The settings that each command reads.
READS = {
    "prepare.py": f"{_RUN} corpus sotu_years text_column segmenter invalid_utf8 annotations "
    "workers data_seed",
    "train.py": f"{' '.join(RECIPE)} data_dir out_dir verify_data batch_size shares eval_interval "
    "log_interval device compile tracker tracker_project",
    "batch_viewer.py": f"{_RUN} seed order_seed block_size tokens_per_step max_steps step contains",
    "convert_to_hf.py": f"{_RUN} push_to_hub private overwrite dry_run model_license",
    "eval.py": f"{_RUN} model device revisions test_language test_data_dir sentences_per_genre "
    "sample_seed drop_duplicates sentences surprisals entropies markers pairs leading_space "
    "stimuli eval_dir",
    "sample.py": f"{_RUN} model device checkpoint prompt samples new_tokens temperature top_k "
    "seed undo",
}
READS = {command: names.split() for command, names in READS.items()}


def types(kind: type) -> dict[str, Any]:
    """The type of each setting: int, float, bool, str, a Literal of strings, or a tuple."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


# From the folder of a run, the settings by which it is found again.
OfRun = Callable[[Path], dict[str, Any]]


def run_command(
    command: str, main: Callable[..., None], usage: str, of_run: OfRun | None = None
) -> None:
    """Run `main` with the settings in sys.argv, for a command that takes one config file.

    usage: the command's docstring, for --help. of_run: see `load`.
    """

    def call() -> None:
        runs = load(command, sys.argv[1:], of_run, usage)
        if len(runs) > 1:
            raise UserError(f"{command} takes only one config file, but several were given.")
        main(runs[0])

    guarded(call)


def load(
    command: str, arguments: list[str], of_run: OfRun | None = None, usage: str = ""
) -> list[Settings]:
    """The settings of a command, for each config file: [CONFIG.py ...] [--name=value ...].

    Without a config file, config/partial_reverse.py is read; but if --out_dir= names a run, the
    settings that `of_run` returns for it are used. Raises UserError.
    """
    configs, values = parse(command, READS[command], arguments, Settings, usage)
    if of_run and not configs and values.get("out_dir"):
        bases = [of_run(Path(values["out_dir"]))]
    else:
        bases = [read_config(path) for path in configs or [DEFAULT_CONFIG]]
    runs = [Settings(**base | values) for base in bases]
    for settings in runs:
        settings.check(command)
    return runs


def parse(
    command: str,
    names: list[str],
    arguments: list[str],
    kind: type,
    usage: str,
    others: Iterable[str] = (),
) -> tuple[list[Path], dict[str, Any]]:
    """The config files and the options among the arguments of a command.

    names: the settings that it reads, fields of `kind`. others: further settings that it accepts,
    without help. Raises UserError for any other option.
    """
    parser = argparse.ArgumentParser(
        command,
        description=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG.py")
    texts = {name: f"{text} [{getattr(kind, name)}]" for name, text in explanations(kind).items()}
    for name in (*names, *others):
        text = texts[name].replace("%", "%%") if name in names else argparse.SUPPRESS
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar="VALUE", help=text)
    switches = [f"--{name}" for name, expected in types(kind).items() if expected is bool]
    try:
        arguments = [f"{a}=true" if a in switches else a for a in arguments]
        given, unread = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}. Write --name=VALUE")
    for option in unread:
        name = option.removeprefix("--").partition("=")[0]
        if readers := [script for script, read in READS.items() if name in read]:
            expected = f"it is a setting of {', '.join(readers)}"
            raise UserError(f"{command} has no setting {name}; {expected}.")
        raise UserError(f"{option}: {unknown('setting', name, (*names, *others))}")
    values = vars(given)
    configs = values.pop("configs")
    return configs, {name: _parsed(kind, name, text) for name, text in values.items()}


def explanations(kind: type) -> dict[str, str]:
    """What each setting means, by name: the comment beside or above it in the source."""
    texts: dict[str, str] = {}
    comments: list[str] = []
    for table in reversed(kind.__mro__[:-1]):
        for line in inspect.getsource(table).splitlines():
            if match := re.match(r"    (\w+): .* = .*?(?:  # (.*))?$", line):
                texts[match[1]] = match[2] or " ".join(comments)
            comment = re.match(r"    # (.*)", line)
            comments = [*comments, comment[1]] if comment else []
    return texts


def _parsed(kind: type, name: str, text: str) -> Any:
    """The value of a setting from the command line. Raises UserError if it has another type."""
    expected, value = types(kind)[name], text
    if typing.get_origin(expected) is tuple:
        value = [part.strip() for part in text.split(",") if part.strip()]
        if expected.__args__[0] is int and all(part.isdecimal() for part in value):
            value = list(map(int, value))
    elif expected in (int, float, bool):
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text.capitalize())
    return _typed(kind, name, value, f"--{name}={text}")


def _typed(kind: type, name: str, value: Any, where: str) -> Any:
    """A value as the type of its setting (an int will do for a float). Raises UserError."""
    if name not in types(kind):
        raise UserError(f"{where}: {unknown('setting', name, types(kind))}")
    expected = types(kind)[name]
    if typing.get_origin(expected) is tuple:
        item = expected.__args__[0]
        if isinstance(value, list) and all(type(part) is item for part in value):
            return tuple(value)
        items = "strings" if item is str else "whole numbers"
        raise UserError(f"{where}: {name} must be a list of {items}, not {value!r}.")
    expected = str if typing.get_origin(expected) is Literal else expected
    if expected is float and type(value) is int:
        with suppress(OverflowError):
            value = float(value)
    if type(value) is not expected:
        raise UserError(f"{where}: {name} must be {_EXPECTED[expected]}, not {value!r}.")
    return value


def read_config(path: Path, kind: type = Settings) -> dict[str, Any]:
    """The assignments of a config file, by name. The file is parsed, not executed.

    Raises UserError, with the line number, for anything but a literal value of a known setting.
    """
    path = find_config(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))  # some editors begin with a BOM
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not valid Python: {error}. Write lines like: n_layer = 12")
    values: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        where = f"{path}, line {statement.lineno}"
        try:
            (target,) = statement.targets  # type: ignore[attr-defined]
            name, value = target.id, ast.literal_eval(statement.value)
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                f"{where}: {ast.unparse(statement)!r} is not a plain assignment. A config file "
                "contains only lines like: n_layer = 12 (a number, True, False, a string or a list)"
            )
        if name in values:
            raise UserError(f"{where}: {name} is set twice in this file. Keep one of the two.")
        values[name] = _typed(kind, name, value, where)
    return values


def find_config(path: Path) -> Path:
    """The file of that name in the current folder or, failing that, in the project folder."""
    for place in (path, CONFIG_DIR.parent / path):
        if place.is_file():
            return place
    raise unknown("config file", str(path), (f"config/{p.name}" for p in CONFIG_DIR.glob("*.py")))


def guarded(call: Callable[[], Any]) -> None:
    """Call a function as a complete command."""
    _protect_output()
    try:
        call()
    except KeyboardInterrupt:
        _fail("interrupted. Files on disk are kept; run the same command again to resume.")
    except Exception as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            # Most mistakes occur in every process: the first of a machine reports them, and
            # torchrun ends the others meanwhile. A mistake of one process alone comes after it.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # train.py would only take note of it
            time.sleep(_WAIT_FOR_FIRST)
        if isinstance(error, UserError):
            _fail(str(error))
        if isinstance(error, OSError) and error.filename and error.strerror:
            _fail(
                f"{error.filename}: {error.strerror}. Free some room, or choose another folder "
                "with --data_dir= or --out_dir="
            )
        traceback.print_exc()
        _fail(
            "unexpected error (see above). The saved files are intact: once the cause is "
            "removed, run the same command again to resume."
        )


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    if "LOCAL_RANK" in os.environ:
        # At once: unwinding under a process group can hang (see distributed.disconnect).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)


class _Unfailing:
    """A text stream that discards what cannot be written: files are the record."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except (OSError, ValueError):
            # What is still in the buffer, also at Python's end, goes to nothing.
            with suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())


def _protect_output() -> None:
    """Keep a closed pipe, a full disk or a limited encoding from ending this command."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: >&-
            # Nothing else may get its number: C code would write into that file.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _Unfailing(stream))
