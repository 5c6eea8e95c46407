"""The model card: front matter the hub reads, and the figures it was given."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from mona.cards import CardSource
from mona.finetune import TrainingReport
from mona.model_card import model_card
from mona.spec import Budget, FinetuneSpec, RecipeSpec

REPORT = TrainingReport(
    samples=1150,
    skipped=3,
    truncated=7,
    learned_tokens=98_765,
    log=[
        {"step": step, "loss": loss, "learning_rate": 1e-4, "tokens": 100 * step}
        for step, loss in ((1, 2.34567), (2, 1.20004))
    ],
    seconds=1.0,
)
MIXED = [CardSource("evals", "MIT", 150), CardSource("flan", "Apache-2.0", 1000)]


def _card(**changes: Any) -> str:
    given: dict[str, Any] = {
        "name": "SmolLM2 for arithmetic",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "target": "gsm8k",
        "recipe": RecipeSpec(budget=Budget(share=0.05)),
        "pool_samples": 23_000,
        "test_rows": 1_319,
        "sources": MIXED,
        "finetune": FinetuneSpec(),
        "report": REPORT,
        "provenance": "ab" * 32,
    }
    return model_card(**{**given, **changes})


def test_the_hub_reads_the_front_matter() -> None:
    data = ModelCard(_card()).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.library_name == "peft"
    assert data.datasets == ["evals", "flan"]
    assert (data.license, data.license_name) == ("other", "mixed")
    assert {"mona", "lora"} <= set(data.tags)


@pytest.mark.parametrize(
    ("licence", "expected"), [("MIT", "mit"), ("Apache-2.0", "apache-2.0"), ("unknown", "other")]
)
def test_a_licence_all_sources_share_is_the_models(licence: str, expected: str) -> None:
    data = ModelCard(_card(sources=[CardSource(name, licence, 1) for name in "ab"])).data
    assert data.license == expected
    assert data.license_name is None


def test_the_figures_are_those_given() -> None:
    text = _card()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows.index("| flan | Apache-2.0 | 1,000 |") < rows.index("| evals | MIT | 150 |")
    for row in (
        "| similarity | jaccard |",
        "| budget | 5 % of the eligible samples |",
        "| chosen from | 23,000 samples |",
        "| learning rate | 0.0002, cosine, warm-up 3 % of the steps |",
        "| samples | 1,150 (7 cut, 3 skipped) |",
        "| loss, final step | 1.2000 |",
    ):
        assert row in rows
    assert f"Record: `{'ab' * 32}`" in text
    assert "arxiv.org/abs/2503.15573" in text
    assert text == _card()


def test_other_recipes_and_whole_models_say_so() -> None:
    recipe = RecipeSpec(
        representation="mean", similarity="cosine", budget=Budget(tokens=5000), decontaminate=False
    )
    text = _card(recipe=recipe, finetune=FinetuneSpec(lora=None, packing=True))
    assert "2503.15573" not in text
    assert "| budget | 5,000 tokens |" in text
    assert "| trained weights | all |" in text
    assert "packed rows" in text
    assert "| test rows kept out of the pool | no |" in text
    assert ModelCard(text).data.library_name == "transformers"


def test_a_control_claims_no_method_and_no_task() -> None:
    recipe = RecipeSpec(selector="random", budget=Budget(count=10), seed=3)
    text = _card(recipe=recipe, target="controls")
    assert "drawn at random" in text
    for claim in ("2503.15573", "similarity", "representation", "controls"):
        assert claim not in text
    assert "| seed | 3 |" in text
    assert "the whole pool" in _card(recipe=RecipeSpec(selector="all"), target="controls")


HOSTILE = (
    "a|b\nc `d` <img src=x onerror=alert(1)> [e](javascript:f) ![g](h) *i* &lt; \x1b[2J\u202e\\"
)


def test_names_of_others_are_text_and_nothing_else() -> None:
    text = _card(
        sources=[CardSource(HOSTILE, HOSTILE, 1)],
        base_model=HOSTILE,
        name=HOSTILE,
        finetune=FinetuneSpec(template="chat"),
    )
    body = text.split("---\n", 2)[2]
    assert not {"\x1b", "\u202e", "<"} & set(body)
    html = MarkdownIt("commonmark").enable("table").render(body)
    shown = unescape(
        re.sub(r"</?(h1|h2|p|table|thead|tbody|tr|th|td|code|strong|em)\b[^>]*>", "", html)
    )
    assert (
        shown.count(r"a|b c `d` <img src=x onerror=alert(1)> [e](javascript:f) ![g](h) *i* &lt;")
        == 4
    )
    for made in ("<img", '<a href="java', "<em>i"):
        assert made not in html
    # The table's row has its three cells.
    assert '<td style="text-align:right">1</td>' in html


def test_test_rows_are_kept_out_only_where_there_were_some() -> None:
    row = "| test rows kept out of the pool | {} |"
    assert row.format("yes, 1,319") in _card()
    assert row.format("no: there were none to compare with") in _card(test_rows=0)
