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

from __future__ import annotations

if __name__ == "evaluate":  # `import evaluate` means the package of Hugging Face
    import shadow

    shadow.hand_over("evaluate")
else:
    from pathlib import Path

    import numpy as np
    import pandas as pd

    import checkpoint
    import configurator
    import device as devices
    import evaluation
    import log
    import picture
    import tables
    from configurator import Settings
    from errors import UserError
    from evaluation import Evaluation
    from picture import Curve
    from series import Series, find


def main(runs: list[Settings]) -> None:
    """Evaluate the series of each config file, and write tables and pictures."""
    world = devices.join_world()
    device = devices.pick_device(runs[0].device, world)
    if device.type == "cpu":
        devices.keep_freed_memory()
    for settings in runs:  # before a Hub is asked
        evaluation.read_meta(settings)
    found = _find(runs)
    devices.connect(world, device)
    members = [[(m.name, m.commit) for m in series.members] for _, series in found]
    if any(others != members for others in world.gather(members)):
        raise UserError("the checkpoints changed meanwhile. Type the same command again.")
    done = [evaluation.evaluate(settings, series, world, device) for settings, series in found]
    if world.is_first:
        for one in done:
            tables.write_all(one)
        _summarize(done)
    world.gather(None)  # all wait for the first
    devices.disconnect(world)


def _find(runs: list[Settings]) -> list[tuple[Settings, Series]]:
    """All series, each with its settings. Raises UserError for a run that is named twice."""
    found: dict[Path, tuple[Settings, Series]] = {}
    for settings in runs:
        for series in find(settings):
            test = evaluation.read_meta(settings)
            sha256 = test.splits["test"]["sha256"]
            folder = evaluation.folder_of(series, test.language, sha256)
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


# Pictures


def _summarize(evaluations: list[Evaluation]) -> None:
    """The picture of all series, and if they are several a table of them together."""
    settings, folder = evaluations[0].settings, evaluations[0].folder
    if len(evaluations) > 1:
        folder = Path(settings.eval_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tables.write(
            pd.concat([tables.perplexities(e) for e in evaluations]), folder / "perplexity.csv"
        )
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
    alike: dict[tuple[str, str, str], list[Evaluation]] = {}
    for e in evaluations:
        alike.setdefault((e.label, e.series.recipe, e.test.split_sha256), []).append(e)
    named = {e.series.place for e in evaluations}
    are_shared = len({e.test.data_dir for e in evaluations}) > len(named)
    groups = []
    for (label, _, _), same in alike.items():
        are_seeds = len({e.series.seed for e in same}) == len(same)
        is_only = [other for other, _, _ in alike].count(label) == 1
        for group in [same] if are_seeds else [[e] for e in same]:
            places = ", ".join(e.series.place for e in group)
            if are_shared:
                places += f", on {group[0].test.data_dir}"
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
    configurator.run(
        "evaluate", main, __doc__, configurator.load_several, checkpoint.settings_of_run
    )
