"""Test perplexity and other measures against training step, for runs or for models on the Hub.

    python eval.py                                          # out/partial_reverse
    python eval.py config/no_reverse.py config/partial_reverse.py config/full_reverse.py
    python eval.py --test_language=no_reverse               # on another language's sentences
    python eval.py --pairs=blimp                            # minimal pairs, made impossible
    python eval.py --model=USER/NAME --revisions=checkpoint-100,checkpoint-200
    torchrun --nproc_per_node=2 eval.py config/partial_reverse.py

Writes perplexity.csv (one row for each checkpoint and genre) and perplexity.png to
out_dir/evaluation. The joint results of several runs, and those of exported models and of models
from the Hub, go to eval_dir. Scores are saved, so the same command resumes an interrupted
evaluation. See docs/evaluation.md.
"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH is set

from impossible import checkpoint, distributed
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
from impossible.settings import Settings, UserError, guarded, load

PERPLEXITY = "test perplexity (geometric mean)"


def main(runs: list[Settings]) -> None:
    """Evaluate the series of each config file, and write tables and pictures."""
    world = distributed.join_world()
    device = distributed.pick_device(runs[0].device, world)
    if device.type == "cpu":
        distributed.keep_freed_memory()
    name, measure = measure_of(runs[0])
    for settings in runs if name in ("perplexity", "markers") else ():  # before a Hub is asked
        results.read_meta(settings)
    folder_of = measure.folder_of if measure else folder_on_test_split
    found = find(runs, folder_of)
    joint = Path(runs[0].eval_dir) / (measure.name_of(runs[0]) if measure else "")
    for folder in [*(folder_of(*one) for one in found), *[joint] * (len(found) > 1)]:
        tables.require_own(folder, name)
    distributed.connect(world, device)
    members = [[(m.name, m.commit) for m in series.members] for _, series in found]
    if any(others != members for others in world.gather(members)):
        raise UserError(
            "the checkpoints changed during the evaluation. Run the same command again."
        )
    evaluate = measure.evaluate if measure else results.evaluate
    evaluations = [evaluate(settings, series, world, device) for settings, series in found]
    if name == "pairs":
        evaluations = minimal_pairs.on_common(evaluations)
    if world.is_first:
        write(evaluations, joint, name, measure)
    world.gather(None)  # all wait for the first
    distributed.disconnect(world)


def measure_of(settings: Settings) -> tuple[str, Measure | None]:
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
            over_seeds=pictures.share_interval,
            name_of=minimal_pairs.name_of,
        )
    if settings.markers:
        return "markers", Measure(
            folder_on_test_split,
            markers.evaluate,
            markers.table,
            MarkerEvaluation.difference,
            MarkerEvaluation.interval,
            "difference in surprisal at the marker (bits)",
            of_sentences={"surprisal_difference": MarkerEvaluation.differences},
        )
    if settings.stimuli:
        return "stimuli", Measure(
            stimuli.folder_of, stimuli.evaluate, stimuli.table, name_of=stimuli.name_of
        )
    return "perplexity", None


def find(
    runs: list[Settings], folder_of: Callable[[Settings, Series], Path]
) -> list[tuple[Settings, Series]]:
    """All series, each with its settings. Raises UserError for a run that is named twice.

    folder_of: the folder for the results of a series.
    """
    found: dict[Path, tuple[Settings, Series]] = {}
    for settings in runs:
        for series in all_series.find(settings, all_series.checkpoints(settings.revisions)):
            folder = folder_of(settings, series)
            if folder in found and series.language:
                raise UserError(
                    f"the run in {series.place} is named twice. Give each run an out_dir of its "
                    "own, or leave one of the config files out."
                )
            found[folder] = (settings, series)
    named = all_series.told_apart([series for _, series in found.values()])
    return [(settings, s) for (settings, _), s in zip(found.values(), named, strict=True)]


def folder_on_test_split(settings: Settings, series: Series) -> Path:
    """The folder for the perplexities of a series."""
    test = results.read_meta(settings)
    sha256 = test.splits["test"]["sha256"]
    return results.folder_of(settings, series, test.language, sha256)


def write(evaluations: list[OfSeries], joint: Path, name: str, measure: Measure | None) -> None:
    """The results of each series in its own folder; of several series, also their joint ones."""
    tables.tell_of_revisions(evaluations[0].settings)
    groups = [(e.folder, [e]) for e in evaluations]
    for path, some in [*groups, *[(joint, evaluations)] * (len(groups) > 1)]:
        with tables.results_in(path, name, some) as folder:
            if measure:
                write_measure(folder, some, name, measure)
            else:
                write_perplexities(folder, some)


def write_perplexities(folder: tables.Folder, evaluations: list[Evaluation]) -> None:
    """Perplexities, losses, differences to controls, and all else that the settings ask for."""
    settings = evaluations[0].settings
    folder.table("perplexity", [tables.together(map(tables.perplexities, evaluations))])
    for wanted, parts in (
        (settings.sentences, tables.sentences),
        (settings.surprisals, tables.surprisals),
    ):
        if wanted:
            found = (part for e in evaluations for part in parts(e))
            folder.table(parts.__name__, found)
    if settings.entropies:
        folder.table("entropies", [entropies.table(evaluations)])
    groups = curves.groups_of(evaluations)
    drawn = curves.curves_of(groups, Evaluation.perplexity)
    folder.picture("perplexity", drawn, PERPLEXITY, logarithmic=True)
    if drawn := curves.loss_curves(groups):
        folder.picture("losses", drawn, "loss (nats per token)")
    pairs = differences.pairs_of(evaluations)
    found = differences.table(pairs, differences.LOG_PERPLEXITIES)
    if len(found):
        folder.table("differences", [found])
        label = "difference in log-perplexity (nats)"
        styles = {name: number for number, (name, _) in enumerate(groups)}
        folder.picture("differences", differences.curves(found, styles), label, level=0.0)


def write_measure(
    folder: tables.Folder, evaluations: list[OfSeries], name: str, measure: Measure
) -> None:
    """One table and one picture; of several series, also means over seeds and differences."""
    folder.table(name, [tables.together(map(measure.table, evaluations))])
    if name == "pairs" and len(evaluations) == 1:
        folder.table("pair_items", [minimal_pairs.items(evaluations[0])])
    if measure.value is None:
        return
    groups = curves.groups_of(evaluations)
    drawn = curves.curves_of(groups, measure.value, measure.interval, measure.over_seeds)
    folder.picture(name, drawn, measure.label, level=measure.level)
    if len(evaluations) > 1 and len(found := curves.means(groups, drawn)):
        folder.table(f"{name}_means", [found])
    if measure.of_sentences:
        found = differences.table(differences.pairs_of(evaluations), measure.of_sentences)
        if len(found):
            folder.table(f"{name}_differences", [found])


if __name__ == "__main__":
    guarded(lambda: main(load("eval.py", sys.argv[1:], checkpoint.settings_of_run, __doc__)))
