"""The README.md of a tuned model, in the hub's form: front matter, then how it was made.

Takes plain values, so that whoever holds the records decides where they come from. The text
itself is the template `model_card.md.jinja` beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mona.finetune import TrainingReport
from mona.spec import Budget, FinetuneSpec, RecipeSpec

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_TAGS = ["mona", "data-selection", "sft", "trl"]


@dataclass(frozen=True, slots=True)
class CardSource:
    """One source of the training samples: rows it gave, under one licence."""

    name: str
    licence: str
    samples: int


def model_card(
    *,
    name: str,
    base_model: str,
    target: str,
    recipe: RecipeSpec,
    pool_samples: int,
    sources: Sequence[CardSource],
    finetune: FinetuneSpec,
    report: TrainingReport,
    provenance: str,
) -> str:
    """The card's text, front matter included.

    base_model: a hub repo or another public name; target: the task the samples were chosen
    for; pool_samples: what they were chosen from; sources: of the chosen samples, a merged
    duplicate in each; provenance: the digest of the provenance record.

    The licence in the front matter is the sources' where they share one, else "other".
    """
    from huggingface_hub import ModelCard, ModelCardData

    licences = sorted({source.licence for source in sources})
    shared = licences[0].lower() if len(licences) == 1 else "other"
    known = shared if shared != "unknown" else "other"
    data = ModelCardData(
        base_model=base_model,
        library_name="transformers" if finetune.lora is None else "peft",
        pipeline_tag="text-generation",
        tags=[*_TAGS, *(["lora"] if finetune.lora else [])],
        datasets=sorted({source.name for source in sources}),
        license=known,
        # The hub asks for a name where a licence is "other".
        license_name="mixed" if len(licences) > 1 else None,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=name,
        base=base_model,
        target=target,
        recipe=recipe,
        budget=_budget(recipe.budget),
        pool_samples=pool_samples,
        sources=sorted(sources, key=lambda source: (-source.samples, source.name, source.licence)),
        settings=_settings(finetune),
        report=report,
        provenance=provenance,
        cell=_cell,
    )
    return str(card).rstrip("\n") + "\n"


def _budget(budget: Budget | None) -> str:
    if budget is None:
        return "the whole pool"
    if budget.share is not None:
        return f"{100 * budget.share:g} % of the eligible samples"
    if budget.tokens is not None:
        return f"{budget.tokens:,} tokens"
    return f"{budget.count:,} samples"


def _settings(spec: FinetuneSpec) -> dict[str, Any]:
    lora = spec.lora
    return {
        "trained weights": f"LoRA on every linear layer, rank {lora.rank}, alpha {lora.alpha:g}, "
        f"dropout {lora.dropout:g}"
        if lora
        else "all",
        "epochs": f"{spec.epochs:g}",
        "learning rate": f"{spec.learning_rate:g}, {spec.schedule}, "
        f"warm-up {100 * spec.warmup_ratio:g} % of the steps",
        "weight decay": f"{spec.weight_decay:g}",
        "batch": f"{spec.batch_size} " + ("packed rows" if spec.packing else "samples"),
        "max length": f"{spec.max_length:,} tokens",
        "template": spec.template,
        "seed": spec.seed,
    }


def _cell(text: Any) -> str:
    """Text that keeps to its table cell."""
    return str(text).replace("|", "\\|").replace("\n", " ")
