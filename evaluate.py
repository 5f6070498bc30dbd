"""Test perplexity and other measures against training step, for runs or for models on the Hub.

    python evaluate.py                                          # out/partial_reverse
    python evaluate.py config/no_reverse.py config/partial_reverse.py config/full_reverse.py
    python evaluate.py --test_language=no_reverse               # on another language's sentences
    python evaluate.py --pairs=blimp                            # minimal pairs, made impossible
    python evaluate.py --model=USER/NAME --revisions=checkpoint-100,checkpoint-200
    torchrun --nproc_per_node=2 evaluate.py config/partial_reverse.py

Writes perplexity.csv (one row for each checkpoint and genre) and perplexity.png to
out_dir/evaluation. The joint results of several runs, and those of exported models and of models
from the Hub, go to eval_dir. Scores are saved, so the same command resumes an interrupted
evaluation. See docs/evaluation.md.
"""

from __future__ import annotations

if __name__ == "evaluate":  # `import evaluate` means Hugging Face's package of that name
    from impossible import shadow

    shadow.hand_over("evaluate")
else:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    import pandas as pd

    from impossible import command, files
    from impossible.errors import UserError
    from impossible.evaluation import (
        curves,
        differences,
        entropies,
        markers,
        minimal_pairs,
        pictures,
        results,
        stimuli,
        tables,
    )
    from impossible.evaluation import series as all_series
    from impossible.evaluation.markers import MarkerEvaluation
    from impossible.evaluation.minimal_pairs import PairEvaluation
    from impossible.evaluation.results import Evaluation, Measure, OfSeries
    from impossible.evaluation.series import Series
    from impossible.settings import Evaluate
    from impossible.training import checkpoint, log, processes
    from impossible.training import device as devices


PERPLEXITY = "test perplexity (geometric mean)"


def main(runs: list[Evaluate]) -> None:
    """Evaluate the series of each config file, and write tables and pictures."""
    world = processes.join_world()
    device = devices.pick_device(runs[0].device, world)
    if device.type == "cpu":
        devices.keep_freed_memory()
    name, measure = measure_of(runs[0])
    for settings in runs if name in ("perplexity", "markers") else ():  # before a Hub is asked
        results.read_meta(settings)
    found = find(runs, measure.folder_of if measure else folder_on_test_split)
    processes.connect(world, device)
    members = [[(m.name, m.commit) for m in series.members] for _, series in found]
    if any(others != members for others in world.gather(members)):
        raise UserError(
            "the checkpoints changed during the evaluation. Run the same command again."
        )
    evaluate = measure.evaluate if measure else results.evaluate
    evaluations = [evaluate(settings, series, world, device) for settings, series in found]
    if name == "pairs":
        evaluations = minimal_pairs.on_common(evaluations)
    if world.is_first and measure:
        write(evaluations, name, measure)
    elif world.is_first:
        for evaluation in evaluations:
            tables.write_all(evaluation)
        summarize(evaluations)
    world.gather(None)  # all wait for the first
    processes.disconnect(world)


def measure_of(settings: Evaluate) -> tuple[str, Measure | None]:
    """What the settings ask for in place of perplexities, and the name of its table."""
    if settings.pairs:
        return "pairs", Measure(
            minimal_pairs.folder_of,
            minimal_pairs.evaluate,
            minimal_pairs.table,
            PairEvaluation.accuracy,
            PairEvaluation.interval,
            "share of minimal pairs right (thin line: chance)",
            level=0.5,
        )
    if settings.markers:
        return "markers", Measure(
            folder_on_test_split,
            markers.evaluate,
            markers.table,
            MarkerEvaluation.difference,
            MarkerEvaluation.interval,
            "difference in surprisal at the marker (bits)",
        )
    if settings.stimuli:
        return "stimuli", Measure(stimuli.folder_of, stimuli.evaluate, stimuli.table)
    return "perplexity", None


def find(
    runs: list[Evaluate], folder_of: Callable[[Evaluate, Series], Path]
) -> list[tuple[Evaluate, Series]]:
    """All series, each with its settings. Raises UserError for a run that is named twice.

    folder_of: the folder for the results of a series.
    """
    found: dict[Path, tuple[Evaluate, Series]] = {}
    for settings in runs:
        for series in all_series.find(settings, all_series.checkpoints(settings.revisions)):
            folder = folder_of(settings, series)
            if folder in found and series.language:
                raise UserError(
                    f"the run in {series.place} is named twice. Give each run an out_dir of its "
                    "own, or leave one of the config files out."
                )
            found[folder] = (settings, series)
            if settings.losses and series.language and not log.read(Path(series.place)):
                raise UserError(f"{series.place} has no {log.NAME}. Leave --losses out.")
    if runs[0].losses and not any(series.language for _, series in found.values()):
        raise UserError("exported models and models from the Hub have no log. Leave --losses out.")
    return list(found.values())


def folder_on_test_split(settings: Evaluate, series: Series) -> Path:
    """The folder for the perplexities of a series."""
    test = results.read_meta(settings)
    sha256 = test.splits["test"]["sha256"]
    return results.folder_of(settings, series, test.language, sha256)


def summarize(evaluations: list[Evaluation]) -> None:
    """Draw all series in one picture; if there are several, also write joint tables."""
    settings, folder = evaluations[0].settings, evaluations[0].folder
    if len(evaluations) > 1:
        folder = Path(settings.eval_dir)
        folder.mkdir(parents=True, exist_ok=True)
        together = pd.concat([tables.perplexities(e) for e in evaluations])
        tables.write(together, folder / "perplexity.csv")
        for e in evaluations:  # each also has its own picture, to be published with it
            pictures.draw(perplexity_curves([e]), PERPLEXITY, e.folder / "perplexity.png", True)
    groups = curves.groups_of(evaluations)
    found = curves.curves_of(groups, Evaluation.perplexity)
    draw(found, PERPLEXITY, folder / "perplexity.png", logarithmic=True)
    found = differences.table(differences.pairs_of(evaluations))
    if len(found):
        tables.write(found, folder / "differences.csv")
        label = "difference in log-perplexity (nats)"
        styles = {name: number for number, (name, _) in enumerate(groups)}
        draw(differences.curves(found, styles), label, folder / "differences.png", level=0.0)
    elif (folder / "differences.csv").exists():
        print(f"{folder / 'differences.csv'}: written by an earlier command, left unchanged")
    if settings.entropies:
        tables.write(entropies.table(evaluations), folder / "entropies.csv")
    if settings.losses:
        draw(curves.loss_curves(groups), "loss (nats per token)", folder / "losses.png")


def perplexity_curves(evaluations: list[Evaluation]) -> list[pictures.Curve]:
    """A curve of perplexities for each series, or for several seeds."""
    return curves.curves_of(curves.groups_of(evaluations), Evaluation.perplexity)


def write(evaluations: list[OfSeries], name: str, measure: Measure) -> None:
    """The table of each series, one picture of all, and of several series a joint table."""
    settings, folder = evaluations[0].settings, evaluations[0].folder
    tables.tell_of_revisions(settings)
    for e in evaluations:
        with files.locked(e.folder):
            tables.write(measure.table(e), e.folder / f"{name}.csv")
            if name == "pairs":
                tables.write(minimal_pairs.items(e), e.folder / "pair_items.csv")
    if len(evaluations) > 1:
        folder = evaluations[0].joint_folder
        folder.mkdir(parents=True, exist_ok=True)
        tables.write(pd.concat(map(measure.table, evaluations)), folder / f"{name}.csv")
    if measure.value is None:
        return
    groups = curves.groups_of(evaluations)
    drawn = curves.curves_of(groups, measure.value, measure.interval)
    draw(drawn, measure.label, folder / f"{name}.png", level=measure.level)


def draw(found: list[pictures.Curve], label: str, path: Path, **options: Any) -> None:
    """Write a picture of some curves, and print their labels. options: of pictures.draw."""
    pictures.draw(found, label, path, **options)
    print(f"{path}: {'; '.join(curve.label for curve in found)}")


if __name__ == "__main__":
    command.run_several(Evaluate, main, __doc__, checkpoint.settings_of_run)
