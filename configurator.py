"""The settings of all commands: one dataclass, `config/NAME.py` files and `--key=value`.

A config file holds literal assignments (`batch_size = 8`). It is parsed, never executed, so a
config cannot run code. Precedence: defaults, then the config file, then the command line.
"""

import ast
import contextlib
import dataclasses
import errno
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import terminal
from errors import UserError, unknown

DEFAULT_CONFIG = Path(__file__).parent / "config" / "partial_reverse.py"
COMMANDS = ("prepare", "train", "convert_to_hf", "evaluate", "demo")
DTYPES = ("auto", "float32", "bfloat16", "float16")
EXPORT_DTYPES = ("float32", "bfloat16")
SEGMENTERS = ("sentencex", "line")
TABLE_FORMATS = ("csv", "parquet")
INVALID_UTF8 = ("error", "replace")
_PLACES = ("data_dir", "out_dir")  # taken by every command, so that one recipe can share them
_WAIT_FOR_FIRST = 5.0  # seconds
_NOT_WRITABLE = "Choose a folder that you may write to with --data_dir= or --out_dir=."
_NO_FOLDER = "A folder was expected there; choose another with --data_dir= or --out_dir=."
_NO_ROOM = "Make room, or choose another disk with --data_dir= or --out_dir=."
_DISK_ADVICE = {
    errno.EACCES: _NOT_WRITABLE,
    errno.EPERM: _NOT_WRITABLE,
    errno.EROFS: _NOT_WRITABLE,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.EDQUOT: _NO_ROOM,
    errno.ENOSPC: _NO_ROOM,
    errno.EFBIG: "Choose a disk that takes files of this size with --data_dir= or --out_dir=.",
}


def _setting(default: Any, read_by: str, text: str, *, fixed: bool = False) -> Any:
    """A field of Settings: who reads it, what it means, and whether a run may change it.

    fixed: a run cannot be resumed with another value: its weights or its series depend on it.
    """
    metadata = {"read_by": tuple(read_by.split()), "help": text, "fixed": fixed}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Every setting of the project. The defaults are PartialReverse as published.

    Raises UserError for a value that cannot work, saying what would.
    """

    language: str = _setting(
        "partial_reverse",
        "prepare train convert_to_hf evaluate demo",
        "the language, a name from the table in perturb.py",
        fixed=True,
    )
    corpus: str = _setting(
        "babylm",
        "prepare",
        "babylm, babylm_10M, sotu, hf:NAME (a dataset), or a folder of text files",
    )
    sotu_years: str = _setting("1950-2000", "prepare", "for sotu: first and last year of speeches")
    text_column: str = _setting("text", "prepare", "for hf:NAME: the column that holds the text")
    segmenter: str = _setting(
        "sentencex", "prepare", "sentencex (finds sentences in a line) or line (a line is one)"
    )
    invalid_utf8: str = _setting(
        "error", "prepare", "bytes that are not UTF-8: error, or replace (by U+FFFD, and counted)"
    )
    workers: int = _setting(
        0, "prepare", "threads that find sentences and encode them (0: one for each core)"
    )
    data_dir: str = _setting(
        "", "prepare train evaluate demo", "folder of the token files (default: `data/<language>`)"
    )
    data_seed: int = _setting(41, "prepare", "seed of the order of sentences in train and val")
    out_dir: str = _setting(
        "",
        "train convert_to_hf evaluate demo",
        "folder of the run (default: `out/<language>`, with `_no_pos` for that variant)",
    )
    verify_data: bool = _setting(
        False, "train", "compare the token files with the hashes of meta.json before the first step"
    )
    seed: int = _setting(
        41, "train", "seed of initial weights, order of blocks and dropout", fixed=True
    )
    block_size: int = _setting(1024, "train", "context length in tokens", fixed=True)
    n_layer: int = _setting(12, "train", "transformer blocks", fixed=True)
    n_head: int = _setting(12, "train", "attention heads in each", fixed=True)
    n_embd: int = _setting(768, "train", "width of the model", fixed=True)
    dropout: float = _setting(
        0.1, "train", "on embeddings, attention weights and residual branches", fixed=True
    )
    scale_attn_by_inverse_layer_idx: bool = _setting(
        True, "train", "divide attention scores by (layer index + 1) too", fixed=True
    )
    position_embeddings: bool = _setting(
        True,
        "train convert_to_hf evaluate demo",
        "false: the published variant whose model is not told where a token stands",
        fixed=True,
    )
    tokens_per_step: int = _setting(
        524288, "train", "tokens of one optimizer step, all processes together", fixed=True
    )
    batch_size: int = _setting(8, "train", "sequences in a micro-batch of one process")
    max_steps: int = _setting(3000, "train", "optimizer steps in all", fixed=True)
    warmup_steps: int = _setting(
        300, "train", "steps until the learning rate peaks; it then falls to 0", fixed=True
    )
    learning_rate: float = _setting(6e-4, "train", "the peak of the learning rate", fixed=True)
    beta1: float = _setting(0.9, "train", "AdamW's first moment", fixed=True)
    beta2: float = _setting(0.999, "train", "AdamW's second moment", fixed=True)
    weight_decay: float = _setting(
        0.1, "train", "AdamW's, on matrices and embeddings only", fixed=True
    )
    grad_clip: float = _setting(
        1.0, "train", "largest norm of the gradient (0: do not clip)", fixed=True
    )
    checkpoint_interval: int = _setting(100, "train", "steps between kept checkpoints", fixed=True)
    eval_interval: int = _setting(
        100, "train", "steps between validation losses (each checkpoint has one too)"
    )
    eval_blocks: int = _setting(
        512, "train", "blocks of val.bin to validate on (0: all)", fixed=True
    )
    log_interval: int = _setting(1, "train", "steps between log lines")
    device: str = _setting(
        "auto", "train evaluate", "auto (cuda, else mps, else cpu), or one of these, or cuda:N"
    )
    dtype: str = _setting(
        "auto",
        "train",
        "auto, float32, bfloat16 or float16 (auto: on cuda the best 16 bits it has, else float32)",
        fixed=True,
    )
    compile: bool = _setting(True, "train", "compile the model with torch.compile")
    wandb_log: bool = _setting(
        False, "train", "send the log to Weights & Biases too (pip install wandb)"
    )
    wandb_project: str = _setting("impossible-gpt2", "train", "the project there")
    export_dtype: str = _setting(
        "float32", "convert_to_hf", "float32 (as published) or bfloat16 (half the size)"
    )
    push_to_hub: str = _setting(
        "", "convert_to_hf", "publish the exports as revisions of this repo: USER/NAME"
    )
    private: bool = _setting(False, "convert_to_hf", "make the repo private")
    overwrite: bool = _setting(
        False, "convert_to_hf", "replace revisions that hold something else than this run"
    )
    dry_run: bool = _setting(
        False, "convert_to_hf", "export, and say what publishing would do, but change nothing there"
    )
    model_license: str = _setting(
        "mit", "convert_to_hf", "licence of the published model, by the Hub's name for it"
    )
    model: str = _setting(
        "",
        "evaluate",
        "models in place of the run in out_dir, set apart by commas: exported folders, repos on "
        "the Hub, and `run` for the run",
    )
    revisions: str = _setting(
        "", "evaluate", "names of checkpoints, set apart by commas (default: each checkpoint-N)"
    )
    test_language: str = _setting(
        "", "evaluate", "evaluate on the test split of this language (default: `language`)"
    )
    test_data_dir: str = _setting(
        "", "evaluate", "its token files (default: data_dir; of another language `data/<language>`)"
    )
    sentences_per_genre: int = _setting(
        1000, "evaluate", "sentences to draw from each genre (all, where there are fewer)"
    )
    sample_seed: int = _setting(0, "evaluate", "seed of that draw")
    sentences: bool = _setting(
        False, "evaluate", "write a table of all sentences with their perplexities too"
    )
    surprisals: bool = _setting(
        False, "evaluate", "write a table of the surprisal of every token, in bits, too"
    )
    table_format: str = _setting("csv", "evaluate", "of these two tables: csv or parquet")
    losses: bool = _setting(
        False, "evaluate", "draw the training and validation losses of log.jsonl too"
    )
    results_dir: str = _setting(
        "",
        "evaluate",
        "folder for the results of runs, each in a folder of its name there (default: each run's "
        "own folder, out_dir/evaluation)",
    )
    eval_dir: str = _setting(
        "out/evaluation",
        "evaluate demo",
        "folder of several runs' common picture and table, and of models from elsewhere",
    )

    def __post_init__(self) -> None:
        variant = "" if self.position_embeddings else "_no_pos"
        defaults = {"data_dir": "data/" + self.language, "out_dir": f"out/{self.language}{variant}"}
        for name, folder in defaults.items():
            if not getattr(self, name):
                object.__setattr__(self, name, folder)
        _check(self)

    @property
    def blocks_per_step(self) -> int:
        """Blocks of one optimizer step, all processes together."""
        return self.tokens_per_step // self.block_size

    @classmethod
    def fixed(cls) -> list[str]:
        """The names of the settings that a run cannot be resumed with another value of."""
        return [field.name for field in dataclasses.fields(cls) if field.metadata["fixed"]]

    def options(self, *names: str) -> list[str]:
        """Those of these settings that are not at their default, as arguments of a command."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in names}
        changed = {name: value for name, value in values.items() if value != defaults[name]}
        return [f"--{name}={value}" for name, value in changed.items()]


# From the folder of a run, the settings by which it is found again
OfRun = Callable[[Path], dict[str, Any]]


def load(command: str, arguments: list[str], of_run: OfRun | None = None) -> Settings:
    """The settings of one command from its arguments: [config file] [--key=value ...].

    Without a config file, `config/partial_reverse.py` is read; or what `of_run` says of the run, if
    `--out_dir=` names one. Raises UserError.
    """
    files = [a for a in arguments if not a.startswith("-")]
    if len(files) > 1:
        raise UserError(
            f"two config files given ({files[0]} and {files[1]}); {command}.py takes one. "
            "Settings are written --key=value, with no space."
        )
    return load_several(command, arguments, of_run)[0]


def load_several(command: str, arguments: list[str], of_run: OfRun | None = None) -> list[Settings]:
    """The same for a command that takes several config files: the settings of each.

    What is given on the command line is set in all of them.
    """
    files = [Path(a) for a in arguments if not a.startswith("-")]
    options = dict(_parse_argument(command, a) for a in arguments if a.startswith("-"))
    if of_run and not files and "out_dir" in options:
        return [Settings(**(of_run(Path(options["out_dir"])) | options))]
    return [Settings(**(read_config(path) | options)) for path in files or [DEFAULT_CONFIG]]


def read_config(path: Path) -> dict[str, Any]:
    """The assignments of a config file, by name. The file is parsed, not executed."""
    path = _config_file(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))  # some editors begin with a BOM
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not valid Python: {error}. Write lines like: n_layer = 12")
    values: dict[str, Any] = {}
    for statement in tree.body:
        if _is_docstring(statement):
            continue
        where = f"{path}, line {statement.lineno}"
        try:
            (target,) = statement.targets  # type: ignore[attr-defined]
            key, value = target.id, ast.literal_eval(statement.value)
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                f"{where}: {ast.unparse(statement)!r} is not a plain assignment. A config holds "
                "only lines like: n_layer = 12 (a number, True, False or a string)"
            )
        if key in values:
            raise UserError(f"{where}: {key} is set twice in this file. Keep one of the two.")
        values[key] = _typed(key, value, where)
    return values


def _config_file(path: Path) -> Path:
    """The file of that name here or, if there is none, in the project's folder."""
    folder = DEFAULT_CONFIG.parent
    for place in (path, folder.parent / path):
        if place.is_file():
            return place
    known = (f"config/{p.name}" for p in folder.glob("*.py"))
    raise unknown("config file", str(path), known)


def help_text(command: str, usage: str | None) -> str:
    """What --help prints: the command's docstring and the settings it reads."""
    usage = usage or f"{command}.py"  # python -OO drops docstrings
    lines = [usage.strip(), "", "Settings (--key=value, or key = value in a config file):"]
    for field in dataclasses.fields(Settings):
        if command in field.metadata["read_by"]:
            default = "" if field.default == "" else f" [{field.default}]"
            lines.append(f"  --{field.name}: {field.metadata['help']}{default}")
    return "\n".join(lines)


def run(
    command: str,
    main: Callable[[Any], None],
    usage: str | None,
    load: Callable[..., Any] = load,
    of_run: OfRun | None = None,
) -> None:
    """Run a command's `main` on the settings of sys.argv; errors of the user end in one line.

    load: what makes the settings: `load`, or `load_several`. of_run: as in `load`.
    """
    terminal.protect()
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(help_text(command, usage))
        return
    try:
        main(load(command, arguments, of_run))
    except KeyboardInterrupt:
        _fail("interrupted. What is on disk is kept; the same command goes on from there.")
    except Exception as error:
        _let_the_first_speak()
        if isinstance(error, UserError):
            _fail(str(error))
        if isinstance(error, OSError) and error.errno in _DISK_ADVICE and error.filename:
            _fail(f"{error.filename}: {error.strerror}. {_DISK_ADVICE[error.errno]}")
        traceback.print_exc()
        _fail(
            "unexpected (see above). What was saved is whole: once the cause is gone, the same "
            "command goes on from there."
        )


def _let_the_first_speak() -> None:
    """Under torchrun, wait in all processes of a machine but the first.

    Every process meets most mistakes: the first tells them, and torchrun then ends the others while
    they wait. A mistake of another alone is told too.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # train.py would only take note of it
        time.sleep(_WAIT_FOR_FIRST)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    _leave()


def _leave() -> NoReturn:
    if "LOCAL_RANK" in os.environ:
        # At once: unwinding under a process group can hang (see device.disconnect).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _field(key: str, where: str) -> dataclasses.Field:
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    if key not in fields:
        raise UserError(f"{where}: {unknown('setting', key, fields)}")
    return fields[key]


def _parse_argument(command: str, argument: str) -> tuple[str, Any]:
    key, equals, text = argument.removeprefix("--").partition("=")
    if argument.startswith("--") and not equals and _is_flag(key):
        equals, text = "=", "true"
    names = {field.name for field in dataclasses.fields(Settings)}
    if argument.startswith("--") and key and key not in names:
        read = (f.name for f in dataclasses.fields(Settings) if command in f.metadata["read_by"])
        raise UserError(f"{argument}: {unknown('setting', key, read)}")
    if not argument.startswith("--") or not equals:
        raise UserError(
            f"{argument}: settings are written --key=value, with no space: --{key or 'key'}=..."
        )
    field = _field(key, argument)
    if command not in field.metadata["read_by"] and key not in _PLACES:
        readers = ", ".join(f"{name}.py" for name in field.metadata["read_by"])
        raise UserError(f"{argument}: {command}.py does not read {key}; it is for {readers}.")
    value: Any = text
    if field.type is bool:
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    elif field.type in (int, float):
        with contextlib.suppress(ValueError, SyntaxError):  # _typed refuses what stays a string
            value = ast.literal_eval(text)
    return key, _typed(key, value, argument)


def _is_flag(key: str) -> bool:
    return any(field.name == key and field.type is bool for field in dataclasses.fields(Settings))


def _typed(key: str, value: Any, where: str) -> Any:
    """`value` as the type of its setting (a whole number will do for a float)."""
    expected = _field(key, where).type
    if expected is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    if type(value) is not expected or (expected is float and not math.isfinite(value)):
        names = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
        raise UserError(f"{where}: {key} must be {names[expected]}, not {value!r}.")
    if expected is str and not _is_utf8(value):
        raise UserError(
            f"{where}: {key} holds bytes that are not UTF-8. Give the file or folder "
            "a name in UTF-8."
        )
    return value


def _is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: Python keeps other bytes as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check(s: Settings) -> None:
    """Raise UserError for values that cannot work together."""
    for name in ("block_size", "n_layer", "n_head", "n_embd", "tokens_per_step", "batch_size"):
        _require(getattr(s, name) >= 1, name, s, "at least 1")
    _require(s.tokens_per_step <= 2**32, "tokens_per_step", s, f"at most {2**32}")
    for name in ("max_steps", "checkpoint_interval", "eval_interval", "log_interval"):
        _require(getattr(s, name) >= 1, name, s, "at least 1")
    _require(s.sentences_per_genre >= 1, "sentences_per_genre", s, "at least 1")
    for name in ("seed", "data_seed", "sample_seed", "workers", "warmup_steps", "eval_blocks"):
        _require(getattr(s, name) >= 0, name, s, "0 or more")
    for name in ("weight_decay", "grad_clip"):
        _require(getattr(s, name) >= 0, name, s, "0 or more")
    for name in ("dropout", "beta1", "beta2"):
        _require(0 <= getattr(s, name) < 1, name, s, "from 0 to below 1")
    _require(s.learning_rate > 0, "learning_rate", s, "above 0")
    _require(s.block_size >= 2, "block_size", s, "at least 2: a token is predicted from another")
    _require(s.dtype in DTYPES, "dtype", s, f"one of {', '.join(DTYPES)}")
    for name in ("private", "overwrite", "dry_run"):
        given = getattr(s, name) and not s.push_to_hub
        _require(not given, name, s, "left out, or given with --push_to_hub=USER/NAME")
    expected = f"one of {', '.join(EXPORT_DTYPES)}"
    _require(s.export_dtype in EXPORT_DTYPES, "export_dtype", s, expected)
    formats = f"one of {', '.join(TABLE_FORMATS)}"
    _require(s.table_format in TABLE_FORMATS, "table_format", s, formats)
    _require(s.segmenter in SEGMENTERS, "segmenter", s, f"one of {', '.join(SEGMENTERS)}")
    _require(s.invalid_utf8 in INVALID_UTF8, "invalid_utf8", s, f"one of {', '.join(INVALID_UTF8)}")
    device, _, index = s.device.partition(":")
    known = s.device in ("auto", "cpu", "cuda", "mps") or (device == "cuda" and index.isdecimal())
    _require(known, "device", s, "auto, cpu, cuda, cuda:N or mps")
    _require(
        s.warmup_steps <= s.max_steps,
        "warmup_steps",
        s,
        f"at most max_steps, which is {s.max_steps}",
    )
    _require(
        s.n_embd % s.n_head == 0,
        "n_head",
        s,
        f"a divisor of n_embd = {s.n_embd}, such as {_nearest_divisor(s.n_embd, s.n_head)}",
    )
    _require(
        s.tokens_per_step % s.block_size == 0,
        "tokens_per_step",
        s,
        f"a multiple of block_size = {s.block_size}, such as "
        f"{max(1, s.tokens_per_step // s.block_size) * s.block_size}",
    )
    blocks = s.blocks_per_step
    if blocks % s.batch_size:
        fitting = ", ".join(map(str, divisors(blocks)[:12]))
        expected = f"a divisor of the {blocks} blocks of a step (tokens_per_step / block_size)"
        _require(False, "batch_size", s, f"{expected}: {fitting}")


def _require(holds: bool, name: str, settings: Settings, expected: str) -> None:
    if not holds:
        raise UserError(f"{name} = {getattr(settings, name)!r} cannot work: it must be {expected}.")


def divisors(number: int) -> list[int]:
    """All divisors of a number, the smallest first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _nearest_divisor(number: int, wanted: int) -> int:
    """The largest divisor of `number` that is at most `wanted`."""
    return max(d for d in divisors(number) if d <= max(1, wanted))
