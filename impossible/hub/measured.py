"""What was measured of a run, to be published with its last model: its log and its evaluation."""

import os
from pathlib import Path

from impossible.log import NAME as LOG

# Tables without text of the corpus. (Others may be large, or hold texts that are not free.)
_TABLES = ("perplexity.csv", "pairs.csv", "markers.csv", "entropies.csv", "differences.csv")
_EVALUATION, _TRAINING = "evaluation", "training"


def files_of(out_dir: Path) -> dict[str, Path]:
    """The files that main holds besides the export: name there -> where they are."""
    found = {f"{_TRAINING}/{LOG}": out_dir / LOG} if (out_dir / LOG).exists() else {}
    folder = out_dir / _EVALUATION
    kept = (p for p in folder.rglob("*") if p.name in _TABLES or p.suffix == ".png")
    tables = sorted(kept)
    return found | {f"{_EVALUATION}/{path.relative_to(folder).as_posix()}": path for path in tables}


def gather(export: Path, card: str, card_name: str, more: dict[str, Path], folder: Path) -> None:
    """Fill a folder with links to the files of an export and to others, and with its own card."""
    own = {path.name: path for path in export.iterdir() if path.name != card_name}
    for name, path in (own | more).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(path.resolve(), folder / name)
    (folder / card_name).write_text(card, encoding="utf-8")
