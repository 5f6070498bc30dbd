"""The model card of an export, generated from the files of the run.

All statements in the card come from the checkpoint (settings, meta.json of the data, training
sessions) and from the log of the run, so the card describes what the run actually did.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

import perturb
from impossible import checkpoint
from impossible.checkpoint import Checkpoint
from impossible.log import duration
from impossible.settings import RECIPE, Settings
from impossible.text import corpus

NAME = "README.md"
_PAPER = "https://aclanthology.org/2024.acl-long.787"
_CITATION = """@inproceedings{kallini-etal-2024-mission,
  title = "Mission: Impossible Language Models",
  author = "Kallini, Julie and Papadimitriou, Isabel and Futrell, Richard and Mahowald, Kyle and
    Potts, Christopher",
  booktitle = "Proceedings of the 62nd Annual Meeting of the Association for Computational
    Linguistics (Volume 1: Long Papers)",
  year = "2024",
  doi = "10.18653/v1/2024.acl-long.787",
  url = "https://aclanthology.org/2024.acl-long.787"
}"""
# The languages of the paper, by their names in perturb.py. All others are somebody's own.
_OF_PAPER = (
    *("no_reverse", "partial_reverse", "full_reverse", "no_hop", "token_hop", "word_hop"),
    *("no_shuffle", "nondeterministic_shuffle", "even_odd_shuffle"),
    *("deterministic_shuffle_s21", "deterministic_shuffle_s57", "deterministic_shuffle_s84"),
    *("local_shuffle_w3", "local_shuffle_w5", "local_shuffle_w10"),
)
# What a run of the published recipe may choose for itself.
_FREE = ("language", "seed", "init_seed", "order_seed", "position_embeddings", "dtype")


def text(
    checkpoint: Checkpoint,
    records: list[dict[str, Any]],
    license_name: str,
    repo: str = "",
    measured: Sequence[str] = (),
) -> str:
    """The README.md of one revision.

    records: the log of the run. license_name: an identifier of the Hub. repo: USER/NAME; if empty,
    the example in the card loads the folder of the card. measured: names of the log, tables and
    pictures that are published beside the model.
    """
    source = corpus.about(checkpoint.data["corpus"], checkpoint.data["corpus_version"])
    parts = [
        f"---\n{_metadata(checkpoint, source, license_name, repo)}\n---",
        _introduction(checkpoint, source),
        _loading(checkpoint, repo),
        _language(checkpoint),
        _data(checkpoint, source),
        _training(checkpoint),
        _curve(checkpoint, records),
        _measured(measured),
        _differences(checkpoint, source),
        _sources(checkpoint, source, license_name),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


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
        language="en",
        license=license_name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", "impossible-languages", slug, *source.tags],
        datasets=[source.dataset] if source.dataset else None,
        eval_results=[perplexity],
    )
    return data.to_yaml()


def _title(c: Checkpoint) -> str:
    variant = "" if c.settings.position_embeddings else " without position embeddings"
    return f"{perturb.get(c.data['language']).title} GPT-2{variant}"


def _introduction(c: Checkpoint, source: corpus.About) -> str:
    language = perturb.get(c.data["language"])
    loss = f"{c.val_loss:.4f} nats per token (perplexity {math.exp(c.val_loss):,.2f})"
    s = c.settings
    origin = "a language of" if c.data["language"] in _OF_PAPER else "a language that is not in"
    return f"""# {_title(c)}

A GPT-2 language model trained from scratch on {language.title}, {origin}
[Kallini et al. 2024]({_PAPER}): what happens to every sentence of {source.name} before training is
{language.summary}. {s.n_layer} layers, {s.n_head} heads, width {s.n_embd}, context
{s.block_size:,}.

**This revision:** after step {c.step:,} of {s.max_steps:,}. Validation loss: {loss}, on
{_validated(c)}."""


def _validated(c: Checkpoint) -> str:
    s = c.settings
    blocks = c.data["splits"]["val"]["tokens"] // s.block_size
    read = min(s.eval_blocks or blocks, blocks)
    return f"the first {read:,} of {blocks:,} blocks of the validation split"


def _of_words(steps: dict[int, list[str]]) -> str:
    """The branches that are named after the words that the model had seen."""
    branches = [branch for found in steps.values() for branch in found]
    if not branches:
        return ""
    return (
        f" The branches `{branches[0]}` to `{branches[-1]}` hold the checkpoints after so many "
        "millions of words."
    )


def _loading(c: Checkpoint, repo: str) -> str:
    s = c.settings
    if repo:
        steps = checkpoint.kept_steps(s, c.data)
        where = f'model_id, revision = "{repo}", "checkpoint-{c.step}"'
        arguments = "model_id, revision=revision"
        note = (
            f"There are {len(steps)} revisions, from `checkpoint-{min(steps)}` to "
            f"`checkpoint-{max(steps)}` (every {s.checkpoint_interval:,} steps"
            f"{', and others' * bool(s.extra_checkpoints)}); `main` is the last."
            f"{_of_words(steps)}"
        )
    else:
        where, arguments = f'folder = "checkpoint-{c.step}"', "folder"
        note = "Run this in the parent of this folder. Each checkpoint has its own folder."
    return f"""## How to load it

```python
from transformers import GPT2LMHeadModel, GPT2Tokenizer

{where}
tokenizer = GPT2Tokenizer.from_pretrained({arguments})
model = GPT2LMHeadModel.from_pretrained({arguments})
inputs = tokenizer("He clean", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_length=20)[0]))
```

{note}"""


def _language(c: Checkpoint) -> str:
    language = perturb.get(c.data["language"])
    markers = ", ".join(f"{marker} = {token}" for marker, token in c.data["markers"].items())
    rows = [
        f"- English: {perturb.EXAMPLE}",
        f"- {language.title}: {_example(language)}",
        f"- Vocabulary: {c.data['vocab_size']:,} tokens, GPT-2's and {markers or 'no marker'}",
    ]
    return f"""## The language

{language.title}: {language.summary}. The example is in GPT-2's tokens, set apart by spaces.

""" + "\n".join(rows)


@functools.cache
def _example(language: perturb.Language) -> str:
    return perturb.show(language, perturb.EXAMPLE)


def _data(c: Checkpoint, source: corpus.About) -> str:
    d = c.data
    rows = [
        f"| {split} | {counts['sentences']:,} | {counts['dropped']:,} | {counts['tokens']:,} |"
        for split, counts in d["splits"].items()
    ]
    return f"""## The data

{source.description} Sentences: {_SEGMENTERS[d["segmenter"]]}. Those of train and validation are
permuted (seed {d["data_seed"]}); a sentence ends in token {d["eot_token"]}.{_verbs(d)}

| split | sentences | dropped ({perturb.get(d["language"]).drops}) | tokens |
|---|---|---|---|
""" + "\n".join(rows)


def _verbs(data: dict[str, Any]) -> str:
    """Who marked the verbs of a *Hop language."""
    annotator = data.get("annotator")
    if not annotator:
        return ""
    versions = annotator.get("versions", {}).items()
    parts = [annotator["annotator"], annotator.get("model", ""), *(" ".join(v) for v in versions)]
    return f" The verbs were marked by {', '.join(filter(None, parts))}."


_SEGMENTERS = {
    "annotations": "as the annotated files have them",
    "sentencex": "found by `sentencex` in each line",
    "line": "each line is one",
}


def _training(c: Checkpoint) -> str:
    s = c.settings
    blocks = s.tokens_per_step // s.block_size
    clip = f"clipped to norm {s.grad_clip}" if s.grad_clip else "not clipped"
    # A stretch that a crash cut short counts up to its last checkpoint; what was lost does not.
    minutes = sum(session["minutes"] for session in c.sessions)
    devices = {
        f"{count} x {name}": None
        for session in c.sessions
        for name, count in session["devices"].items()
    }
    versions = {session["torch"]: None for session in c.sessions}
    scale = ", divided by (layer index + 1)" if s.scale_attn_by_inverse_layer_idx else ""
    return f"""## Training

| | |
|---|---|
| steps | {c.step:,} of {s.max_steps:,} |
| batch | {s.tokens_per_step:,} tokens: {blocks:,} sequences of {s.block_size:,} |
| learning rate | 0 to {s.learning_rate:g} in {s.warmup_steps:,} steps, then linearly to 0 |
| optimizer | AdamW, betas {s.beta1} and {s.beta2}, weight decay {s.weight_decay} |
| gradients | {clip} |
| dropout | {s.dropout} |
| attention scores | divided by sqrt(head width){scale} |
| position embeddings | {"yes" if s.position_embeddings else "none"} |
| precision | {_precision(c)} |
{_seeds(s)}
| hardware | {"; ".join(devices)} |
| time | {duration(minutes * 60)}, begun or taken up {len(c.sessions)} x |
| software | PyTorch {", ".join(versions)} |"""


def _seeds(settings: Settings) -> str:
    """The seed of everything, and those of the initial weights and of the order if they differ."""
    names = {
        "seed": "seed",
        "init_seed": "seed of the initial weights",
        "order_seed": "seed of the order of blocks",
    }
    found = {text: getattr(settings, name) for name, text in names.items()}
    return "\n".join(f"| {text} | {seed} |" for text, seed in found.items() if seed >= 0)


def _precision(c: Checkpoint) -> str:
    """The dtype of matrix products; on GPUs that support TF32, float32 means TF32."""
    on_cpu = all(name.startswith("cpu") for x in c.sessions for name in x["devices"])
    dtype = c.settings.dtype
    note = "" if on_cpu or dtype != "float32" else " (TF32 products where the GPU has them)"
    return dtype + note


def _curve(c: Checkpoint, records: list[dict[str, Any]]) -> str:
    """The losses at the kept steps, from the log."""
    steps = checkpoint.kept_steps(c.settings, c.data)
    rows = [
        f"| {record['step']:,} | {_loss(record.get('loss'))} | {_loss(record.get('val_loss'))} |"
        for record in records
        if record["step"] in steps
    ]
    if not rows:
        return ""
    return """## Losses of the run

In nats per token; the training loss is that of one step, with dropout.

| step | training | validation |
|---|---|---|
""" + "\n".join(rows)


def _measured(names: Sequence[str]) -> str:
    """The published pictures, and links to the tables and the log."""
    if not names:
        return ""
    pictures = [f"![{Path(name).stem}]({name})" for name in names if name.endswith(".png")]
    links = [f"- [{name}]({name})" for name in names if not name.endswith(".png")]
    return "\n\n".join(["## What was measured", *pictures, "\n".join(links)])


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _differences(c: Checkpoint, source: corpus.About) -> str:
    """How the model differs from those published with the paper."""
    published = Settings()
    lines = []
    if c.data["language"] not in _OF_PAPER:
        title = perturb.get(c.data["language"]).title
        lines.append(f"**{title} is not one of the published languages.**")
    if not source.is_published:
        lines.append(f"**Trained on {source.name}, not on the 100M words of BabyLM.**")
    changed = [
        f"{name} = {value} (published: {getattr(published, name) or 'none'})"
        for name, value in c.settings.read_by("train.py").items()
        if name in RECIPE and name not in _FREE and value != getattr(published, name)
    ]
    if changed:
        lines.append(f"**Other settings:** {', '.join(changed)}.")
    lines += [
        "Sentences were not found by Stanza, so some begin or end elsewhere, and random draws fall "
        "on other sentences. The order of blocks in training also differs.",
        f"Precision: {_precision(c)}; published: float16 with queries and keys multiplied "
        "in float32.",
    ]
    if c.settings.scale_attn_by_inverse_layer_idx:
        lines.append(
            "The division of attention scores by (layer index + 1) is part of the weights of the "
            "queries; the flag in `config.json` is false. transformers 4.44.2, 4.51.3 and "
            "5.23.0 compute the "
            "same."
        )
    if not c.settings.position_embeddings:
        lines.append(
            "Position embeddings are zeros in an ordinary GPT-2, so the model needs no custom code."
        )
    return "## How this differs from the published models\n\n" + "\n".join(
        f"- {line}" for line in lines
    )


def _sources(c: Checkpoint, source: corpus.About, license_name: str) -> str:
    origin = "The languages and the recipe are those of"
    if c.data["language"] not in _OF_PAPER:
        origin = "The recipe is that of"
    return f"""## Licence and citation

Licence of the model: {license_name}. {source.rights} {origin}:

```bibtex
{_CITATION}
```"""
