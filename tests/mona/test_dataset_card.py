"""The dataset card: front matter the hub reads, and the figures it was given."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from mona.cards import CardSource
from mona.dataset_card import dataset_card, size_category
from mona.spec import Budget, RecipeSpec

MIXED = [CardSource("evals", "MIT", 150), CardSource("flan", "Apache-2.0", 1000)]


def _card(**changes: Any) -> str:
    given: dict[str, Any] = {
        "name": "gsm8k/mona from evals",
        "target": "gsm8k",
        "recipe": RecipeSpec(budget=Budget(share=0.05)),
        "samples": 1_150,
        "tokens": 98_765,
        "pool_samples": 23_000,
        "test_rows": 1_319,
        "sources": MIXED,
        "files": {"evals/a.jsonl": "cd" * 32},
        "encoder": {"model": "smollm2", "SAE": "ef" * 32},
        "withdrawn": 0,
        "reasons": "",
        "provenance": {"record": "ab" * 32},
    }
    return dataset_card(**{**given, **changes})


def test_the_hub_reads_the_front_matter() -> None:
    card = DatasetCard(_card())
    data = card.data
    assert isinstance(data, DatasetCardData)
    assert data.pretty_name == "gsm8k/mona from evals"
    assert (data.license, data.license_name) == ("other", "mixed")
    assert data.size_categories == ["1K<n<10K"]
    assert {"mona", "data-selection"} <= set(data.tags)
    assert data.language is None
    # Every field is one of the hub's own, but the name of the licence, which it takes too.
    fields = set(yaml.safe_load(_card().split("---")[1]))
    assert fields - {"license_name", "tags"} <= set(vars(DatasetCardData()))


@pytest.mark.parametrize(
    ("licence", "expected"), [("MIT", "mit"), ("CC0-1.0", "cc0-1.0"), ("unknown", "other")]
)
def test_a_licence_all_sources_share_is_the_subsets(licence: str, expected: str) -> None:
    data = DatasetCard(_card(sources=[CardSource(name, licence, 1) for name in "ab"])).data
    assert data.license == expected
    assert "license_name" not in data.to_dict()


@pytest.mark.parametrize(
    ("samples", "category"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (999_999, "100K<n<1M"),
        (1_000_000, "1M<n<10M"),
        (10**9, "1B<n<10B"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
        (10**15, "n>1T"),
    ],
)
def test_the_size_is_named_as_the_hub_names_it(samples: int, category: str) -> None:
    assert size_category(samples) == category


def test_the_figures_are_those_given() -> None:
    text = _card()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows.index("| flan | Apache-2.0 | 1,000 |") < rows.index("| evals | MIT | 150 |")
    for row in (
        "| representation | codes |",
        "| similarity | jaccard |",
        "| budget | 5 % of the eligible samples |",
        "| target | gsm8k |",
        "| chosen from | 23,000 samples |",
        "| model | smollm2 |",
        f"| evals/a.jsonl | {'cd' * 32} |",
        f"| record | `{'ab' * 32}` |",
    ):
        assert row in rows
    assert "1,150 samples (98,765 tokens) chosen for the task **gsm8k**." in text
    assert "arxiv.org/abs/2503.15573" in text
    assert "Withdrawn" not in text
    assert text == _card()


def test_what_was_withdrawn_is_said() -> None:
    text = _card(withdrawn=12, reasons="withdrawn 2026-11-24: privacy request 12")
    assert "## Withdrawn\n\n12 of the chosen samples are gone." in text
    assert "privacy request 12" in text
    assert "A source was taken off" in _card(reasons="withdrawn 2026-11-24: its licence changed")


def test_names_cannot_break_the_tables() -> None:
    text = _card(sources=[CardSource("a|b\nc", "MIT", 1)], files={"x|y": "0"})
    assert "| a\\|b c | MIT | 1 |" in text
    assert "| x\\|y | 0 |" in text
