"""What the cards of models and of subsets say alike: the sources and their licence, and how the
samples were chosen.

Takes plain values, so that whoever holds the records decides where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mona.printable import printable
from mona.spec import Budget, RecipeSpec

TAGS = ["mona", "data-selection"]


@dataclass(frozen=True, slots=True)
class CardSource:
    """One source of the samples: rows it gave, under one licence."""

    name: str
    licence: str
    samples: int


def licence_of(sources: Sequence[CardSource]) -> tuple[str, str | None]:
    """(licence, its name) for the front matter: the sources' where they share one, else "other"."""
    licences = sorted({source.licence for source in sources})
    if len(licences) > 1:
        # The hub asks for a name where a licence is "other".
        return "other", "mixed"
    shared = "".join(licences).lower()
    return (shared if shared not in ("", "unknown") else "other"), None


def purpose(recipe: RecipeSpec, target: str) -> str:
    """What the samples were chosen for, to follow "samples"."""
    if recipe.selector == "random":
        return "drawn at random, for no task"
    if recipe.selector == "all":
        return "that are the whole pool"
    return f"chosen for the task **{target}**"


def method(recipe: RecipeSpec) -> str:
    """How they were chosen, in a sentence."""
    if recipe.is_control:
        return "A control: the samples do not depend on a task."
    if recipe.representation == "codes":
        how = (
            "MONA ([arXiv 2503.15573](https://arxiv.org/abs/2503.15573)): sparse autoencoder codes "
            "of a language model's activations"
        )
    else:
        how = f"dense activations of a language model ({recipe.representation})"
    return f"Method: {how}, compared with those of the task's examples."


def choice(recipe: RecipeSpec, target: str, pool_samples: int, test_rows: int) -> dict[str, str]:
    """The settings of the choice, as rows of a table; a control has no part in some.

    test_rows: how many held-out test rows the pool was compared with.
    """
    rows = {"selector": recipe.selector, "budget": _budget(recipe.budget)}
    if recipe.selector == "random":
        rows["seed"] = str(recipe.seed)
    if not recipe.is_control:
        compared = {"representation": recipe.representation, "similarity": recipe.similarity}
        rows = {**compared, **rows, "target": target}
    if not recipe.decontaminate:
        kept_out = "no"
    else:
        kept_out = f"yes, {test_rows:,}" if test_rows else "no: there were none to compare with"
    return {
        **rows,
        "chosen from": f"{pool_samples:,} samples",
        "test rows kept out of the pool": kept_out,
    }


def card_text(
    kind: Any, data: Any, template: Path, sources: Sequence[CardSource], **values: Any
) -> str:
    """A card of huggingface_hub's class `kind`, front matter included, from a template."""
    listed = sorted(sources, key=lambda source: (-source.samples, source.name, source.licence))
    card = kind.from_template(
        data, template_path=str(template), sources=listed, inert=inert, **values
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


# What Markdown or HTML would read as more than text. The line break of a table's cell is a space.
_MARKUP = {ord(character): f"\\{character}" for character in "\\`*[]|~"}
_MARKUP |= {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"}


def inert(text: Any) -> str:
    """Text of others, on one line, which a page of Markdown shows as it is: no table, link,
    picture or HTML comes of it, and no control character gets there."""
    return printable(str(text)).translate(_MARKUP)
