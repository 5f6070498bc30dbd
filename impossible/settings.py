"""All settings in one table, config files, the command line, and the errors of a command.

A value on the command line takes precedence over one in the config file, which takes precedence
over the default (the published PartialReverse). All commands can share one config file; each reads
only its own settings. A config file contains literal assignments (`n_layer = 12`) and is
parsed, never executed.

In the table, the comment beside or above a setting is its help on the command line, the type says
which values are valid, and the heading of a section names the commands that read its settings.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import os
import re
import shlex
import signal
import sys
import textwrap
import time
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

ROOT = Path(__file__).parent.parent
DEFAULT_CONFIG = ROOT / "config" / "partial_reverse.py"
WORDS = "_words"  # the end of the name of a language whose unit is words
COMMANDS = ("prepare.py", "train.py", "batch_viewer.py", "convert_to_hf.py", "eval.py", "sample.py")
LARGEST_SEED = 2**32 - 1  # the largest that both numpy's and torch's generators take
_WAIT_FOR_FIRST = 5.0  # seconds


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


class Rule(NamedTuple):
    """A condition on the value of a setting, and its description for error messages."""

    holds: Callable[[Any], Any]
    expected: str


def at_least(least: int, most: float = math.inf) -> Rule:
    """The rule that a number is between `least` and `most`."""
    limit = f", at most {most}" if most < math.inf else ""
    return Rule(lambda number: least <= number <= most, f"{least} or more{limit}")


def matches(pattern: str, expected: str) -> Rule:
    """The rule that a whole text matches a regular expression."""
    return Rule(lambda text: re.fullmatch(pattern, text), expected)


Count = Annotated[int, at_least(1)]
Size = Annotated[int, at_least(0)]
Amount = Annotated[float, at_least(0)]
Rate = Annotated[float, Rule(lambda rate: 0 <= rate < 1, "0 or more, and less than 1")]
Seed = Annotated[int, at_least(0, LARGEST_SEED)]
OwnSeed = Annotated[int, at_least(-1, LARGEST_SEED)]
_DEVICE = matches(r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, cuda, cuda:N or mps")
_TWO_NAMES = matches("[^,]+,[^,]+", "two names with a comma between them")


@dataclass(frozen=True)
class Recipe:
    """The settings that the weights depend on: they cannot be changed when a run is resumed."""

    # read by all
    language: str = "partial_reverse"  # name of a language in the table of perturb.py
    position_embeddings: bool = True  # False: the variant without positional encodings
    # read by train.py, batch_viewer.py
    block_size: Annotated[int, at_least(2)] = 1024  # tokens in a block of data: the context length
    # number of tokens in one optimizer step, over all processes
    tokens_per_step: Annotated[int, at_least(1, 2**32)] = 524288
    max_steps: Count = 3000  # total number of optimizer steps
    # read by train.py
    n_layer: Count = 12  # number of transformer blocks
    n_head: Count = 12  # attention heads in each transformer block
    n_embd: Count = 768  # width of the model
    dropout: Rate = 0.1  # dropout rate of embeddings, attention weights and residual branches
    # divide attention scores by (layer index + 1), in addition to the usual scaling
    scale_attn_by_inverse_layer_idx: bool = True
    warmup_steps: Size = 300  # steps to the peak of the learning rate; then it falls linearly to 0
    learning_rate: Annotated[float, Rule(lambda rate: rate > 0, "more than 0")] = 6e-4  # peak value
    beta1: Rate = 0.9  # AdamW's decay rate of the first moment
    beta2: Rate = 0.999  # AdamW's decay rate of the second moment
    weight_decay: Amount = 0.1  # AdamW's weight decay, on matrices and embeddings only
    grad_clip: Amount = 1.0  # largest norm of the gradient (0: no clipping)
    # precision of matrix products (auto: bfloat16 on cuda, float16 on old GPUs, float32 elsewhere)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # read by train.py, batch_viewer.py, sample.py
    seed: Seed = 41  # seed of dropout and of sample.py, and default of init_seed and order_seed
    # read by train.py
    init_seed: OwnSeed = -1  # seed of the initial weights (-1: the value of seed)
    # read by train.py, batch_viewer.py
    order_seed: OwnSeed = -1  # seed of the order in which blocks are read (-1: the value of seed)
    # read by train.py
    checkpoint_interval: Count = 100  # steps between checkpoints
    # more checkpoints: steps such as 0,1,2,4 (0: the initial model); log2 (0, 1, 2, 4, ... up to
    # checkpoint_interval); or babylm (after 1M, 2M ... 10M, 20M ... 100M, 200M ... 1,000M words)
    extra_checkpoints: str = ""
    eval_blocks: Size = 512  # number of validation blocks to use (0: all)

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
        """The number of blocks in one optimizer step, over all processes."""
        return self.tokens_per_step // self.block_size


@dataclass(frozen=True)
class Settings(Recipe):
    """The settings of all commands. Raises UserError for an invalid value.

    `check` tests whether the values that one command reads fit together.
    """

    # read by all
    # what a language moves: tokens or words (words: partial_reverse means partial_reverse_words)
    unit: Literal["tokens", "words"] = "tokens"
    data_dir: str = ""  # folder of the token files (if empty: data/LANGUAGE)
    out_dir: str = ""  # folder of the run (if empty: out/LANGUAGE or out/LANGUAGE_no_pos)
    # read by prepare.py
    # babylm, babylm_10M, babybabel:CODE (45 languages), sotu (State of the Union addresses),
    # speeches:tr (Turkish speeches), hf:NAME (a dataset on the Hub), or a folder of texts
    corpus: str = "babylm"
    text_language: str = ""  # natural language, an ISO 639 code (if empty: the corpus's, else en)
    sotu_years: str = "1950-2000"  # for sotu: first and last year of the speeches
    text_column: str = "text"  # for hf:NAME: the column that holds the text
    genre_column: str = ""  # for hf:NAME: the column that holds the genre (if empty: one genre)
    corpus_limit: Size = 0  # for hf:NAME: bytes of text drawn at random from each split (0: all)
    # sentencex: find sentences within each line; line: every line is one sentence
    segmenter: Literal["sentencex", "line"] = "sentencex"
    # gpt2, or train (learn one from the training text), or a folder with vocab.json and merges.txt
    tokenizer: str = "gpt2"
    vocab_size: Annotated[int, at_least(257, 65535)] = 16384  # bytes and merges of a new tokenizer
    # error: stop at bytes that are not UTF-8; replace: replace them with U+FFFD and count them
    invalid_utf8: Literal["error", "replace"] = "error"
    # for the Hop languages: a folder of CoNLL-U files, used instead of a corpus and spaCy
    annotations: str = ""
    # threads that find and encode sentences, and processes that annotate them (0: one per core)
    workers: Size = 0
    data_seed: Seed = 41  # seed of the sentence order in the training and validation data
    # read by train.py
    batch_size: Count = 8  # number of blocks in a micro-batch (per process)
    eval_interval: Count = 100  # steps between validations (there is also one at each checkpoint)
    log_interval: Count = 1  # steps between log lines
    # read by train.py, eval.py, sample.py
    # auto (cuda if available, else mps, else cpu), cuda, cuda:N, mps or cpu
    device: Annotated[str, _DEVICE] = "auto"
    # read by train.py
    compile: bool = True  # compile the model with torch.compile
    # attention kernel: flash, efficient, math, cudnn, or auto (flash, else efficient, else math)
    attention: Literal["auto", "flash", "efficient", "math", "cudnn"] = "auto"
    # also log to wandb (Weights & Biases) or trackio (local); first type: pip install NAME
    tracker: Literal["none", "wandb", "trackio"] = "none"
    tracker_project: str = "impossible-gpt2"  # name of the tracker's project
    # read by batch_viewer.py
    step: int = 1  # the step to show, from 1 to max_steps
    contains: str = ""  # find the steps that read this text, instead of showing one step
    # read by convert_to_hf.py
    push_to_hub: str = ""  # publish the exports as revisions of this repo: USER/NAME
    private: bool = False  # create the repo (or all repos of a study) as private
    overwrite: bool = False  # replace revisions that were changed by hand or are of another run
    dry_run: bool = False  # export, but only show what would be published; or show a study's plan
    model_license: str = "mit"  # the Hub's name for the licence of the published model
    # read by eval.py
    revisions: str = ""  # checkpoints by name or step, comma-separated (if empty: all checkpoint-N)
    # read by eval.py, sample.py
    # models to use instead of the run in out_dir, comma-separated: folders of exports, repos on the
    # Hub (USER/NAME), or `run` for the run itself
    model: str = ""
    # read by eval.py
    test_language: str = ""  # evaluate on this language's test split (if empty: the model's own)
    # folder of the test data (if empty: data_dir, or data/TEST_LANGUAGE for another language)
    test_data_dir: str = ""
    sentences_per_genre: Count = 1000  # sentences to sample from each genre (all if it has fewer)
    sample_seed: Seed = 0  # seed for sampling the test sentences
    drop_duplicates: bool = False  # leave out sentences whose text occurs earlier in the sample
    sentences: bool = False  # also write a table of all sentences and their perplexities
    surprisals: bool = False  # also write a table of the surprisal of every token, in bits
    entropies: bool = False  # also measure how predictable each language is for n-gram models
    # instead of perplexities, measure surprisal at the first marker of a sentence (Hop languages)
    markers: bool = False
    # instead of perplexities, run interchange interventions (NoHop, TokenHop and WordHop only)
    interventions: bool = False
    # for interventions: find pairs by the published pattern, which misses token ids with a digit 0
    published_pattern: bool = False
    # instead of perplexities, score minimal pairs: `blimp`, multiblimp:CODE or hf:NAME:CONFIG (all
    # from the Hub), or jsonl files (one file, or a folder of them)
    pairs: str = ""
    # for pairs: the columns of the grammatical and of the ungrammatical sentence
    pairs_columns: Annotated[str, _TWO_NAMES] = "sentence_good,sentence_bad"
    leading_space: bool = False  # put a space before pairs, as lm-evaluation-harness does for BLiMP
    # instead of perplexities, measure the surprisal of sentences in a csv or jsonl file with the
    # columns item, condition and text, and optionally marker_place, perturbed, region, occurrence
    stimuli: str = ""
    # folder for joint results of several runs, and for results of exported models, of models on
    # the Hub and of runs in a read-only folder
    eval_dir: str = "out/evaluation"
    # read by sample.py
    checkpoint: str = ""  # checkpoints by name or step, comma-separated, or `all` (if empty: last)
    prompt: str = ""  # text to continue (if empty: a new sentence)
    samples: Count = 1  # number of continuations to generate with each checkpoint
    new_tokens: Count = 20  # number of tokens to generate for each continuation
    temperature: Amount = 1.0  # below 1: prefer likely tokens; 0: always the most likely token
    top_k: Size = 200  # number of most likely tokens to sample from (0: all)
    undo: bool = False  # also print each continuation with the perturbation undone

    def __post_init__(self) -> None:
        if self.unit == "words" and not self.language.endswith(WORDS):
            object.__setattr__(self, "language", self.language + WORDS)
        if self.unit == "tokens" and self.language.endswith(WORDS):
            object.__setattr__(self, "unit", "words")
        variant = "" if self.position_embeddings else "_no_pos"
        folders = {"data_dir": f"data/{self.language}", "out_dir": f"out/{self.language}{variant}"}
        for name, folder in folders.items():
            object.__setattr__(self, name, getattr(self, name) or folder)
        for name, kind in typing.get_type_hints(type(self), include_extras=True).items():
            for rule in _rules(kind):
                self.require(rule.holds(getattr(self, name)), name, rule.expected)

    def require(self, holds: Any, name: str, expected: str) -> None:
        """Raise UserError unless a condition on the value of a setting holds."""
        if not holds:
            value = getattr(self, name)
            value = list(value) if isinstance(value, tuple) else value  # as in a config file
            raise UserError(f"{name} = {value!r} is invalid. It must be {expected}.")

    def check(self, command: str) -> None:
        """Raise UserError if settings that a command reads do not fit together."""
        s, require = self, self.require
        if command == "prepare.py":
            for name in ("genre_column", "corpus_limit"):
                fits = s.corpus.startswith("hf:") or not getattr(s, name)
                require(fits, name, "left out, or combined with --corpus=hf:NAME")
        if command in ("train.py", "batch_viewer.py"):
            near = max(1, s.blocks_per_step) * s.block_size
            multiple = f"a multiple of block_size = {s.block_size}, such as {near}"
            require(s.tokens_per_step % s.block_size == 0, "tokens_per_step", multiple)
        if command == "train.py":
            self._check_training()
        if command == "batch_viewer.py":
            within = f"a step of the run, from 1 to max_steps, which is {s.max_steps}"
            require(1 <= s.step <= s.max_steps, "step", within)
        if command == "convert_to_hf.py":
            for name in ("private", "overwrite", "dry_run"):
                fits = s.push_to_hub or not getattr(s, name)
                require(fits, name, "left out, or combined with --push_to_hub=USER/NAME")
        if command == "eval.py":
            names = ("pairs", "markers", "interventions", "stimuli")
            measures = [name for name in names if getattr(s, name)]
            others = (*measures[1:], "sentences", "surprisals", "entropies") if measures else ()
            for name in others:
                require(not getattr(s, name), name, f"left out, as {measures[0]} is set")
            options = {"leading_space": "pairs=", "pairs_columns": "pairs="}
            for name, of in (options | {"published_pattern": "interventions"}).items():
                fits = getattr(s, of.strip("=")) or getattr(s, name) == getattr(Settings, name)
                require(fits, name, f"left out, or combined with --{of}")

    def _check_training(self) -> None:
        s, require = self, self.require
        within = f"at most max_steps, which is {s.max_steps}"
        require(s.warmup_steps <= s.max_steps, "warmup_steps", within)
        near = next(d for d in range(min(s.n_head, s.n_embd), 0, -1) if s.n_embd % d == 0)
        divisor = f"a divisor of n_embd = {s.n_embd}, such as {near}"
        require(s.n_embd % s.n_head == 0, "n_head", divisor)
        divisor = f"a divisor of the {s.blocks_per_step} blocks of a step"
        require(s.blocks_per_step % s.batch_size == 0, "batch_size", divisor)
        steps = re.fullmatch(r"|log2|babylm|\d+(,\d+)*", s.extra_checkpoints)
        last = max(map(int, re.findall(r"\b\d+\b", s.extra_checkpoints)), default=0)
        expected = f"log2, babylm, or steps from 0 to {s.max_steps} such as 0,1,2,4"
        require(steps and last <= s.max_steps, "extra_checkpoints", expected)

    def read_by(self, command: str) -> dict[str, Any]:
        """The settings that a command reads, by name."""
        return {name: getattr(self, name) for name in READS[command]}


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _rules(kind: Any) -> list[Rule]:
    """The rules for the values of a setting with this type."""
    if typing.get_origin(kind) is Annotated:
        return [*_rules(kind.__origin__), *kind.__metadata__]
    if typing.get_origin(kind) is Literal:
        return [Rule(kind.__args__.__contains__, f"one of {', '.join(kind.__args__)}")]
    if kind is float:
        return [Rule(math.isfinite, "a finite number")]
    return [Rule(is_utf8, "text in UTF-8 (rename the file)")] if kind is str else []


# The type of each setting of a table: int, float, bool, str, a Literal of strings, or a tuple.
types = typing.get_type_hints


def _rows(kind: type) -> Iterator[tuple[str, str, str]]:
    """Yield each setting's name, meaning and reading commands, from the source of its table."""
    for table in reversed(kind.__mro__[:-1]):
        comments, readers = [], ""
        for line in inspect.getsource(table).splitlines():
            if heading := re.match(r"    # read by (.*)", line):
                readers = heading[1]
            elif comment := re.match(r"    # (.*)", line):
                comments.append(comment[1])
            elif field := re.match(r"    (\w+): .* = .*?(?:  # (.*))?$", line):
                yield field[1], field[2] or " ".join(comments), readers
                comments = []


def explanations(kind: type) -> dict[str, str]:
    """The meaning of each setting, by name: the comment beside or above it in the source."""
    return {name: meaning for name, meaning, _ in _rows(kind)}


RECIPE = [field.name for field in dataclasses.fields(Recipe)]
_READERS = {name: readers for name, _, readers in _rows(Settings)}
# The settings that each command reads.
READS = {
    command: [name for name, names in _READERS.items() if {"all", command} & set(names.split(", "))]
    for command in COMMANDS
}
OfRun = Callable[[Path], dict[str, Any]]  # from the folder of a run to its settings


def run_command(
    command: str, main: Callable[[Settings], None], usage: str, of_run: OfRun | None = None
) -> None:
    """Run `main` with the settings in sys.argv, for a command that takes one config file."""

    def call() -> None:
        settings, *more = load(command, sys.argv[1:], of_run, usage)
        if more:
            raise UserError(f"{command} takes only one config file, but several were given.")
        main(settings)

    guarded(call)


def load(
    command: str, arguments: list[str], of_run: OfRun | None = None, usage: str = ""
) -> list[Settings]:
    """The settings of a command, for each config file: [CONFIG.py ...] [--name=value ...].

    Without a config file, config/partial_reverse.py is read; but if --out_dir= names a run, the
    settings that `of_run` returns for it are used. usage: the command's docstring, for --help.
    Raises UserError for invalid arguments.
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
    without help. Raises UserError for any other option. --help prints the help and exits.
    """
    if {"-h", "--help"} & set(arguments):
        _print_help(command, names, kind, usage)
        sys.exit()
    configs: list[Path] = []
    values: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            configs.append(Path(word))
            continue
        name, equals, text = word.removeprefix("--").partition("=")
        if name not in (*names, *others):
            if readers := _READERS.get(name):
                raise UserError(f"{command} has no setting {name}; it is a setting of {readers}.")
            raise UserError(f"{word}: {unknown('setting', name, (*names, *others))}")
        if not equals:
            text = "true" if types(kind)[name] is bool else next(words, "--")
            if text.startswith("--"):
                raise UserError(f"--{name} has no value. Write --{name}=VALUE")
        values[name] = _typed(kind, name, _literal(types(kind)[name], text), f"--{name}={text}")
    return configs, values


def _print_help(command: str, names: list[str], kind: type, usage: str | None) -> None:
    form = {"prepare.py": "[CONFIG.py ...]", "eval.py": "[CONFIG.py ...]", "study.py": "CONFIG.py"}
    print(f"usage: {command} {form.get(command, '[CONFIG.py]')} [--name=VALUE ...]")
    print(f"\n{usage or ''}\nsettings:")
    meanings = explanations(kind)
    for name in names:
        default = getattr(kind, name)
        text = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        print(f"  --{name}={shlex.quote(text) if text else ''}")
        lines = textwrap.wrap(meanings[name], 82, break_on_hyphens=False)
        print(textwrap.indent("\n".join(lines), " " * 8))


def _literal(expected: Any, text: str) -> Any:
    """The Python value of a text on the command line; the text itself if it is not a literal."""
    if typing.get_origin(expected) is tuple:
        items = [item.strip() for item in text.split(",") if item.strip()]
        return [_literal(expected.__args__[0], item) for item in items]
    if expected in (int, float, bool):
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(text.capitalize())
    return text


_EXPECTED = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of strings",
}


def _typed(kind: type, name: str, value: Any, where: str) -> Any:
    """Convert a value to the type of its setting. Raises UserError if it has another type."""
    if name not in types(kind):
        raise UserError(f"{where}: {unknown('setting', name, types(kind))}")
    expected = types(kind)[name]
    expected = str if typing.get_origin(expected) is Literal else expected
    if expected is float and type(value) is int:
        with suppress(OverflowError):
            value = float(value)
    is_list = typing.get_origin(expected) is tuple
    items = value if type(value) is list else [value]
    item = expected.__args__[0] if is_list else expected
    if is_list != (type(value) is list) or any(type(part) is not item for part in items):
        raise UserError(f"{where}: {name} must be {_EXPECTED[expected]}, not {value!r}.")
    return tuple(value) if is_list else value


def read_config(path: Path, kind: type = Settings) -> dict[str, Any]:
    """The assignments of a config file, by name. The file is parsed, not executed.

    Raises UserError, with the line number, for anything but a literal value of a known setting.
    """
    path = find_config(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))  # some editors write a BOM first
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
    """The path of a config file, in the current folder or else in the project folder."""
    for place in (path, ROOT / path):
        if place.is_file():
            return place
    raise unknown("config file", str(path), (f"config/{p.name}" for p in ROOT.glob("config/*.py")))


def guarded(call: Callable[[], Any]) -> None:
    """Run a function as a complete command; errors are one line on stderr, with exit code 1."""
    _protect_output()
    try:
        call()
        return
    except KeyboardInterrupt:
        message = "interrupted. Files on disk are kept; run the same command again to resume."
    except Exception as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            # Most errors occur in every process: the first of a machine reports them, and torchrun
            # ends the others meanwhile. An error of one process alone is reported after the wait.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # train.py's handler only notes it
            time.sleep(_WAIT_FOR_FIRST)
        if isinstance(error, UserError):
            message = str(error)
        elif isinstance(error, OSError) and error.filename and error.strerror:
            message = (
                f"{error.filename}: {error.strerror}. Free some disk space, correct the "
                "permissions, or choose another folder with --data_dir=, --out_dir= or --eval_dir="
            )
        else:
            traceback.print_exc()
            message = (
                "unexpected error (see above). The saved files are intact: once the cause is "
                "removed, run the same command again to resume."
            )
    print(f"error: {message}", file=sys.stderr, flush=True)
    if "LOCAL_RANK" in os.environ:
        # At once: unwinding under a process group can hang (see distributed.disconnect).
        sys.stdout.flush()
        os._exit(1)
    sys.exit(1)


class _Unfailing(FileIO):
    """An output file that ignores write errors, because the run's log file has all records."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data) or len(data)  # None: a pipe that would block
        return len(data)


def _protect_output() -> None:
    """Keep a closed pipe, a full disk or a limited encoding from ending this command."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: >&-
            # Take its file descriptor: C code would write into the file that gets it next.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__"):
            buffer = BufferedWriter(_Unfailing(stream.fileno(), "w", closefd=False))
            by_line = stream.line_buffering or stream.write_through
            options = {"errors": "backslashreplace", "line_buffering": by_line}
            setattr(sys, name, TextIOWrapper(buffer, stream.encoding, **options))
