"""Prepare, train, export, evaluate and report all runs of a study: languages x seeds.

    python study.py config/study_reverse.py               # on the GPUs or cores of this machine
    python study.py config/study_reverse.py --dry_run     # runs, commands, tokens and disk
    python study.py config/study_reverse.py --status      # how far each run is
    python study.py config/study_reverse.py --cluster=slurm --partition=NAME --hours=12
    python study.py config/study_reverse.py --publish=USER/PREFIX

Run the same command again to continue a study: what is done is not repeated, and what was
interrupted is resumed. --retry tries failed runs again. After Ctrl-C, every run saves its last
whole step. Tables, pictures and report.html are written to study_dir. See docs/study.md.
"""

import shutil
import sys

from impossible import files
from impossible.hub import publish as hub
from impossible.settings import UserError, guarded, unknown
from impossible.study import execute, plan, report
from impossible.study.execute import Stop
from impossible.study.plan import Plan

_LONGEST_WAIT = 3600.0  # seconds for another job that writes results


def main() -> None:
    """Execute a study, or show its plan or its state."""
    study = plan.read(sys.argv[1:], __doc__)
    if study.settings.status:
        report.show_states(study)
        return
    plan.require_same(study)
    if study.settings.dry_run:
        report.show_plan(study)
        return
    if study.settings.job:
        do_job(study)
        return
    for warning in plan.missing_controls(study):
        print(f"warning: {warning}")
    if study.settings.cluster == "slurm" and not shutil.which("sbatch"):
        raise UserError(
            "cluster = slurm, but there is no command sbatch. Run this on a login node of the "
            "cluster, or leave --cluster= out."
        )
    if study.settings.publish:
        hub.sign_in(study.repo(study.runs[0]))  # before days of work: this may fail
    study.locked_folder.mkdir(parents=True, exist_ok=True)
    stop = Stop()
    with files.locked(study.locked_folder):
        plan.write_configs(study.runs)
        for run in study.runs if study.settings.retry else ():
            run.error_file.unlink(missing_ok=True)
        if study.settings.cluster == "slurm":
            execute.submit(study)
        else:
            do_here(study, stop)
    finish(study, stop)


def do_here(study: Plan, stop: Stop) -> None:
    """Execute the unfinished runs on this machine, and write the results.

    Raises UserError if SLURM has jobs of the study, or if the preparation or evaluation fails.
    """
    if jobs := execute.jobs_of(study):
        raise UserError(
            f"SLURM has jobs of this study ({', '.join(jobs)}). Set --cluster=slurm, or cancel "
            "them with scancel."
        )
    if any(run.following for run in study.runs):
        execute.perform(study.preparing, stop)
    execute.execute(study.runs, execute.slots_of(study), stop)
    evaluate(study, stop)


def evaluate(study: Plan, stop: Stop) -> None:
    """Evaluate all finished runs together, and write the report.

    Raises UserError if the evaluation fails.
    """
    done = [run for run in study.runs if not run.following]
    try:
        if len(done) > 1 and not stop.count:
            execute.perform(study.joint(done), stop)
    finally:
        report.write(study)


def do_job(study: Plan) -> None:
    """Execute this SLURM job's part of a study (--job). Raises UserError if it fails."""
    stop, name = Stop(is_job=True), study.settings.job
    runs = [run for run in study.runs if run.name == name]
    if name == "prepare":
        execute.perform(study.preparing, stop)
    elif name == "results":
        # not `locked_folder`: runs can be submitted meanwhile, which cancels this job
        with files.locked(study.folder / "slurm", wait=_LONGEST_WAIT):
            evaluate(study, stop)
    elif runs:
        plan.write_configs(runs)
        execute.execute(runs, execute.slots_of(study), stop)
    else:
        raise unknown("job", name, ("prepare", "results", *(run.name for run in study.runs)))
    if stop.count:
        execute.requeue(is_run=bool(runs))
        sys.exit(execute.EXIT_STOPPED)
    for run in runs:
        if error := run.error:
            raise UserError(error)


def finish(study: Plan, stop: Stop) -> None:
    """Publish a study that is done, if asked to, or print how to continue.

    Raises UserError if runs have failed.
    """
    unfinished = [run for run in study.runs if run.following]
    failed = [run.name for run in unfinished if run.error]
    if failed and not stop.count:
        raise UserError(
            f"{len(failed)} of {len(study.runs)} runs failed: {', '.join(failed)}. The option "
            "--status shows the reasons; --retry tries the runs again with the same settings. To "
            "change a setting such as learning_rate, begin another study with --study_dir="
        )
    if study.settings.publish and not unfinished and not stop.count:
        publish(study, stop)
    elif study.settings.publish:
        print("Nothing is published yet. Run the same command again when all runs are done.")
    if stop.count or (unfinished and study.settings.cluster == "local"):
        print("interrupted. To continue, run the same command again.")
        sys.exit(execute.EXIT_STOPPED)


def publish(study: Plan, stop: Stop) -> None:
    """Publish all runs, which must be done, and gather them in a collection.

    Raises UserError if one of them could not be published.
    """
    repos = [study.repo(run) for run in study.runs]
    api = hub.sign_in(repos[0])
    for run in study.runs:
        execute.perform(study.publishing(run), stop)
    if not stop.count:
        namespace, title = study.settings.publish.split("/")
        address = hub.gather(api, namespace, title, repos, study.settings.private)
        print(f"all runs are in the collection {address}")


if __name__ == "__main__":
    guarded(main)
