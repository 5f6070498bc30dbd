"""A workaround: our evaluate.py has the same name as a package of Hugging Face."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

# The folder of the commands
_HERE = Path(__file__).parent.parent.resolve()


def hand_over(name: str) -> None:
    """If `import NAME` found one of our commands, import the installed package NAME after all.

    Raises ModuleNotFoundError if there is no such package.
    """
    elsewhere = [path for path in sys.path if Path(path).resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec(name, elsewhere)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(
            f"No module named {name!r} ({name}.py in {_HERE} is a command, not a module). "
            f"Type: pip install {name}",
            name=name,
        )
    # Python's import takes what is found under the name in the end.
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
