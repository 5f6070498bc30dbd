"""The settings of every command: one dataclass each, whose values are checked.

The defaults are those of the published PartialReverse. options.py reads config files and the
command line.
"""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from impossible import files
from impossible.errors import UserError

# The smallest value of each number. What lies between 0 and 1 is in _SHARES.
_LEAST = {
    **dict.fromkeys(("n_layer", "n_head", "n_embd", "tokens_per_step", "batch_size"), 1),
    **dict.fromkeys(("max_steps", "checkpoint_interval", "eval_interval", "log_interval"), 1),
    **dict.fromkeys(("sentences_per_genre", "samples", "new_tokens"), 1),
    **dict.fromkeys(("seed", "data_seed", "sample_seed", "workers", "warmup_steps"), 0),
    **dict.fromkeys(("eval_blocks", "weight_decay", "grad_clip", "temperature", "top_k"), 0),
    "init_seed": -1,
    "order_seed": -1,
    **dict.fromkeys(("cpus", "memory_gb"), 1),
    **dict.fromkeys(("gpus", "at_once"), 0),
    "block_size": 2,  # a token is predicted from another
}
_SHORTEST = 5  # minutes of a job on SLURM: it needs two to save
_LONGEST_TITLE = 59  # characters of a collection on the Hub
_LARGEST_SEED = 2**32 - 1  # that numpy's and torch's generators all take
_SHARES = ("dropout", "beta1", "beta2")


def _fixed(default: Any) -> Any:
    """A setting that affects the weights and so cannot be changed when a run is resumed."""
    return dataclasses.field(default=default, metadata={"fixed": True})


@dataclass(frozen=True)
class Settings:
    """The settings of every command. Raises UserError for an invalid value."""

    command: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if (least := _LEAST.get(name, -math.inf)) > -math.inf:
                self.require(value >= least, name, f"{least} or more")
            if name.endswith("seed"):
                self.require(value <= _LARGEST_SEED, name, f"at most {_LARGEST_SEED}")
            if name in _SHARES:
                self.require(0 <= value < 1, name, "0 or more, and less than 1")
            if isinstance(value, float):
                self.require(math.isfinite(value), name, "a finite number")
            if isinstance(value, str):
                self.require(files.is_utf8(value), name, "text in UTF-8 (rename the file)")
            self._check_choice(name, value)

    def _check_choice(self, name: str, value: Any) -> None:
        kind = self.types()[name]
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        self.require(not choices or value in choices, name, f"one of {', '.join(choices)}")

    def require(self, holds: bool, name: str, expected: str) -> None:
        """Raise UserError unless a condition on the value of a setting holds."""
        if not holds:
            value = getattr(self, name)
            value = list(value) if isinstance(value, tuple) else value  # as in a config file
            raise UserError(f"{name} = {value!r} is invalid. It must be {expected}.")

    @classmethod
    def types(cls) -> dict[str, Any]:
        """The type of each setting: int, float, bool, str, a Literal of strings, or a tuple."""
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    @classmethod
    def fixed(cls) -> list[str]:
        """The settings that cannot be changed when a run is resumed."""
        return [field.name for field in dataclasses.fields(cls) if "fixed" in field.metadata]


@dataclass(frozen=True)
class _OfLanguage(Settings):
    """The settings of every command that works on one language."""

    language: str = _fixed("partial_reverse")
    """the language: a name from the table in perturb.py"""
    data_dir: str = ""
    """folder of the token files (if empty: data/LANGUAGE)"""
    out_dir: str = ""
    """folder of the run (if empty: out/LANGUAGE, or out/LANGUAGE_no_pos without positions)"""
    position_embeddings: bool = _fixed(True)
    """false: train the variant without positional encodings, as published"""

    def __post_init__(self) -> None:
        variant = "" if self.position_embeddings else "_no_pos"
        places = {"data_dir": f"data/{self.language}", "out_dir": f"out/{self.language}{variant}"}
        for name, place in places.items():
            if not getattr(self, name):
                object.__setattr__(self, name, place)
        super().__post_init__()


@dataclass(frozen=True)
class Prepare(_OfLanguage):
    """The settings of prepare.py."""

    command: ClassVar[str] = "prepare.py"
    corpus: str = "babylm"
    """babylm, babylm_10M, sotu, hf:NAME (a dataset), or a folder of text files"""
    sotu_years: str = "1950-2000"
    """for sotu: first and last year of the speeches"""
    text_column: str = "text"
    """for hf:NAME: the column that holds the text"""
    segmenter: Literal["sentencex", "line"] = "sentencex"
    """sentencex: find sentences within each line; line: every line is one sentence"""
    invalid_utf8: Literal["error", "replace"] = "error"
    """error: stop at bytes that are not UTF-8; replace: replace them by U+FFFD and count them"""
    annotations: str = ""
    """for the Hop languages: a folder of annotated sentences (CoNLL-U), in place of a corpus"""
    workers: int = 0
    """number of threads for splitting and encoding sentences, and of processes that annotate them
    (0: one per core)"""
    data_seed: int = 41
    """seed of the order of sentences in the training and validation data"""


@dataclass(frozen=True)
class _Order(_OfLanguage):
    """The settings that determine which blocks each step reads."""

    seed: int = _fixed(41)
    """seed of dropout and, unless they have seeds of their own, of the two below"""
    order_seed: int = _fixed(-1)
    """seed of the order of blocks (-1: as seed)"""
    block_size: int = _fixed(1024)
    """context length, in tokens"""
    tokens_per_step: int = _fixed(524288)
    """number of tokens in one optimizer step, over all processes"""
    max_steps: int = _fixed(3000)
    """total number of optimizer steps"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.tokens_per_step <= 2**32, "tokens_per_step", f"at most {2**32}")
        near = max(1, self.blocks_per_step) * self.block_size
        tokens = f"a multiple of block_size = {self.block_size}, such as {near}"
        self.require(self.tokens_per_step % self.block_size == 0, "tokens_per_step", tokens)

    @property
    def seed_of_order(self) -> int:
        """The seed of the order of blocks."""
        return self.seed if self.order_seed < 0 else self.order_seed

    @property
    def blocks_per_step(self) -> int:
        """Blocks of one optimizer step, of all processes together."""
        return self.tokens_per_step // self.block_size


@dataclass(frozen=True)
class BatchViewer(_Order):
    """The settings of batch_viewer.py."""

    command: ClassVar[str] = "batch_viewer.py"
    step: int = 1
    """the step to show, from 1 to max_steps"""
    contains: str = ""
    """find the steps that read this text, instead of showing one step"""

    def __post_init__(self) -> None:
        super().__post_init__()
        within = f"a step of the run, from 1 to max_steps, which is {self.max_steps}"
        self.require(1 <= self.step <= self.max_steps, "step", within)


@dataclass(frozen=True)
class Train(_Order):
    """The settings of train.py."""

    command: ClassVar[str] = "train.py"
    verify_data: bool = False
    """compare the token files with the hashes in meta.json before the first step"""
    init_seed: int = _fixed(-1)
    """seed of the initial weights (-1: as seed)"""
    n_layer: int = _fixed(12)
    """number of transformer blocks"""
    n_head: int = _fixed(12)
    """attention heads in each transformer block"""
    n_embd: int = _fixed(768)
    """width of the model"""
    dropout: float = _fixed(0.1)
    """dropout rate, for embeddings, attention weights and residual branches"""
    scale_attn_by_inverse_layer_idx: bool = _fixed(True)
    """divide attention scores by (layer index + 1), in addition to the usual scaling"""
    batch_size: int = 8
    """number of blocks in a micro-batch (per process)"""
    shares: str = "equal"
    """how the processes divide a step: equal, auto (by their speed, measured at the start), or
    fixed shares such as 2,3"""
    warmup_steps: int = _fixed(300)
    """steps until the learning rate reaches its peak; after that, it decreases linearly to 0"""
    learning_rate: float = _fixed(6e-4)
    """peak of the learning rate"""
    beta1: float = _fixed(0.9)
    """AdamW's decay rate of the first moment"""
    beta2: float = _fixed(0.999)
    """AdamW's decay rate of the second moment"""
    weight_decay: float = _fixed(0.1)
    """AdamW's weight decay, on matrices and embeddings only"""
    grad_clip: float = _fixed(1.0)
    """largest norm of the gradient (0: no clipping)"""
    checkpoint_interval: int = _fixed(100)
    """steps between checkpoints"""
    extra_checkpoints: str = _fixed("")
    """more checkpoints: steps such as 0,1,2,4 (0: the initial model); log2 (0, 1, 2, 4, ... up to
    checkpoint_interval); or babylm (after 1M to 10M, 20M to 100M and 200M to 1,000M words)"""
    eval_interval: int = 100
    """steps between validations (there is also one at each checkpoint)"""
    eval_blocks: int = _fixed(512)
    """number of validation blocks to use (0: all)"""
    log_interval: int = 1
    """steps between log lines"""
    device: str = "auto"
    """auto (cuda if available, else mps, else cpu), cuda, cuda:N, mps or cpu"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _fixed("auto")
    """precision of matrix products (auto: bfloat16 or else float16 on cuda, float32 elsewhere)"""
    compile: bool = True
    """compile the model with torch.compile"""
    tracker: Literal["none", "wandb", "trackio"] = "none"
    """where else the log goes: Weights & Biases, or Trackio, which is local (pip install NAME)"""
    tracker_project: str = "impossible-gpt2"
    """name of the tracker's project"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.learning_rate > 0, "learning_rate", "more than 0")
        _require_device(self)
        steps = f"at most max_steps, which is {self.max_steps}"
        self.require(self.warmup_steps <= self.max_steps, "warmup_steps", steps)
        if self.shares not in ("equal", "auto"):
            numbers = all(re.fullmatch(r"[0-9]*\.?[0-9]+", p) for p in self.shares.split(","))
            is_positive = numbers and min(map(float, self.shares.split(","))) > 0
            self.require(is_positive, "shares", "equal, auto, or positive numbers such as 2,3")
        extra = self.extra_checkpoints
        if extra not in ("", "log2", "babylm"):
            are_steps = all(part.isdecimal() for part in extra.split(","))
            expected = f"log2, babylm, or steps from 0 to {self.max_steps} such as 0,1,2,4"
            self.require(are_steps, "extra_checkpoints", expected)
            are_within = all(int(part) <= self.max_steps for part in extra.split(","))
            self.require(are_within, "extra_checkpoints", expected)
        near = max(d for d in divisors(self.n_embd) if d <= self.n_head)
        heads = f"a divisor of n_embd = {self.n_embd}, such as {near}"
        self.require(self.n_embd % self.n_head == 0, "n_head", heads)
        fitting = ", ".join(map(str, divisors(self.blocks_per_step)[:12]))
        blocks = f"a divisor of the {self.blocks_per_step} blocks of a step: {fitting}"
        self.require(self.blocks_per_step % self.batch_size == 0, "batch_size", blocks)

    @property
    def seed_of_weights(self) -> int:
        """The seed of the initial weights."""
        return self.seed if self.init_seed < 0 else self.init_seed


@dataclass(frozen=True)
class Convert(_OfLanguage):
    """The settings of convert_to_hf.py."""

    command: ClassVar[str] = "convert_to_hf.py"
    push_to_hub: str = ""
    """publish the exports as revisions of this repo: USER/NAME"""
    private: bool = False
    """make the repo private"""
    overwrite: bool = False
    """replace revisions on the Hub even if they contain something other than this run"""
    dry_run: bool = False
    """export and show what would be published, but change nothing on the Hub"""
    model_license: str = "mit"
    """licence of the published model, by the Hub's name for it (mit, apache-2.0, ...)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("private", "overwrite", "dry_run"):
            given = getattr(self, name) and not self.push_to_hub
            self.require(not given, name, "left out, or combined with --push_to_hub=USER/NAME")


@dataclass(frozen=True)
class _Models(_OfLanguage):
    """The settings that select the models for evaluate.py and sample.py."""

    model: str = ""
    """models in place of the run in out_dir, separated by commas: exported folders, repos on the
    Hub (USER/NAME), and `run` for the run itself"""
    device: str = "auto"
    """auto (cuda if available, else mps, else cpu), cuda, cuda:N, mps or cpu"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_device(self)


@dataclass(frozen=True)
class Evaluate(_Models):
    """The settings of evaluate.py."""

    command: ClassVar[str] = "evaluate.py"
    revisions: str = ""
    """checkpoints by name or step, separated by commas (if empty: every checkpoint-N)"""
    test_language: str = ""
    """evaluate on the test split of this language (if empty: the model's own)"""
    test_data_dir: str = ""
    """folder of the test data (if empty: data_dir, or data/TEST_LANGUAGE for another language)"""
    sentences_per_genre: int = 1000
    """sentences to sample from each genre (all of them if a genre has fewer)"""
    sample_seed: int = 0
    """seed for sampling the test sentences"""
    drop_duplicates: bool = False
    """leave out test sentences whose text was sampled before"""
    sentences: bool = False
    """also write a table of all sentences and their perplexities"""
    surprisals: bool = False
    """also write a table of the surprisal of every token, in bits"""
    entropies: bool = False
    """also measure how predictable each test language is by itself, by n-gram models"""
    markers: bool = False
    """instead of perplexities, the surprisal of the first marker of sentences in a Hop language"""
    pairs: str = ""
    """instead of perplexities, minimal pairs: `blimp` (from the Hub), or jsonl files with
    sentence_good and sentence_bad (one file, or a folder of them)"""
    leading_space: bool = False
    """encode the sentences of minimal pairs after a space, as lm-evaluation-harness does"""
    stimuli: str = ""
    """instead of perplexities, the surprisal of these sentences: a csv or jsonl file with item,
    condition and text, and optionally marker_place, perturbed, region and occurrence"""
    eval_dir: str = "out/evaluation"
    """folder for joint results of several runs, and for results of exported models, of models from
    the Hub and of runs whose own folder is read-only"""

    def __post_init__(self) -> None:
        super().__post_init__()
        others = [name for name in ("pairs", "markers", "stimuli") if getattr(self, name)]
        for name in others[1:]:
            self.require(False, name, f"left out, as {others[0]} is set: one measure at a time")
        for name in ("sentences", "surprisals", "entropies") if others else ():
            self.require(not getattr(self, name), name, f"left out, as {others[0]} is set")
        fits = self.pairs or not self.leading_space
        self.require(bool(fits), "leading_space", "left out, or combined with --pairs=")


@dataclass(frozen=True)
class Sample(_Models):
    """The settings of sample.py."""

    command: ClassVar[str] = "sample.py"
    checkpoint: str = ""
    """checkpoints by name or step, separated by commas, or `all` (if empty: the last one)"""
    prompt: str = "He clean"
    """text to continue"""
    samples: int = 1
    """number of continuations to generate with each checkpoint"""
    new_tokens: int = 20
    """number of tokens to generate for each continuation"""
    temperature: float = 1.0
    """sampling temperature (below 1: prefer likely tokens; 0: always the most likely token)"""
    top_k: int = 200
    """sample only from this many of the most likely tokens (0: from all tokens)"""
    seed: int = 41
    """seed for sampling tokens"""
    undo: bool = False
    """also print each continuation with the perturbation undone"""


@dataclass(frozen=True)
class Study(Settings):
    """The settings of study.py. Those of its runs are in the same config file."""

    command: ClassVar[str] = "study.py"
    languages: tuple[str, ...] = ("no_reverse", "partial_reverse", "full_reverse")
    """the languages of the study"""
    seeds: tuple[int, ...] = (0, 14, 41, 53, 96)
    """for each language, one run for each of these values of `seed`"""
    vary_data: bool = False
    """each seed also sets `data_seed`, so that it has token files of its own"""
    study_dir: str = "out/study"
    """folder of the study: data, runs and results"""
    evaluations: tuple[str, ...] = ("perplexity",)
    """what to evaluate: perplexity, markers, pairs=SOURCE or stimuli=FILE (as for evaluate.py)"""
    cluster: Literal["local", "slurm"] = "local"
    """where the runs are executed: on this machine, or as jobs of SLURM"""
    gpus: int = 1
    """number of GPUs for each run (a machine without GPUs: one core instead; SLURM, 0: none)"""
    at_once: int = 0
    """on this machine, the number of runs at a time (0: one for each GPU or core)"""
    partition: str = ""
    """for SLURM: the partition of the jobs"""
    account: str = ""
    """for SLURM: the account of the jobs"""
    hours: float = 24.0
    """for SLURM: time limit of each job; a job that reaches it is resumed in another one"""
    cpus: int = 4
    """for SLURM: CPU cores of each job"""
    memory_gb: int = 32
    """for SLURM: memory of each job, in GB"""
    publish: str = ""
    """when all is done, publish each run as a repo named USER/PREFIX-LANGUAGE-seed-N, and all of
    them in one collection on the Hub: USER/PREFIX"""
    private: bool = False
    """make the repos and the collection private"""
    retry: bool = False
    """run again what failed"""
    status: bool = False
    """show the state of all runs, and do nothing"""
    dry_run: bool = False
    """show the plan (runs, commands, tokens, estimated time and disk), and do nothing"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("languages", "seeds", "evaluations"):
            values = getattr(self, name)
            self.require(len(values) > 0, name, "a list of one or more")
            self.require(len(set(values)) == len(values), name, "a list without duplicates")
        are_seeds = min(self.seeds) >= 0 and max(self.seeds) <= _LARGEST_SEED
        self.require(
            are_seeds, "seeds", f"a list of whole numbers, 0 or more, at most {_LARGEST_SEED}"
        )
        for value in self.evaluations:
            kind, _, source = value.partition("=")
            known = value in ("perplexity", "markers") or (kind in ("pairs", "stimuli") and source)
            expected = (
                "a list of: perplexity, markers, pairs=SOURCE, stimuli=FILE (a name with a comma: "
                "only in the config file)"
            )
            self.require(bool(known), "evaluations", expected)
        self.require(self.hours * 60 >= _SHORTEST, "hours", f"{_SHORTEST} minutes or more")
        form = rf"[^/]+/[^/]{{1,{_LONGEST_TITLE}}}"
        valid = not self.publish or re.fullmatch(form, self.publish)
        self.require(
            bool(valid),
            "publish",
            f"USER/PREFIX, where PREFIX has up to {_LONGEST_TITLE} characters",
        )
        given = self.private and not self.publish
        self.require(not given, "private", "left out, or combined with --publish=USER/PREFIX")


COMMANDS: tuple[type[Settings], ...] = (
    Prepare,
    Train,
    Convert,
    Evaluate,
    Sample,
    BatchViewer,
    Study,
)


def _require_device(settings: "Train | _Models") -> None:
    kind, _, index = settings.device.partition(":")
    is_known = settings.device in ("auto", "cpu", "cuda", "mps")
    is_numbered = kind == "cuda" and index.isdecimal()
    settings.require(is_known or is_numbered, "device", "auto, cpu, cuda, cuda:N or mps")


def divisors(number: int) -> list[int]:
    """All divisors of a number, the smallest first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})
