"""One series of models on one test set: its scores, its name, and the folder of its results."""

import contextlib
import dataclasses
import errno
import functools
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

import perturb
from impossible import files
from impossible.distributed import World
from impossible.evaluation import pictures, scoring
from impossible.evaluation.scoring import TestSet
from impossible.evaluation.series import Member, Seeds, Series, name_of
from impossible.settings import Settings, UserError
from impossible.text import token_files
from impossible.text.arrays import Sentences


@dataclass(frozen=True)
class OfSeries:
    """What a series of models gave on some test material."""

    settings: Settings
    series: Series

    @property
    def on(self) -> str:
        """The test material in words, if it is not the series' own; begins with a space."""
        if not on_language(self.settings, self.series):
            return ""
        return f" on {perturb.get(test_language(self.settings)).title}"

    @property
    def label(self) -> str:
        """The label of the series, and the test language if it is not the series' own."""
        return self.series.label + self.on

    @property
    def title(self) -> str:
        """The label, and the place of the models."""
        return self.series.title + self.on

    @property
    def corpus(self) -> str:
        """The corpus of the test material and how it was split, if it has one."""
        return ""

    @property
    def columns(self) -> dict[str, str | int | None]:
        """The columns that identify the models in every table; seeds are known of runs alone."""
        seeds = self.series.seeds or (None,) * len(Seeds._fields)
        named = dict(zip(Seeds._fields, seeds, strict=True))
        return {"model": self.series.label, "run": self.series.name, **named}


@dataclass(frozen=True)
class OnMaterial(OfSeries):
    """What a series gave on sentences from elsewhere, in folders that are named after them."""

    name: str

    @property
    def folder(self) -> Path:
        """The folder for the tables."""
        return material_folder(self.settings, self.series, self.name)


@dataclass(frozen=True)
class OnTestSet(OfSeries):
    """What a series gave on sentences of a test split."""

    test: TestSet
    losses: dict[str, np.ndarray]  # member -> as scoring.losses returns them

    @property
    def on(self) -> str:
        """The test data in words, if they are not the series' own; begins with a space."""
        if self.test.split_sha256 == self.series.test_sha256:
            return ""
        if self.test.language == self.series.language:
            return f" on {self.test_place}"
        return f" on {perturb.get(self.test.language).title}"

    @property
    def corpus(self) -> str:
        """The corpus of the test split and how it was split into sentences."""
        return f"{self.test.corpus}, {self.test.segmenter}"

    @property
    def test_id(self) -> str:
        """What is the same for the same test split."""
        return self.test.split_sha256

    @property
    def test_place(self) -> str:
        """The test data by the name of their folder and the first digits of their hash."""
        return f"{Path(self.test.data_dir).resolve().name}-{self.test.split_sha256[:8]}"

    @property
    def folder(self) -> Path:
        """The folder for the tables."""
        return folder_of(self.settings, self.series, self.test.language, self.test.split_sha256)


@dataclass(frozen=True)
class Evaluation(OnTestSet):
    """The perplexities of a series on a test set."""

    def sentence_losses(self, member: Member, with_markers: bool = True) -> np.ndarray:
        """The mean loss of each sentence, (S,); NaN where one is too long for the model.

        with_markers: whether the losses of the markers themselves count.
        """
        unscored = [] if with_markers else self.test.markers
        return scoring.sentence_losses(self.losses[member.name], self.test.sentences, unscored)

    def perplexity(self, member: Member) -> float:
        """The geometric mean over all sentences."""
        return _perplexity(self.losses[member.name], self.test.sentences)


class Measure(NamedTuple):
    """What is evaluated in place of perplexities: one table and one picture."""

    folder_of: Callable[[Settings, Series], Path]
    evaluate: Callable[[Settings, Series, World, torch.device], OfSeries]
    table: Callable[[OfSeries], pd.DataFrame]
    value: Callable[[OfSeries, Member], float] | None = None  # what is drawn
    interval: Callable[[OfSeries, Member], tuple[float, float]] | None = None
    label: str = ""
    level: float = 0.0  # of the thin line
    over_seeds: pictures.Interval = pictures.t_interval  # the interval of the mean of several runs
    # The subfolder of eval_dir for joint results.
    name_of: Callable[[Settings], str] = lambda _: ""
    # Names and values of sentences, whose differences between languages are compared.
    of_sentences: dict[str, Callable[[OfSeries, Member], np.ndarray]] | None = None


def evaluate(settings: Settings, series: Series, world: World, device: torch.device) -> Evaluation:
    """Score all models of a series that have no scores yet; all processes must call it."""
    meta = read_meta(settings)
    test = scoring.draw(
        test_data_dir(settings),
        meta,
        settings.sentences_per_genre,
        settings.sample_seed,
        settings.drop_duplicates,
    )
    evaluation = Evaluation(settings, series, test, {})
    found = score(
        series,
        Material(evaluation.title, test.language, test.sentences),
        evaluation.folder,
        lambda losses: f"perplexity {_perplexity(losses, test.sentences):,.2f}",
        world,
        device,
    )
    return dataclasses.replace(evaluation, losses=found)


class Material(NamedTuple):
    """Sentences to be scored."""

    title: str  # of the models on these sentences
    language: str
    sentences: Sentences
    last_instead: np.ndarray | None = None  # as in scoring.losses
    whole_lengths: np.ndarray | None = None  # as in scoring.losses

    @property
    def sha256(self) -> str:
        """A hash of all that is scored."""
        others = ((self.last_instead, "<u2"), (self.whole_lengths, "<i8"))
        more = [part.astype(kind).tobytes() for part, kind in others if part is not None]
        return scoring.sha256_of(self.sentences, b"".join(more))

    @property
    def lengths(self) -> np.ndarray:
        """What must fit the context of a model: the tokens of each whole sentence, (S,)."""
        return self.sentences.lengths if self.whole_lengths is None else self.whole_lengths


def score(
    series: Series,
    material: Material,
    folder: Path,
    result: Callable[[np.ndarray], str],
    world: World,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """The losses of each model of a series, by its name, as `scoring.losses` returns them.

    They are kept in `folder`, and not computed again for the same model and sentences. result: what
    is printed of the losses of a model. All processes must call it.
    """
    scores_dir = folder / "scores" / material.sha256[:16]
    if world.is_first:
        _make_folder(scores_dir)
        if series.language and not _is_writable(Path(series.place) / series.folder):
            print(f"{series.place} cannot be written to: its results go to {folder}", flush=True)
    found = {}
    with files.locked(folder) if world.is_first else contextlib.nullcontext():
        for number, member in enumerate(series.members, 1):
            began = time.perf_counter()
            path = scores_dir / f"{member.name.replace('/', '--')}.npz"
            losses, is_new = losses_of(member, material, path, world, device)
            found[member.name] = losses
            if world.is_first:
                how = f"{time.perf_counter() - began:.1f} s" if is_new else "as computed before"
                print(
                    f"{material.title}, {member.name} ({number} of {len(series.members)}): "
                    f"{result(losses)} ({how})",
                    flush=True,
                )
    return found


def _perplexity(losses: np.ndarray, sentences: Sentences) -> float:
    return float(np.exp(np.nanmean(scoring.sentence_losses(losses, sentences))))


def losses_of(
    member: Member, material: Material, path: Path, world: World, device: torch.device
) -> tuple[np.ndarray, bool]:
    """The losses of one model, and whether they were computed now."""
    identity, found = world.gather(_known(member, path) if world.is_first else None)[0]
    if found is not None:
        return found, False
    scorer = member.load(device)
    name, sentences = f"{material.title}, {member.name}", material.sentences
    largest, lengths = sentences.tokens.max(), material.lengths
    if largest >= len(scorer.head):
        raise UserError(
            f"{name} has a vocabulary of {len(scorer.head):,} tokens, and the sentences of "
            f"{material.language} contain a marker (id {largest}) that this model never learned. "
            "Choose a language without that marker: --test_language="
        )
    if lengths.min() > scorer.context:
        raise UserError(
            f"{name} reads {scorer.context} tokens, and the shortest sentence of "
            f"{material.language} has {lengths.min()}. Shorten the sentences, for a corpus with "
            "--segmenter=sentencex."
        )
    found = scoring.losses(scorer, sentences, world, material.last_instead, lengths)
    with np.errstate(over="ignore"):
        perplexities = np.exp(scoring.sentence_losses(found, sentences))
    wrong = ~np.isfinite(perplexities) & (lengths <= scorer.context)
    if wrong.any():
        raise UserError(
            f"{name}: the perplexity of {wrong.sum():,} sentences is not a number, so its "
            "weights are damaged or training had diverged. Leave it out with --revisions="
        )
    if world.is_first:
        with files.atomic_write(path) as file:
            np.savez(file, losses=found, identity=np.array(identity))
    return found, True


def _known(member: Member, path: Path) -> tuple[str, np.ndarray | None]:
    """The identity of a model, and its saved losses if they belong to the same identity."""
    identity = f"{scoring.VERSION} {member.identity()}"
    try:
        with np.load(path) as stored:
            same = str(stored["identity"]) == identity
            return identity, stored["losses"] if same else None
    except FileNotFoundError:
        return identity, None
    except Exception as error:  # numpy and zipfile have many for a damaged file
        print(f"{path} is damaged ({error!r}); computing it again", flush=True)
        return identity, None


def _make_folder(folder: Path) -> None:
    """Create a folder for results. Raises UserError if permission is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be created ({error.strerror}). Set --eval_dir= to a folder for the "
            "results that you have permission to write to."
        )


def test_data_dir(settings: Settings) -> Path:
    """The prepared data whose test split is evaluated on."""
    if settings.test_data_dir:
        return Path(settings.test_data_dir)
    if test_language(settings) == settings.language:
        return Path(settings.data_dir)
    return Path(Settings(language=settings.test_language).data_dir)


def test_language(settings: Settings) -> str:
    """The language of the sentences that models are evaluated on."""
    return settings.test_language or settings.language


def read_meta(settings: Settings) -> token_files.Meta:
    """Read meta.json of the test data. Raises UserError if it describes another language."""
    wanted, data_dir = test_language(settings), test_data_dir(settings)
    perturb.get(wanted)
    is_elsewhere = settings.test_data_dir or wanted != settings.language
    if is_elsewhere and not (data_dir / token_files.META).exists():
        raise UserError(
            f"there are no prepared sentences of {wanted} in {data_dir}. Prepare them from the "
            f"corpus of the model's own data: {_prepare_command(settings, data_dir)} (with the "
            "same sotu_years or text_column, if they were set). If the data are in another "
            "folder, set --test_data_dir="
        )
    meta = token_files.read_meta(data_dir)
    if meta.language != wanted:
        raise UserError(
            f"{data_dir} contains {meta.language}, but sentences of {wanted} are needed. To "
            "evaluate "
            f"on {meta.language}, set --test_language={meta.language}. To evaluate on {wanted}, "
            "set --test_data_dir= to the prepared data of that language."
        )
    return meta


def folder_of(settings: Settings, series: Series, language: str, split_sha256: str) -> Path:
    """The folder for the results of a series on a test split.

    Results on the run's own test split go to the folder of the series, others to subfolders.
    """
    folder = base_folder(settings, series)
    if split_sha256 == series.test_sha256:
        return folder
    return folder / f"on_{language}-{split_sha256[:8]}"


def on_language(settings: Settings, series: Series) -> str:
    """An ending for the names of folders: _on_LANGUAGE if that is not the models' own."""
    language = test_language(settings)
    return "" if series.language == language else f"_on_{language}"


def material_folder(settings: Settings, series: Series, name: str) -> Path:
    """The folder for the results of a series on sentences from elsewhere."""
    return base_folder(settings, series) / (name + on_language(settings, series))


def base_folder(settings: Settings, series: Series) -> Path:
    """The folder for all results of a series."""
    if not series.language:  # a model from elsewhere
        return Path(settings.eval_dir) / series.folder
    own = Path(series.place) / series.folder
    return own if _is_writable(own) else Path(settings.eval_dir) / name_of(Path(series.place))


@functools.cache
def _is_writable(folder: Path) -> bool:
    """Whether this user may write to a folder, or create it. Nothing is left behind."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return True
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS)


def _prepare_command(settings: Settings, data_dir: Path) -> str:
    """The command that prepares the test language from the corpus of the model, if available."""
    options = [f"--language={test_language(settings)}"]
    if (Path(settings.data_dir) / token_files.META).exists():
        own = token_files.read_meta(Path(settings.data_dir))
        options.append(f"--corpus={own.corpus}")
        if own.segmenter != Settings.segmenter:
            options.append(f"--segmenter={own.segmenter}")
    return shlex.join(["python", "prepare.py", *options, f"--data_dir={data_dir}"])
