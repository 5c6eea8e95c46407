"""The README.md of a chosen subset, in the hub's form: front matter, then what it holds, where
that came from and how it was chosen.

Takes plain values, so that whoever holds the records decides where they come from. The text
itself is the template `dataset_card.md.jinja` beside this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mona.cards import TAGS, CardSource, card_text, choice, licence_of, method, purpose
from mona.spec import RecipeSpec

_TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
_BOUNDS = [f"{10**digits}{unit}" for unit in "KMBT" for digits in range(3)]


def dataset_card(
    *,
    name: str,
    target: str,
    recipe: RecipeSpec,
    samples: int,
    tokens: int,
    pool_samples: int,
    test_rows: int,
    sources: Sequence[CardSource],
    files: Mapping[str, str],
    encoder: Mapping[str, str],
    withdrawn: int,
    reasons: str,
    provenance: Mapping[str, str],
) -> str:
    """The card's text, front matter included.

    samples and tokens: of what is there now, without what was withdrawn; test_rows: those that
    the pool was compared with; sources: the same, a
    merged duplicate in each; files: what was read -> its digest; encoder: the model and SAE that
    chose; withdrawn: samples that the subset held and that are gone, and why (`reasons`);
    provenance: what the subset's record calls -> its digest.

    No language is named: the records know none.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    licence, licence_name = licence_of(sources)
    data = DatasetCardData(
        pretty_name=name,
        size_categories=[size_category(samples)],
        task_categories=["text-generation"],
        tags=[*TAGS, "sft"],
        license=licence,
        license_name=licence_name,
    )
    return card_text(
        DatasetCard,
        data,
        _TEMPLATE,
        sources,
        name=name,
        samples=samples,
        tokens=tokens,
        purpose=purpose(recipe, target),
        method=method(recipe),
        choice=choice(recipe, target, pool_samples, test_rows),
        files=files,
        encoder=encoder,
        withdrawn=withdrawn,
        reasons=reasons,
        provenance=provenance,
    )


def size_category(samples: int) -> str:
    """The hub's name for a number of rows: n<1K, 1K<n<10K, up to n>1T."""
    if samples < 1_000:
        return "n<1K"
    place = len(str(samples)) - 4
    if place + 1 > _BOUNDS.index("1T"):
        return "n>1T"
    return f"{_BOUNDS[place]}<n<{_BOUNDS[place + 1]}"
