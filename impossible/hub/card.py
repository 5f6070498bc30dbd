"""The model card of an export: card.md.j2, filled with facts from the files of the run.

All statements in the card come from the checkpoint (settings, meta.json of the data, training
sessions) and from the log of the run, so the card describes what the run actually did.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

import perturb
from impossible import checkpoint
from impossible.checkpoint import Checkpoint
from impossible.log import duration
from impossible.settings import RECIPE, Settings
from impossible.text import corpus, natural

NAME = "README.md"
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["commas"] = "{:,}".format
_TEMPLATES.filters["nats"] = lambda loss: "" if loss is None else f"{loss:.4f}"
# The languages of the paper, by their names in perturb.py.
OF_PAPER = (
    *("no_reverse", "partial_reverse", "full_reverse", "no_hop", "token_hop", "word_hop"),
    *("no_shuffle", "nondeterministic_shuffle", "even_odd_shuffle"),
    *("deterministic_shuffle_s21", "deterministic_shuffle_s57", "deterministic_shuffle_s84"),
    *("local_shuffle_w3", "local_shuffle_w5", "local_shuffle_w10"),
)
# The settings that a run of the published recipe is free to choose.
_FREE = ("language", "seed", "init_seed", "order_seed", "position_embeddings", "dtype")
_SEGMENTERS = {
    "annotations": "The sentences and verbs are those of the annotated files.",
    "sentencex": "`sentencex` found the sentences in each line.",
    "line": "Each line is a sentence.",
}


def text(
    checkpoint: Checkpoint,
    records: list[dict[str, Any]],
    license_name: str,
    repo: str = "",
    measured: Sequence[str] = (),
) -> str:
    """The text of README.md for one revision.

    records: the log of the run. license_name: the Hub's identifier of a licence. repo: USER/NAME;
    if empty, the example in the card loads the folder of the card. measured: the names of the log,
    tables and pictures that are published beside the model.
    """
    source = corpus.about(checkpoint.data["corpus"], checkpoint.data["corpus_version"])
    return _TEMPLATES.get_template("card.md.j2").render(
        _facts(checkpoint, source, records),
        metadata=_metadata(checkpoint, source, license_name, repo),
        license_name=license_name,
        repo=repo,
        measured=measured,
    )


def _facts(c: Checkpoint, source: corpus.About, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The facts about a checkpoint and its run, by their names in the template."""
    s, data, language = c.settings, c.data, perturb.get(c.data["language"])
    steps = checkpoint.kept_steps(s, data)
    val_blocks = data["splits"]["val"]["tokens"] // s.block_size
    devices = (f"{n} x {name}" for x in c.sessions for name, n in x["devices"].items())
    return {
        "step": c.step,
        "settings": s,
        "data": data,
        "language": language,
        "source": source,
        "is_of_paper": data["language"] in OF_PAPER,
        "val_loss": c.val_loss,
        "perplexity": math.exp(c.val_loss),
        "val_blocks": val_blocks,
        "read_blocks": min(s.eval_blocks or val_blocks, val_blocks),
        "steps": list(steps),
        "babylm_branches": [branch for branches in steps.values() for branch in branches],
        "english": perturb.EXAMPLE,
        "example": _example(language),
        "text_language": natural.name_of(data.get("text_language", "en")),
        "tokenizer": data.get("tokenizer"),
        "markers": ", ".join(f"{marker} = {token}" for marker, token in data["markers"].items()),
        "segmenter": _SEGMENTERS[data["segmenter"]],
        "annotator": _annotator(data),
        "precision": _precision(c),
        "devices": dict.fromkeys(devices),
        "kernels": dict.fromkeys(x["attention"] for x in c.sessions if "attention" in x),
        "sessions": c.sessions,
        # A session that crashed counts up to its last checkpoint, without the steps it lost.
        "time": duration(60 * sum(session["minutes"] for session in c.sessions)),
        "records": [record for record in records if record["step"] in steps],
        "changed": _changed(s),
    }


def _metadata(c: Checkpoint, source: corpus.About, license_name: str, repo: str) -> str:
    """The YAML that the Hub reads."""
    slug = c.data["language"].replace("_", "-")
    variant = "" if c.settings.position_embeddings else "-no-pos"
    perplexity = EvalResult(
        task_type="text-generation",
        task_name="Language modelling",
        dataset_type=source.dataset or slug,
        dataset_name=f"{perturb.get(c.data['language']).title} of {source.name}",
        dataset_split="validation",
        metric_type="perplexity",
        metric_name="Validation perplexity",
        metric_value=round(math.exp(c.val_loss), 4),
    )
    data = ModelCardData(
        model_name=repo.partition("/")[2] or f"{slug}-gpt2{variant}",
        language=c.data.get("text_language", "en"),
        license=license_name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", "impossible-languages", slug, *source.tags],
        datasets=[source.dataset] if source.dataset else None,
        eval_results=[perplexity],
    )
    return data.to_yaml()


@functools.cache
def _example(language: perturb.Language) -> str:
    return perturb.show(language, perturb.EXAMPLE)


def _annotator(data: dict[str, Any]) -> str:
    """The model that found a *Hop language's verbs, with versions; empty if there is none."""
    annotator = data.get("annotator") or {}
    versions = map(" ".join, annotator.get("versions", {}).items())
    return ", ".join(filter(None, [annotator.get("model"), *versions]))


def _precision(c: Checkpoint) -> str:
    """The dtype of matrix products; on GPUs that support TF32, float32 means TF32."""
    on_cpu = all(name.startswith("cpu") for x in c.sessions for name in x["devices"])
    dtype = c.settings.dtype
    note = "" if on_cpu or dtype != "float32" else " (TF32 for matrix products, if supported)"
    return dtype + note


def _changed(settings: Settings) -> list[str]:
    """The settings that differ from the published recipe, each with both values."""
    published = Settings()
    return [
        f"{name} = {value} (published: {getattr(published, name) or 'none'})"
        for name, value in settings.read_by("train.py").items()
        if name in RECIPE and name not in _FREE and value != getattr(published, name)
    ]
