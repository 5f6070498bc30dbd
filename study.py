"""Languages x seeds from one command: prepare, train, export, evaluate and report all of them.

    python study.py config/study_reverse.py               # on the GPUs or cores of this machine
    python study.py config/study_reverse.py --dry_run     # runs, commands, time and disk
    python study.py config/study_reverse.py --status      # how far each run is
    python study.py config/study_reverse.py --cluster=slurm --partition=NAME --hours=12

The same command again goes on: what is done is not done again. Ctrl-C stops all runs after whole
steps. Results are written to study_dir; report.html shows them. See docs/study.md.
"""

import sys

from impossible import command, files
from impossible.errors import UserError
from impossible.study import local, plan


def main() -> None:
    """Execute a study, or show its plan or its state."""
    study = plan.read(sys.argv[1:], __doc__)
    study.folder.mkdir(parents=True, exist_ok=True)
    with files.locked(study.folder):
        plan.write_configs(study)
        stop = local.Stop()
        slots = local.slots_of(study)
        if error := local.prepare(study, stop):
            raise UserError(error)
        local.execute(study, slots, stop)


if __name__ == "__main__":
    command.guarded(main)
