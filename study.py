"""Languages x seeds from one command: prepare, train, export, evaluate and report all of them.

    python study.py config/study_reverse.py               # on the GPUs or cores of this machine
    python study.py config/study_reverse.py --dry_run     # runs, commands, time and disk
    python study.py config/study_reverse.py --status      # how far each run is
    python study.py config/study_reverse.py --cluster=slurm --partition=NAME --hours=12
    python study.py config/study_reverse.py --publish=USER/PREFIX

Run the same command again to continue a study: what is done is not repeated, and what was
interrupted is resumed. --retry tries again what failed. At Ctrl-C, every run finishes its current
step and saves it. Tables, pictures and report.html are written to study_dir. See docs/study.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH is set

from impossible import files
from impossible.hub.publish import sign_in
from impossible.settings import UserError, guarded
from impossible.study import local, overview, plan, publishing, results, slurm, states
from impossible.study.plan import Plan


def main() -> None:
    """Execute a study, or show its plan or its state."""
    study = plan.read(sys.argv[1:], __doc__)
    if study.settings.status:
        overview.show_states(study)
        return
    plan.require_same(study)
    if study.settings.dry_run:
        overview.show_plan(study)
        return
    for warning in plan.missing_controls(study):
        print(f"warning: {warning}")
    if study.settings.cluster == "slurm":
        slurm.require(study)
    if study.settings.publish:
        sign_in(study.repo(study.runs[0]))  # before days of work: this may fail
    study.folder.mkdir(parents=True, exist_ok=True)
    with files.locked(study.folder):
        plan.write_configs(study)
        if study.settings.retry:
            for run in study.runs:
                states.forget_failure(run)
        if study.settings.cluster == "slurm":
            slurm.submit(study)
        else:
            execute(study)
    finish(study)


def execute(study: Plan) -> None:
    """Execute on this machine what is left of a study, and write the results.

    Raises UserError if SLURM executes it.
    """
    if alive := slurm.jobs(study):
        raise UserError(
            f"SLURM has jobs of this study ({', '.join(alive)}). Set --cluster=slurm, or cancel "
            "them with scancel."
        )
    stop, output = local.Stop(), study.folder / states.PREPARING
    is_unfinished = any(states.following(study, run) for run in study.runs)
    if is_unfinished and (error := local.watch(study.preparing, output, stop)):
        if stop.count:
            sys.exit(states.EXIT_STOPPED)
        raise UserError(f"the data could not be prepared: {error} (in {output})")
    local.execute(study, stop)
    results.write(study, stop)
    if stop.count:
        print("stopped, as requested. To continue, run the same command again.")
        sys.exit(states.EXIT_STOPPED)


def finish(study: Plan) -> None:
    """Say what is missing; if nothing is, publish the study if asked to.

    Raises UserError if runs have failed.
    """
    left = [run for run in study.runs if states.following(study, run)]
    if failed := [run.name for run in left if states.read(run.folder).failed]:
        raise UserError(
            f"{len(failed)} of {len(study.runs)} runs failed: {', '.join(failed)}. The option "
            "--status shows the reasons, and --retry tries them again with the same settings. To "
            "change a setting such as learning_rate, begin another study with --study_dir="
        )
    if study.settings.publish and not left:
        publishing.publish(study, local.Stop())
    elif study.settings.publish:
        print("Nothing is published yet. Run the same command again when all runs are done.")
    if left and study.settings.cluster == "local":
        print(f"{len(left)} run(s) interrupted. To resume, run the same command again.")
        sys.exit(states.EXIT_STOPPED)


if __name__ == "__main__":
    guarded(main)
