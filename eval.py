"""Evaluate the checkpoints of runs, or models on the Hub: test perplexity, minimal pairs and more.

    python eval.py                                          # out/partial_reverse
    python eval.py config/no_reverse.py config/partial_reverse.py config/full_reverse.py
    python eval.py --test_language=no_reverse               # on another language's sentences
    python eval.py --pairs=blimp                            # minimal pairs, perturbed
    python eval.py --model=USER/NAME --revisions=checkpoint-100,checkpoint-200
    torchrun --nproc_per_node=2 eval.py config/partial_reverse.py

Writes perplexity.csv (one row for each checkpoint and genre) and perplexity.png to
out_dir/evaluation. The joint results of several runs, and those of exported models and of models
from the Hub, go to eval_dir. Scores are saved, so the same command resumes an interrupted
evaluation. See docs/evaluation.md.
"""

import dataclasses
import sys
from pathlib import Path

from impossible import checkpoint, distributed, records
from impossible.evaluation import measures, models
from impossible.evaluation.measures import MEASURES
from impossible.evaluation.scores import Scores, Source, score
from impossible.settings import Settings, UserError, guarded, load


def main(runs: list[Settings]) -> None:
    """Evaluate the series of each config file, and write tables and pictures."""
    world = distributed.join_world()
    device = distributed.pick_device(runs[0].device, world)
    if device.type == "cpu":
        distributed.keep_freed_memory()
    name = measures.name_of(runs[0])
    measure = MEASURES[name]
    sources = [measure.source(settings) for settings in runs]  # first: it checks the test data
    unscored = find(runs, sources)
    joint = Path(runs[0].eval_dir) / sources[0].name
    for folder in [*(s.folder for s in unscored), *[joint] * (len(unscored) > 1)]:
        records.require_own(folder, measures.record_of(folder, name), [f"{name}.csv"])
    distributed.connect(world, device)
    identities = [[(m.name, m.commit) for m in s.series.models] for s in unscored]
    if any(others != identities for others in world.gather(identities)):
        raise UserError(
            "the checkpoints changed during the evaluation. Run the same command again."
        )
    scores = [
        score(s, measure.sequences(s.settings, s.series), measure.result, world, device)
        for s in unscored
    ]
    if world.is_first:
        write(measure.together(scores), joint, name)
    world.gather(None)  # all wait for the first
    distributed.disconnect(world)


def find(runs: list[Settings], sources: list[Source]) -> list[Scores]:
    """The scores of all series that the runs name, still without sequences and losses.

    Raises UserError for a run that is named twice.
    """
    unscored: dict[Path, Scores] = {}
    for settings, source in zip(runs, sources, strict=True):
        for series in models.find(settings, models.checkpoints(settings.revisions)):
            scores = Scores(settings, series, source)
            if scores.folder in unscored and series.language:
                raise UserError(
                    f"the run in {series.place} is named twice. Give each run an out_dir of its "
                    "own, or leave one of the config files out."
                )
            unscored[scores.folder] = scores
    named = models.with_distinct_names([s.series for s in unscored.values()])
    pairs = zip(unscored.values(), named, strict=True)
    return [dataclasses.replace(s, series=series) for s, series in pairs]


def write(scores: list[Scores], joint: Path, name: str) -> None:
    """Write the results of each series to its own folder, and joint results of several to `joint`.

    name: the name of the measure.
    """
    if scores[0].settings.revisions:
        print("the tables contain only these revisions; without --revisions= they contain all")
    for s in scores:
        measures.write(s.folder, name, [s])
    if len(scores) > 1:
        measures.write(joint, name, scores)


if __name__ == "__main__":
    guarded(lambda: main(load("eval.py", sys.argv[1:], checkpoint.settings_of_run, __doc__)))
