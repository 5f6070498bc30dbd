"""Publishing a study: a repo for each run, and a collection of all of them."""

from impossible.hub import collection
from impossible.hub.publish import sign_in
from impossible.settings import UserError
from impossible.study import local, states
from impossible.study.local import Stop
from impossible.study.plan import Command, Plan


def publish(plan: Plan, stop: Stop) -> None:
    """Publish all runs, which must be done, and gather them in a collection.

    Raises UserError if one of them could not be published.
    """
    study = plan.settings
    api = sign_in(plan.repo(plan.runs[0]))
    for run in plan.runs:
        options = [f"--push_to_hub={plan.repo(run)}", *(["--private"] if study.private else [])]
        command = Command("convert_to_hf.py", [str(run.config)], options)
        if error := local.watch(command, run.output, stop):
            raise UserError(f"{plan.repo(run)} is not published: {error} (in {run.output})")
        print(f"{plan.repo(run)}: {states.last_line(run.output)}", flush=True)
    repos = [plan.repo(run) for run in plan.runs]
    namespace, title = study.publish.split("/")
    print(f"all of them: {collection.gather(api, namespace, title, repos, study.private)}")
