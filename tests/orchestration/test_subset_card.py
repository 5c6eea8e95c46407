"""A subset's card against what the test reads from the files and tables itself, after the pool
has moved on and after withdrawals."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard
from transformers import AutoTokenizer

from assets.keys import label, selection
from mona.errors import RequestError
from orchestration import cli
from orchestration.definitions import build_resources
from tests.orchestration.conftest import Project, sums, verses

SUBSET = label(selection("adding", "mona"), "fruit|tiny")


@pytest.fixture
def overlapping(project: Project) -> Project:
    """A subset of two overlapping sources."""
    project.settings["datasets"].pop("verse")
    project.settings["datasets"]["fruit"]["sources"].append(
        {"name": "second", "path": "second.jsonl", "licence": "MIT"}
    )
    project.write_rows("second", sums(20, 50))  # 40 of them are in the first source too
    project.first_run()
    return project


def mona(project: Project, *words: str) -> None:
    project.write()
    cli.cli([*words, "--config", str(project.config_path)], standalone_mode=False)


def card(project: Project, *words: str) -> str:
    out = project.root / "cards" / "card.md"
    mona(project, "lineage", "card", "adding/mona", "--out", str(out), *words)
    return out.read_text(encoding="utf-8")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def conversations(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    """Answer -> the conversation, of alpaca rows."""
    made = {}
    for row in rows:
        asked = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
        made[row["output"]] = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": row["output"]},
        ]
    return made


def test_the_card_says_what_the_record_does(overlapping: Project, tiny_llama: Path) -> None:
    files = {name: digest(overlapping.root / f"{name}.jsonl") for name in ("fruit", "second")}
    texts = {name: conversations(overlapping.rows(name)) for name in files}
    records = build_resources(overlapping.config)["records"]
    chosen = overlapping.store.read("selection.adding.mona.fruit.tiny", ["sample_id"])
    ids = chosen.column("sample_id").to_pylist()
    stored = overlapping.store.rows("pool.fruit", ["messages"], ids).column("messages").to_pylist()
    answers = [row[-1]["content"] for row in stored]
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokens = sum(
        len(tokenizer.apply_chat_template((texts["fruit"] | texts["second"])[a])["input_ids"])
        for a in answers
    )
    held = {name: sum(a in texts[name] for a in answers) for name in files}
    pool = len(texts["fruit"] | texts["second"])
    made = records.current(SUBSET)

    # Rows come and go upstream; the subset, and so its card, stay.
    overlapping.write_rows("fruit", [*overlapping.rows("fruit")[5:], *verses(300, 9)])
    overlapping.run(upto="raw_pool")
    overlapping.settings["recipes"]["mona"] = {"budget": {"count": 3}, "similarity": "cosine"}
    assert records.current(SUBSET) == made

    text = card(overlapping)
    data = DatasetCard(text).data
    assert (data.license, data.license_name) == ("other", "mixed")
    assert data.size_categories == ["n<1K"]
    assert f"10 samples ({tokens:,} tokens) chosen for the task **adding**." in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for row in (
        "| similarity | jaccard |",
        f"| test rows kept out of the pool | yes, {len(overlapping.rows('test'))} |",
        "| budget | 10 samples |",
        f"| chosen from | {pool} samples |",
        f"| model | {tiny_llama.name} (entry tiny) |",
        f"| fruit | CC0-1.0 | {held['fruit']} |",
        f"| second | MIT | {held['second']} |",
        f"| fruit/fruit.jsonl | {files['fruit']} |",
        f"| second/second.jsonl | {files['second']} |",
        f"| record | `{made}` |",
    ):
        assert row in rows
    (sae,) = (overlapping.root / "store/sae/tiny").glob("*/record.json")
    assert f"| SAE | {sae.parent.name}, trained on fruit |" in rows
    assert str(overlapping.root) not in text
    assert str(tiny_llama.parent) not in text
    with pytest.raises(RequestError, match="exists; give --force"):
        card(overlapping)
    with pytest.raises(RequestError, match=r"is no TARGET/RECIPE"):
        mona(overlapping, "lineage", "card", "adding/other", "--out", "never.md")


def test_what_was_withdrawn_is_not_counted(overlapping: Project) -> None:
    rows = overlapping.store.read("selection.adding.mona.fruit.tiny", ["sample_id", "origins"])
    first, *others = rows.to_pylist()
    both = sum(len({o["source"] for o in row["origins"]}) == 2 for row in others)
    assert both
    mona(
        overlapping,
        "withdraw",
        "--yes",
        "--sample",
        first["sample_id"],
        "--reason",
        "asked by its author",
    )
    text = card(overlapping)
    assert text.count("| second | MIT |") == 1
    assert "\n9 samples (" in text
    assert "1 of the chosen samples is gone" in text
    assert "asked by its author" in text
    assert first["sample_id"] not in text

    mona(overlapping, "withdraw", "--yes", "--source", "second", "--reason", "its licence changed")
    left = [r for r in others if any(o["source"] == "fruit" for o in r["origins"])]
    text = card(overlapping, "--force")
    assert f"\n{len(left)} samples (" in text
    assert f"| fruit | CC0-1.0 | {len(left)} |" in text
    assert "| second |" not in text
    assert DatasetCard(text).data.license == "cc0-1.0"
    assert "its licence changed" in text


def test_a_subset_that_was_never_made_has_no_card(project: Project) -> None:
    project.settings["datasets"].pop("verse")
    with pytest.raises(RequestError, match="was never made"):
        card(project)
    assert not (project.root / "cards").exists()
