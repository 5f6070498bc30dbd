"""Test perplexity against training step: of a run, of several, of models on the Hub.

    python evaluate.py                                          # out/partial_reverse
    python evaluate.py config/no_reverse.py config/partial_reverse.py config/full_reverse.py
    python evaluate.py --test_language=no_reverse               # on another language's sentences
    python evaluate.py --model=USER/NAME --revisions=checkpoint-100,checkpoint-200
    torchrun --nproc_per_node=2 evaluate.py config/partial_reverse.py

Writes perplexity.csv (checkpoint x genre) and perplexity.png to out_dir/evaluation (of models from
elsewhere: to a folder in eval_dir; of several runs together: to eval_dir itself), and on request a
table of all sentences, of the surprisal of every token, and a picture of the losses of training.
In fp32, on sentences drawn by sample_seed. What was computed is kept: the same command goes on
where it was interrupted.
"""

import contextlib
import dataclasses
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import configurator
import device as devices
import files
import log
import perturb
import picture
import score
import tokens
from configurator import Settings
from device import World
from errors import UserError
from picture import Curve
from score import TestSet
from series import Member, Series, find
from tokenizer import Tokenizer

_ALL = "all"  # in place of a genre: all sentences together


@dataclass(frozen=True)
class Evaluation:
    """One series on one test set."""

    settings: Settings
    series: Series
    test: TestSet
    losses: dict[str, np.ndarray]  # member -> as score.losses returns them

    @property
    def label(self) -> str:
        """The series, and the language that it is evaluated on unless that is its own."""
        return self.series.label + self._on

    @property
    def title(self) -> str:
        """The same, and where the models are."""
        return self.series.title + self._on

    @property
    def _on(self) -> str:
        is_own = self.test.language == self.series.language
        return "" if is_own else f" on {perturb.get(self.test.language).title}"

    @property
    def folder(self) -> Path:
        """Where its tables go."""
        return _folder(self.series, self.settings)

    def sentence_losses(self, member: Member) -> np.ndarray:
        """The mean loss of each sentence, (S,); NaN where one is too long for the model."""
        return score.sentence_losses(self.losses[member.name], self.test.sentences)

    def perplexity(self, member: Member) -> float:
        """The geometric mean over all sentences."""
        return float(np.exp(np.nanmean(self.sentence_losses(member))))


def main(runs: list[Settings]) -> None:
    """Evaluate the series of each config file, and write tables and pictures."""
    world = devices.join_world()
    device = devices.pick_device(runs[0].device, world)
    if device.type == "cpu":
        devices.keep_freed_memory()
    for settings in runs:  # before a Hub is asked
        _read_meta(settings, _test_data_dir(settings))
    found = _find(runs)
    devices.connect(world, device)
    members = [[(m.name, m.commit) for m in series.members] for _, series in found]
    if any(others != members for others in world.gather(members)):
        raise UserError("the checkpoints changed meanwhile. Type the same command again.")
    evaluations = [_evaluate(settings, series, world, device) for settings, series in found]
    if world.is_first:
        for evaluation in evaluations:
            _write_tables(evaluation)
        _summarize(evaluations)
    world.gather(None)  # all wait for the first
    devices.disconnect(world)


def _find(runs: list[Settings]) -> list[tuple[Settings, Series]]:
    """All series, each with its settings. Raises UserError for a run that is named twice."""
    found: dict[Path, tuple[Settings, Series]] = {}
    for settings in runs:
        for series in find(settings):
            folder = _folder(series, settings)
            if folder in found and series.language:
                raise UserError(
                    f"the run in {series.place} is named twice. Give each run an out_dir of its "
                    "own, or leave one of the config files out."
                )
            found[folder] = (settings, series)
            if settings.losses and series.language and not log.read(Path(series.place)):
                raise UserError(f"{series.place} has no {log.NAME}. Leave --losses out.")
    if runs[0].losses and not any(series.language for _, series in found.values()):
        raise UserError("these models come without a log. Leave --losses out.")
    return list(found.values())


def _evaluate(settings: Settings, series: Series, world: World, device: torch.device) -> Evaluation:
    """Score all models of a series that have no scores yet; all processes must call it."""
    data_dir = _test_data_dir(settings)
    test = score.draw(
        data_dir, _read_meta(settings, data_dir), settings.sentences_per_genre, settings.sample_seed
    )
    folder = _folder(series, settings)
    scores_dir = folder / "scores" / test.sha256[:16]
    losses: dict[str, np.ndarray] = {}
    evaluation = Evaluation(settings, series, test, losses)
    if world.is_first:
        scores_dir.mkdir(parents=True, exist_ok=True)
    with files.locked(folder) if world.is_first else contextlib.nullcontext():
        for number, member in enumerate(series.members, 1):
            began = time.perf_counter()
            path = scores_dir / f"{member.name.replace('/', '--')}.npz"
            name = f"{evaluation.title}, {member.name}"
            losses[member.name], is_new = _losses(name, member, test, path, world, device)
            if world.is_first:
                how = f"{time.perf_counter() - began:.1f} s" if is_new else "as computed before"
                print(
                    f"{name} ({number} of {len(series.members)}): perplexity "
                    f"{evaluation.perplexity(member):,.2f} ({how})",
                    flush=True,
                )
    return evaluation


def _losses(
    name: str, member: Member, test: TestSet, path: Path, world: World, device: torch.device
) -> tuple[np.ndarray, bool]:
    """The losses of one model, and whether they were computed now."""
    identity, found = world.gather(_known(member, path) if world.is_first else None)[0]
    if found is not None:
        return found, False
    scorer = member.load(device)
    largest, lengths = test.sentences.tokens.max(), test.sentences.lengths
    if largest >= len(scorer.head):
        raise UserError(
            f"{name} knows {len(scorer.head):,} tokens, and the sentences of {test.language} hold "
            f"the id {largest}: a marker that its language has not. Set another --test_language="
        )
    if lengths.min() > scorer.context:
        raise UserError(
            f"{name} reads {scorer.context} tokens, and the shortest sentence of {test.language} "
            f"has {lengths.min()}. Prepare shorter sentences (--segmenter=sentencex)."
        )
    found = score.losses(scorer, test.sentences, world)
    with np.errstate(over="ignore"):
        perplexities = np.exp(score.sentence_losses(found, test.sentences))
    wrong = ~np.isfinite(perplexities) & (lengths <= scorer.context)
    if wrong.any():
        raise UserError(
            f"{name}: the perplexity of {wrong.sum():,} sentences is no number, so its weights are "
            "damaged or training had diverged. Leave it out with --revisions="
        )
    if world.is_first:
        with files.atomic_write(path) as file:
            np.savez(file, losses=found, identity=np.array(identity))
    return found, True


def _known(member: Member, path: Path) -> tuple[str, np.ndarray | None]:
    """What a model is, and its losses if they were computed of the very same."""
    identity = f"{score.VERSION} {member.identity()}"
    try:
        with np.load(path) as stored:
            same = str(stored["identity"]) == identity
            return identity, stored["losses"] if same else None
    except FileNotFoundError:
        return identity, None
    except Exception as error:  # numpy and zipfile have many for a damaged file
        print(f"{path} is damaged ({error!r}) and is computed anew", flush=True)
        return identity, None


def _test_language(settings: Settings) -> str:
    return settings.test_language or settings.language


def _test_data_dir(settings: Settings) -> Path:
    """The prepared data whose test split is evaluated on."""
    if settings.test_data_dir:
        return Path(settings.test_data_dir)
    if _test_language(settings) == settings.language:
        return Path(settings.data_dir)
    return Path(Settings(language=settings.test_language).data_dir)


def _read_meta(settings: Settings, data_dir: Path) -> tokens.Meta:
    """meta.json of the test data. Raises UserError if it is not of the language that is wanted."""
    wanted = _test_language(settings)
    perturb.get(wanted)
    is_elsewhere = settings.test_data_dir or wanted != settings.language
    if is_elsewhere and not (data_dir / tokens.META).exists():
        raise UserError(
            f"no sentences of {wanted}: no prepared data in {data_dir}. Type: "
            f"{_prepare_command(settings, data_dir)} (which must name the text of the model's own "
            "data), or name the folder where they are: --test_data_dir="
        )
    meta = tokens.read_meta(data_dir)
    if meta.language != wanted:
        raise UserError(
            f"{data_dir} holds {meta.language}, and sentences of {wanted} are wanted. Name the "
            "config file of the language that is meant, or set --test_language=, or "
            "--test_data_dir= to prepared data of it."
        )
    return meta


def _prepare_command(settings: Settings, data_dir: Path) -> str:
    """What makes the data of the test language, as far as the model's own and the settings tell."""
    if (Path(settings.data_dir) / tokens.META).exists():
        own = tokens.read_meta(Path(settings.data_dir))
        settings = dataclasses.replace(settings, corpus=own.corpus, segmenter=own.segmenter)
    names = ("corpus", "sotu_years", "text_column", "segmenter", "invalid_utf8")
    language = f"--language={_test_language(settings)}"
    options = [language, *settings.options(*names), f"--data_dir={data_dir}"]
    return shlex.join(["python", "prepare.py", *options])


def _folder(series: Series, settings: Settings) -> Path:
    """The folder of a series, one for each language that it is evaluated on."""
    language = _test_language(settings)
    return series.results if language == series.language else series.results / f"on_{language}"


# Tables


def perplexities(evaluation: Evaluation) -> pd.DataFrame:
    """A row for each checkpoint and genre, and for each checkpoint on all sentences."""
    test, rows = evaluation.test, []
    for member in evaluation.series.members:
        losses = evaluation.sentence_losses(member)
        for genre in (*test.genres, _ALL):
            chosen = np.full(len(losses), True)
            if genre != _ALL:
                chosen = test.genre == test.genres.index(genre)
            counted = chosen & ~np.isnan(losses)
            rows.append(
                {
                    "model": evaluation.series.label,
                    "place": evaluation.series.place,
                    "seed": evaluation.series.seed,
                    "test_language": test.language,
                    "checkpoint": member.name,
                    "step": member.step,
                    "genre": genre,
                    "perplexity": np.exp(losses[counted].mean()) if counted.any() else np.nan,
                    "sentences": int(counted.sum()),
                    "scored_tokens": int((test.sentences.lengths[counted] - 1).sum()),
                    "too_long": int((chosen & np.isnan(losses)).sum()),
                    "sample_seed": test.seed,
                }
            )
    return pd.DataFrame(rows).astype({"step": "Int64"})


def sentences(evaluation: Evaluation) -> pd.DataFrame:
    """A row for each sentence, with a column of perplexities for each checkpoint."""
    test = evaluation.test
    decode = Tokenizer(perturb.get(test.language).markers).decode
    parts = np.split(test.sentences.tokens, test.sentences.offsets[1:-1])
    columns = {
        member.name: np.exp(evaluation.sentence_losses(member))
        for member in evaluation.series.members
    }
    return pd.DataFrame(
        {
            "genre": pd.Categorical.from_codes(test.genre, test.genres),
            "number": test.number,
            "tokens": test.sentences.lengths,
            "sentence": [decode(part) for part in parts],
            "sample_seed": test.seed,
            **columns,
        }
    )


def surprisals(evaluation: Evaluation) -> pd.DataFrame:
    """A row for each checkpoint and token but the first of a sentence, with its surprisal."""
    test = evaluation.test
    lengths = test.sentences.lengths
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(sentence)) - test.sentences.offsets[sentence]
    scored = position > 0
    ids, which = np.unique(test.sentences.tokens[scored], return_inverse=True)
    pieces = Tokenizer(perturb.get(test.language).markers).pieces(ids)
    common = pd.DataFrame(
        {
            "genre": pd.Categorical.from_codes(test.genre, test.genres)[sentence[scored]],
            "number": test.number[sentence[scored]],
            "position": position[scored] + 1,
            "token_id": ids[which],
            "token": np.array(pieces, object)[which],
            "sample_seed": test.seed,
        }
    )
    parts = [
        common.assign(surprisal=evaluation.losses[member.name] / np.log(2).astype(np.float32))
        for member in evaluation.series.members
    ]
    names = [member.name for member in evaluation.series.members]
    table = pd.concat(parts, keys=names, names=["checkpoint"])
    return table.reset_index("checkpoint").reset_index(drop=True)


def _write_tables(evaluation: Evaluation) -> None:
    """The tables of one series, to its own folder."""
    settings = evaluation.settings
    with files.locked(evaluation.folder):
        _write(perplexities(evaluation), evaluation.folder / "perplexity.csv")
        for wanted, table in ((settings.sentences, sentences), (settings.surprisals, surprisals)):
            for kind in configurator.TABLE_FORMATS:
                path = evaluation.folder / f"{table.__name__}.{kind}"
                if wanted and kind == settings.table_format:
                    _write(table(evaluation), path)
                elif path.exists():
                    print(f"{path}: of an earlier command, left as it is")


def _write(table: pd.DataFrame, path: Path) -> None:
    with files.atomic_write(path) as file:
        if path.suffix == ".parquet":
            table.to_parquet(file, index=False)
        else:
            table.to_csv(file, index=False)
    print(f"{path}: {len(table):,} rows")


# Pictures


def _summarize(evaluations: list[Evaluation]) -> None:
    """The picture of all series, and if they are several a table of them together."""
    settings, folder = evaluations[0].settings, evaluations[0].folder
    if len(evaluations) > 1:
        folder = Path(settings.eval_dir)
        folder.mkdir(parents=True, exist_ok=True)
        _write(pd.concat([perplexities(e) for e in evaluations]), folder / "perplexity.csv")
    groups = _groups(evaluations)
    label = "test perplexity (geometric mean)"
    _draw(_curves(groups), label, folder / "perplexity.png", logarithmic=True)
    if settings.losses:
        _draw(_loss_curves(groups), "loss (nats per token)", folder / "losses.png")


def _draw(curves: list[Curve], label: str, path: Path, logarithmic: bool = False) -> None:
    picture.draw(curves, label, path, logarithmic)
    print(f"{path}: {'; '.join(curve.label for curve in curves)}")


def _groups(evaluations: list[Evaluation]) -> list[tuple[str, list[Evaluation]]]:
    """A label and the evaluations of each curve: of runs that differ in nothing but their seeds."""
    alike: dict[tuple[str, str], list[Evaluation]] = {}
    for e in evaluations:
        alike.setdefault((e.label, e.series.recipe), []).append(e)
    groups = []
    for (label, _), same in alike.items():
        are_seeds = len({e.series.seed for e in same}) == len(same)
        is_only = [other for other, _ in alike].count(label) == 1
        for group in [same] if are_seeds else [[e] for e in same]:
            places = ", ".join(e.series.place for e in group)
            groups.append((label if are_seeds and is_only else f"{label} ({places})", group))
    return groups


def _curves(groups: list[tuple[str, list[Evaluation]]]) -> list[Curve]:
    """A curve for each group; several seeds make their mean and its interval.

    A model without a step is a level line.
    """
    curves = []
    for style, (label, same) in enumerate(groups):
        runs = [
            {m.step: e.perplexity(m) for m in e.series.members if m.step is not None} for e in same
        ]
        curves += _mean(label, runs, style)
        for e in same:
            for m in (m for m in e.series.members if m.step is None):
                name = label if Path(e.series.place).name == m.name else f"{label}, {m.name}"
                curves.append(Curve(name, [], np.array([e.perplexity(m)]), style))
    return curves


def _loss_curves(groups: list[tuple[str, list[Evaluation]]]) -> list[Curve]:
    """The training and the validation loss of the runs, from their logs."""
    curves = []
    for style, (label, same) in enumerate(groups):
        if not same[0].series.language:  # no run: it has no log
            continue
        logs = [log.read(Path(e.series.place)) for e in same]
        for key, name in (("loss", "training"), ("val_loss", "validation")):
            runs = [{r["step"]: r[key] for r in records if r.get(key)} for records in logs]
            curves += _mean(f"{label}, {name}", runs, style, is_faint=key == "loss")
    return curves


def _mean(
    label: str, runs: list[dict[int, float]], style: int, is_faint: bool = False
) -> list[Curve]:
    """The mean over runs of values by step, at the steps that all have; none, if there is none."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if left_out := sorted(set().union(*runs) - set(steps)):
        print(f"{label}: not all seeds have the steps {', '.join(map(str, left_out))}: left out")
    if not steps:
        return []
    values = np.array([[run[step] for step in steps] for run in runs])
    return [picture.mean_curve(label, steps, values, style, is_faint)]


if __name__ == "__main__":
    configurator.run("evaluate", main, __doc__, configurator.load_several)
