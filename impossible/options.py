"""Config files and the command line: from them, the settings of a command.

A value on the command line takes precedence over one in the config file, which takes precedence
over the default. All commands can share one config file; each command reads only its own settings.
A config file contains literal assignments (`n_layer = 12`) and is parsed, never executed.
"""

import ast
import contextlib
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from impossible.errors import UserError, unknown
from impossible.settings import COMMANDS, Settings, Study

CONFIG_DIR = Path(__file__).parent.parent / "config"
DEFAULT_CONFIG = CONFIG_DIR / "partial_reverse.py"
_DEFAULT_STUDY = CONFIG_DIR / "study_reverse.py"  # for --help
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}
S = TypeVar("S", bound=Settings)
# From the folder of a run, the settings by which it is found again.
OfRun = Callable[[Path], dict[str, Any]]


def load(
    kind: type[S], arguments: list[str], of_run: OfRun | None = None, usage: str | None = None
) -> S:
    """The settings of one command from its arguments: [config file] [--name=value ...].

    Without a config file, config/partial_reverse.py is read; but if --out_dir= names a run, the
    settings that `of_run` returns for it are used. Raises UserError, or SystemExit after an error
    message from tyro.
    """
    found = load_several(kind, arguments, of_run, usage)
    if len(found) > 1:
        names = ", ".join(map(str, _parted(kind, arguments)[0]))
        raise UserError(
            f"{kind.command} takes only one config file, but several were given: {names}."
        )
    return found[0]


def load_several(
    kind: type[S], arguments: list[str], of_run: OfRun | None = None, usage: str | None = None
) -> list[S]:
    """Like `load`, for a command that takes several config files: one Settings for each.

    Options on the command line apply to all of them.
    """
    configs, options = _parted(kind, arguments)
    out_dir = _value_of("--out_dir", options)
    if of_run and out_dir and not configs:
        bases = [of_run(Path(out_dir))]
    else:
        bases = [read_config(path) for path in configs or [DEFAULT_CONFIG]]
    return [
        tyro.cli(
            kind,
            prog=kind.command,
            description=usage,
            args=[*_as_options(kind, base), *options],
            use_underscores=True,
            console_outputs=os.environ.get("LOCAL_RANK", "0") == "0",  # one process tells
        )
        for base in bases
    ]


def load_study(
    arguments: list[str], usage: str | None = None
) -> tuple[Study, dict[str, Any], Path]:
    """The settings of study.py, those of its runs (all others, by name), and its config file.

    The arguments are those of `load`, and options that are settings of the other commands.
    """
    configs, options, values = [], [], {}
    for argument in arguments:
        given, equals, text = argument.partition("=")
        name = given.removeprefix("--").replace("-", "_")
        if not argument.startswith("--") and argument.endswith(".py"):
            configs.append(argument)
        elif not argument.startswith("--") or name.removeprefix("no_") in (*Study.types(), "help"):
            options.append(argument)
        elif name not in known_types():
            raise unknown("setting", name, known_types())
        elif equals:
            values[name] = parsed(name, text)
        else:
            raise UserError(f"{argument}: a value is missing. Write --{name}=VALUE")
    if not configs and "--help" not in options and "-h" not in options:
        raise UserError(
            "name the config file of a study, such as config/study_laptop.py (small) or "
            "config/study_reverse.py (at full size)."
        )
    config = Path(configs[0]) if configs else _DEFAULT_STUDY
    study = load(Study, [str(config), *configs[1:], *options], usage=usage)
    shared = read_config(config) | values
    others = {name: shared[name] for name in shared if name not in Study.types()}
    return study, others, _found(config)


def _parted(kind: type[Settings], arguments: list[str]) -> tuple[list[Path], list[str]]:
    """The config files among the arguments of a command, and its options as tyro expects them."""
    configs: list[Path] = []
    options: list[str] = []
    before, is_list, is_value = "", False, False  # the latest option; whether its value follows
    for argument in arguments:
        if argument.endswith(".py") and not argument.startswith("-") and not is_value:
            configs.append(Path(argument))
            continue
        name, equals, value = argument.partition("=")
        if not argument.startswith("-") and not is_value and is_list:
            raise UserError(
                f"{argument!r} follows the value of {before}. Separate the items of a list by "
                f"commas: {before}=A,B"
            )
        if not argument.startswith("-") and not is_value:
            known = (f"config/{path.name}" for path in CONFIG_DIR.glob("*.py"))
            raise unknown("config file", argument, known)
        if argument.startswith("--"):
            name = "--" + name.removeprefix("--").replace("-", "_")
            argument = name + equals + value
            expected = kind.types().get(name.removeprefix("--"), bool)
            before, is_list = name, typing.get_origin(expected) is tuple
            is_value = expected is not bool and not equals
        else:
            is_value = False
        options += _spelled(kind, argument)
    return configs, options


def _value_of(name: str, options: list[str]) -> str:
    """The last value of an option among the others: --name=value or --name value."""
    found = ""
    for option, following in zip(options, [*options[1:], ""], strict=False):
        given, equals, value = option.partition("=")
        if given == name:
            found = value if equals else following
    return found


def _spelled(kind: type[Settings], argument: str) -> list[str]:
    """An argument as tyro expects it: --name and --no_name for --name=true and --name=false, and
    --name a b for --name=a,b if it is a list.

    Raises UserError for a setting of another command, and for an invalid value of a bool.
    """
    name, equals, value = argument.removeprefix("--").partition("=")
    types = kind.types()
    readers = [other.command for other in COMMANDS if name in other.types()]
    if argument.startswith("--") and readers and name not in types:
        raise UserError(
            f"{kind.command} has no setting {name}; it is a setting of {', '.join(readers)}."
        )
    if typing.get_origin(types.get(name)) is tuple and equals:
        return [f"--{name}", *(part.strip() for part in value.split(",") if part.strip())]
    if types.get(name) is not bool or not equals:
        return [argument]
    if value.lower() not in _SWITCHES:
        raise UserError(f"{argument}: {name} must be true or false, not {value!r}.")
    return [f"--{name}" if _SWITCHES[value.lower()] else f"--no_{name}"]


def _as_options(kind: type[Settings], values: dict[str, Any]) -> list[str]:
    """The settings that a command reads, as arguments for it."""
    options: list[str] = []
    for name, value in values.items():
        if name in kind.types() and isinstance(value, list):
            options += [f"--{name}", *map(str, value)]  # an item may contain a comma
        elif name in kind.types():
            options += _spelled(kind, f"--{name}={value}")
    return options


def read_config(path: Path) -> dict[str, Any]:
    """The assignments of a config file, by name. The file is parsed, not executed.

    Raises UserError, with the line number, for anything but a literal value of a known setting.
    """
    path = _found(path)
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
        values[name] = _typed(name, value, where)
    return values


def _found(path: Path) -> Path:
    """The file of that name in the current folder or, failing that, in the project folder."""
    for place in (path, CONFIG_DIR.parent / path):
        if place.is_file():
            return place
    known = (f"config/{found.name}" for found in CONFIG_DIR.glob("*.py"))
    raise unknown("config file", str(path), known)


def _typed(name: str, value: Any, where: str) -> Any:
    """A value from a config file as the type of its setting (an int will do for a float)."""
    known = known_types()
    if name not in known:
        raise UserError(f"{where}: {unknown('setting', name, known)}")
    if typing.get_origin(known[name]) is tuple:
        item, _ = typing.get_args(known[name])
        if not isinstance(value, list) or any(type(part) is not item for part in value):
            items = "strings" if item is str else "whole numbers"
            raise UserError(f"{where}: {name} must be a list of {items}, not {value!r}.")
        return value
    expected = str if typing.get_origin(known[name]) is Literal else known[name]
    if expected is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    if type(value) is not expected:
        names = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
        raise UserError(f"{where}: {name} must be {names[expected]}, not {value!r}.")
    return value


def known_types() -> dict[str, Any]:
    """The type of every setting of every command."""
    return {key: kind for command in COMMANDS for key, kind in command.types().items()}


def parsed(name: str, text: str) -> Any:
    """The value of a setting from the command line. Raises UserError if it has another type."""
    kind = known_types()[name]
    value: Any = text
    if kind is bool:
        value = _SWITCHES.get(text.lower(), text)
    elif kind in (int, float):
        with contextlib.suppress(ValueError):
            value = kind(text)
    return _typed(name, value, f"--{name}={text}")
