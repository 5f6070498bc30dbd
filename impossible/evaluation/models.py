"""The models to evaluate: checkpoints of a run, exported models, or revisions on the Hub."""

import dataclasses
import hashlib
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch

import perturb
from impossible import checkpoint, files
from impossible.asking import ask
from impossible.evaluation.scoring import Scorer
from impossible.settings import RECIPE, Settings, UserError
from impossible.text.token_files import TOKENIZER
from impossible.text.tokenizer import Tokenizer, open_tokenizer

THE_RUN = "run"  # in the setting `model`: the checkpoints of out_dir
_EXPORTS = checkpoint.hf_dir(Path()).name
_LOADED = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
# The version of transformers that scores exported models.
_TRANSFORMERS = f"transformers {importlib.metadata.version('transformers')}"
_QUANTIZED = ("quantization_config", "compression_config")  # keys of config.json
_NOT_ON_HUB = (
    "There is no local folder of this name either. Expected --model=FOLDER or --model=USER/NAME. "
    "Check the name and the network, and run the same command again."
)
# Buffers that older versions of transformers saved, and that hold no weights.
_NO_WEIGHTS = (".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True)
class Model:
    """One model of a series."""

    name: str  # checkpoint-N, or the name of a revision or a folder
    identity: Callable[[], str]  # of its exact content: hashes of its files, or a commit
    load: Callable[[torch.device], Scorer]
    commit: str = ""  # of a revision on the Hub

    @property
    def step(self) -> int | None:
        """The training step; None if the name does not contain it."""
        match = re.fullmatch(r"checkpoint-(\d+)", self.name)
        return int(match[1]) if match else None


class Seeds(NamedTuple):
    """The seeds that a run used, with `seed` for those left unset; columns of every table."""

    seed: int
    init_seed: int
    order_seed: int
    data_seed: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self._asdict().items())


@dataclass(frozen=True)
class Series:
    """The models of one curve."""

    label: str
    name: str  # in tables: the name of the run's folder or of the repo, without a local path
    place: str  # where the models are: a run's folder, another folder, a repo
    folder: str  # of the results, within the run's own folder or else within eval_dir
    models: list[Model]
    language: str = ""  # of the training data, if known
    seeds: Seeds | None = None  # of a run
    test_sha256: str = ""  # of the test split of a run's data
    recipe: str = ""  # the settings of a run without language and seeds, as JSON
    # A function that returns the models' tokenizer with the markers of a language.
    tokenizer: Callable[[Sequence[str]], Tokenizer] = Tokenizer

    @property
    def title(self) -> str:
        """The label, and the place if it differs from the label."""
        return self.label if self.label == self.place else f"{self.label} ({self.place})"


def find(settings: Settings, revisions: list[str]) -> list[Series]:
    """The series that the settings name, or the run in out_dir if they name none.

    revisions: the names of the models to keep in each series; if empty, all checkpoint-N. Raises
    UserError if a model or a revision is missing.
    """
    if settings.model and Path(settings.model).is_dir():  # its name may contain a comma
        return [_chosen(_of_folder(Path(settings.model)), revisions)]
    series = []
    for name in names(settings.model) or [THE_RUN]:
        if name == THE_RUN:
            series.append(_of_run(settings))
        elif Path(name).is_dir():
            series.append(_of_folder(Path(name)))
        else:
            series.append(_of_repo(name, revisions))
    return [_chosen(s, revisions) for s in series]


def checkpoints(text: str) -> list[str]:
    """The names of models in a comma-separated list, where a number N stands for checkpoint-N."""
    return [f"checkpoint-{name}" if name.isdecimal() else name for name in names(text)]


def names(text: str) -> list[str]:
    """The items of a comma-separated list, without duplicates."""
    return list(dict.fromkeys(part for name in text.split(",") if (part := name.strip())))


def _chosen(series: Series, revisions: list[str]) -> Series:
    """The series with only the given revisions; if none are given, with all checkpoint-N.

    Raises UserError for a revision that the series lacks. Models without a step come last.
    """
    ordered = sorted(series.models, key=lambda m: (m.step is None, m.step or 0))
    by_name = {model.name: model for model in ordered}
    revisions = revisions or [name for name, m in by_name.items() if m.step is not None]
    if missing := [name for name in revisions if name not in by_name]:
        raise UserError(
            f"{series.title} has no {', '.join(missing)}. Choose from: {', '.join(by_name)}"
        )
    models = [m for name, m in by_name.items() if name in revisions or not revisions]
    return dataclasses.replace(series, models=models)


def with_distinct_names(all_series: list[Series]) -> list[Series]:
    """The series, with digits added to each name that several places share."""
    places = {(series.name, series.place) for series in all_series}
    counts = Counter(name for name, _ in places)
    renamed = []
    for series in all_series:
        if counts[series.name] > 1:
            name = f"{series.name}-{name_of(Path(series.place)).rpartition('-')[2]}"
            label = name if series.label == series.name else series.label
            series = dataclasses.replace(series, name=name, label=label)
        renamed.append(series)
    return renamed


def name_of(folder: Path) -> str:
    """A name for a folder, with digits that distinguish it from others of the same name."""
    resolved = folder.resolve()
    return f"{resolved.name}-{hashlib.sha256(str(resolved).encode()).hexdigest()[:8]}"


# Checkpoints of a run


def _of_run(settings: Settings) -> Series:
    out_dir, language = Path(settings.out_dir), settings.language
    paths, last = checkpoint.series(out_dir, language)
    run, data = last.settings, last.data
    # The settings that results depend on, without the language and the seeds.
    others = [name for name in RECIPE if name != "language" and "seed" not in name]
    recipe = {name: getattr(run, name) for name in others}
    recipe |= {name: data[name] for name in ("corpus_version", "segmenter")}
    record = data.get("tokenizer", {})  # which earlier versions did not write
    recipe["tokenizer"] = record.get("sha256")
    return Series(
        label=perturb.get(language).title + " without positions" * (not run.position_embeddings),
        name=out_dir.resolve().name,
        place=str(out_dir),
        folder="evaluation",
        models=[Model(p.stem, partial(checkpoint.sha256, p), partial(scorer_of, p)) for p in paths],
        language=language,
        test_sha256=data["splits"]["test"]["sha256"],
        seeds=Seeds(run.seed, run.seed_of_weights, run.seed_of_order, data["data_seed"]),
        recipe=json.dumps(recipe, sort_keys=True),
        tokenizer=partial(open_tokenizer, out_dir, record),
    )


def scorer_of(path: Path, device: torch.device) -> Scorer:
    """The model of a checkpoint file. Raises UserError if it is damaged."""
    model = checkpoint.build_model(checkpoint.load(path), path).to(device)
    head = model.transformer.wte.weight[: model.config.vocab_size]
    return Scorer(model.transformer, head, model.config.block_size, model.transformer.h)


# Exported models


def _of_folder(folder: Path) -> Series:
    """The series of one exported model, or of all models in a folder."""
    resolved = files.require_utf8(folder.resolve())
    folders = [p for p in [resolved, *sorted(resolved.iterdir())] if (p / "config.json").is_file()]
    if not folders:
        raise UserError(
            f"{folder} holds no exported model. Expected config.json and model.safetensors there, "
            "or folders checkpoint-N with them (convert_to_hf.py makes them). If it is a run, set "
            f"--out_dir={folder} for its checkpoints, or --model={checkpoint.hf_dir(folder)}"
        )
    models = [_exported(files.require_utf8(path)) for path in folders]
    parts = resolved.parts[-3:]  # of exports in a run's folder: the run, hf, perhaps a checkpoint
    is_of_run = _EXPORTS in parts[1:]
    name = "/".join(parts[parts.index(_EXPORTS) - 1 :]) if is_of_run else resolved.name
    tokenizer = partial(_tokenizer_of, folders[0])
    return Series(name, name, str(folder), name_of(resolved), models, tokenizer=tokenizer)


def _tokenizer_of(folder: Path, markers: Sequence[str]) -> Tokenizer:
    """The tokenizer of an exported model; GPT-2's for a model without one of its own."""
    has_own = all((folder / name).is_file() for name in TOKENIZER)
    return Tokenizer(markers, folder if has_own else None)


def _exported(folder: Path) -> Model:
    def identity() -> str:
        paths = sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors"))
        hashes = [f"{path.name} {files.sha256(path)}" for path in paths]
        return " ".join([*hashes, _TRANSFORMERS])

    return Model(folder.name, identity, lambda device: _loaded(folder, str(folder), device))


def _require_plain(config: Any, name: str) -> None:
    """Raise UserError unless the content of config.json is that of a plain GPT-2."""
    kind = config.get("architectures") if isinstance(config, dict) else str(config)
    more = "".join(f" with a {key}" for key in _QUANTIZED if key in config)
    if kind != ["GPT2LMHeadModel"] or more:
        raise UserError(
            f"{name} is a model of the kind {str(kind)[:200]}{more}. Expected a plain "
            "GPT2LMHeadModel: models with custom code or quantized weights are not supported."
        )


def _loaded(folder: Path, name: str, device: torch.device) -> Scorer:
    """A model, loaded by transformers. Raises UserError unless it is a complete, plain GPT-2."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # errors below are one line
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _require_plain(config, name)
        model, report = transformers.GPT2LMHeadModel.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",  # the default; config.json may name code on the Hub
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            use_safetensors=True,
        )
    except UserError:
        raise
    except Exception as error:  # of many kinds, for odd values and damaged weights
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{name} cannot be loaded ({reason}). Expected intact files config.json and "
            "model.safetensors. Export or download it again."
        )
    wrong = [str(key) for names in report.values() for key in names]
    if wrong := [key for key in wrong if not key.endswith(_NO_WEIGHTS)]:
        raise UserError(
            f"{name} is not a complete GPT-2: these weights are missing, unknown or of another "
            f"shape: {', '.join(wrong[:5])}. Export or download it again."
        )
    model.to(device).eval()

    def body(tokens: torch.Tensor) -> torch.Tensor:
        return model.transformer(tokens, use_cache=False).last_hidden_state

    return Scorer(body, model.lm_head.weight, model.config.n_positions, model.transformer.h)


# Revisions on the Hub


def _of_repo(repo: str, revisions: list[str]) -> Series:
    """The series of a repo's branches and tags, and of the commits among `revisions`."""
    refs = ask(repo, partial(huggingface_hub.list_repo_refs, repo), _NOT_ON_HUB)
    commits = {ref.name: ref.target_commit for ref in [*refs.tags, *refs.branches]}
    commits |= {name: name for name in revisions if re.fullmatch("[0-9a-f]{40}", name)}
    models = [_revision(repo, name, commit) for name, commit in commits.items()]
    chosen = next((commits[name] for name in revisions if name in commits), models[0].commit)

    def tokenizer(markers: Sequence[str]) -> Tokenizer:
        return _tokenizer_of(_fetched(repo, chosen, TOKENIZER), markers)

    return Series(repo, repo, repo, repo.replace("/", "--"), models, tokenizer=tokenizer)


def _revision(repo: str, name: str, commit: str) -> Model:
    def load(device: torch.device) -> Scorer:
        return _loaded(_fetched(repo, commit, _LOADED), f"{repo}, {name}", device)

    return Model(name, lambda: f"{repo}@{commit} {_TRANSFORMERS}", load, commit)


def _fetched(repo: str, commit: str, patterns: Sequence[str]) -> Path:
    """The folder of a revision, with the files that match patterns. Raises UserError like `ask`."""
    options = {"revision": commit, "allow_patterns": list(patterns)}
    fetch = partial(huggingface_hub.snapshot_download, repo, **options)
    return Path(ask(repo, fetch, _NOT_ON_HUB))
