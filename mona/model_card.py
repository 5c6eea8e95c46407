"""The README.md of a tuned model, in the hub's form: front matter, then how it was made.

Takes plain values, so that whoever holds the records decides where they come from. The text
itself is the template `model_card.md.jinja` beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mona.cards import TAGS, CardSource, card_text, choice, licence_of, method, purpose
from mona.finetune import TrainingReport
from mona.spec import FinetuneSpec, RecipeSpec

_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_TAGS = [*TAGS, "sft", "trl"]


def model_card(
    *,
    name: str,
    base_model: str,
    target: str,
    recipe: RecipeSpec,
    pool_samples: int,
    test_rows: int,
    sources: Sequence[CardSource],
    finetune: FinetuneSpec,
    report: TrainingReport,
    provenance: str,
) -> str:
    """The card's text, front matter included.

    base_model: a hub repo or another public name; target: the task the samples were chosen
    for; pool_samples: what they were chosen from; test_rows: those that the pool
    was compared with; sources: of the chosen samples, a merged
    duplicate in each; provenance: the digest of the provenance record.
    """
    from huggingface_hub import ModelCard, ModelCardData

    licence, licence_name = licence_of(sources)
    data = ModelCardData(
        base_model=base_model,
        library_name="transformers" if finetune.lora is None else "peft",
        pipeline_tag="text-generation",
        tags=[*_TAGS, *(["lora"] if finetune.lora else [])],
        datasets=sorted({source.name for source in sources}),
        license=licence,
        license_name=licence_name,
    )
    return card_text(
        ModelCard,
        data,
        _TEMPLATE,
        sources,
        name=name,
        base=base_model,
        purpose=purpose(recipe, target),
        method=method(recipe),
        choice=choice(recipe, target, pool_samples, test_rows),
        settings=_settings(finetune),
        report=report,
        provenance=provenance,
    )


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
        "system turns": "as they are" if spec.system == "keep" else "within the question",
        "seed": spec.seed,
    }
