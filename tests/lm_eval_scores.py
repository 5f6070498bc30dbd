"""Score minimal pairs with lm-evaluation-harness: EXPORT FILE.jsonl ... -> JSON on the last line.

Each file is named after a task of BLiMP or MultiBLiMP, which is taken as the harness has it but for
the data: {task: [[log-probability of the good sentence, of the bad one, 1.0 if right], ...]}.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"

import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml


def main(export: str, *files: str) -> None:
    tasks = {}
    for file in map(Path, files):
        (settings,) = Path(lm_eval.__file__).parent.glob(f"tasks/*blimp/{file.stem}.yaml")
        data = {"dataset_path": "json", "dataset_name": None}
        data["dataset_kwargs"] = {"data_files": {"train": str(file)}}
        tasks[file.stem] = ConfigurableTask(config=load_yaml(settings) | data)
    model = HFLM(pretrained=export, device="cpu", dtype="float32", batch_size=16)
    loaded = TaskManager(include_defaults=False).load(list(tasks.values()))
    results = evaluate(model, loaded, bootstrap_iters=0, log_samples=True)
    scores = {}
    for name, task in tasks.items():
        samples = sorted(results["samples"][task.config.task], key=lambda s: s["doc_id"])
        scores[name] = [
            [*(float(score) for score, _ in s["filtered_resps"]), s["acc"]] for s in samples
        ]
    print(json.dumps(scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
