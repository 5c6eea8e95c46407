"""The names of asset partitions: what is written is read again, and nothing else is read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mona.errors import WorkError
from resources.asset_partition import AssetPartition
from resources.records import Record, Records

SLUGS = st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True)
# Owner, recipe, dataset, model -> a name of each kind, as stores have them.
NAMES = {
    "raw_pool": "raw_pool[{d}]",
    "dataset_entry": "dataset_entry[{d}]",
    "sae": "sae[{m}]",
    "model_entry": "model_entry/sae[{m}]",
    "activations": "activations[{d}|{m}]",
    "sae_codes": "sae_codes[{d}|{m}]",
    "entry": "{o}/entry",
    "examples": "{o}/examples",
    "prototype": "{o}/prototype[{m}]",
    "leaderboard": "{o}/leaderboard[{d}|{m}]",
    "selection": "{o}/{r}/selection[{d}|{m}]",
    "finetune": "{o}/{r}/finetune[{d}|{m}]",
    "evaluation": "{o}/{r}/evaluation[{d}|{m}]",
}


@pytest.mark.parametrize("kind", NAMES)
@settings(max_examples=20)
@given(o=SLUGS, r=SLUGS, d=SLUGS, m=SLUGS)
def test_each_part_of_a_name_is_read_and_written_as_it_was(
    kind: str, o: str, r: str, d: str, m: str
) -> None:
    form = NAMES[kind]
    text = form.format(o=o, r=r, d=d, m=m)
    read = AssetPartition.parse(text)
    assert (read.kind, str(read)) == (kind, text)
    assert AssetPartition.of(read.path, read.partition) == read
    assert AssetPartition.of_file(read.file_name) == read
    parts = {"o": read.owner, "r": read.recipe, "d": read.dataset, "m": read.model}
    given_parts = {"o": o, "r": r, "d": d, "m": m}
    assert parts == {k: given_parts[k] if f"{{{k}}}" in form else None for k in parts}


@pytest.mark.parametrize(
    ("text", "file_name"),
    [
        ("raw_pool[evals]", "raw_pool@evals"),
        ("adding/examples", "adding.examples"),
        ("controls/all/selection[a|m]", "controls.all.selection@a+m"),
    ],
)
def test_stores_of_before_are_read(text: str, file_name: str) -> None:
    assert AssetPartition.parse(text).file_name == file_name
    assert str(AssetPartition.of_file(file_name)) == text


@pytest.mark.parametrize("name", ["selection", "sae", "model_entry", "raw_pool", "entry"])
def test_a_name_may_be_that_of_a_kind(name: str) -> None:
    for text in (f"{name}/{name}/finetune[{name}|{name}]", f"{name}/examples"):
        read = AssetPartition.parse(text)
        assert (str(read), read.owner) == (text, name)
    assert AssetPartition.parse(f"{name}/examples").kind == "examples"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pool[a]",
        "raw_pool[]",
        "raw_pool[a|m]",
        "raw_pool[a",
        "raw_pool[a]]",
        "raw_pool[a]\n",
        "raw_pool[A]",
        "raw_pool[a b]",
        "raw_pool[[a]",
        "activations[a]",
        "activations[a|m|x]",
        "adding/examples[a]",
        "adding/raw_pool[a]",
        "selection[a|m]",
        "adding/mona/more/selection[a|m]",
        "../selection[a|m]",
        "/examples",
        "model_entry[m]",
        "model_entry/colour[m]",
        "raw_pool@a",
    ],
)
def test_what_names_no_asset_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(WorkError) as caught:
        AssetPartition.parse(text)
    assert str(caught.value) == f"{text!r} is no asset partition"


@given(text=st.text(alphabet="a_/[|]@+.\n", max_size=12) | st.text(max_size=12))
def test_what_is_read_of_any_text_is_that_text(text: str) -> None:
    text = f"raw_pool{text}"
    with suppress(WorkError):
        assert str(AssetPartition.parse(text)) == text
    with suppress(WorkError):
        assert AssetPartition.of_file(text).file_name == text


@pytest.mark.parametrize("name", ["activations@a|m", "adding/examples", "raw_pool@", "notes~"])
def test_a_file_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(WorkError, match="is no file name of"):
        AssetPartition.of_file(name)


def test_an_asset_as_a_whole_has_no_partition() -> None:
    whole = AssetPartition.of(["controls", "all", "selection"])
    assert (str(whole), whole.subset, whole.partition) == (
        "controls/all/selection",
        ("controls", "all"),
        None,
    )
    with pytest.raises(WorkError, match="not of one dataset and one model"):
        _ = whole.pair
    with pytest.raises(WorkError, match="is of no recipe"):
        _ = AssetPartition.parse("raw_pool[a]").subset


def test_records_are_of_asset_partitions_alone(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"'notes\[a\]' is no asset partition"):
        Record("notes[a]", "1")
    records = Records(home=str(tmp_path))
    digest = records.publish(Record("adding/mona/selection[a|m]", "1"))
    assert records.pointers() == {"adding/mona/selection[a|m]": digest}
    records.retire("adding/mona/selection[a|m]")
    assert records.retired() == {"adding/mona/selection[a|m]": digest}
    (tmp_path / "records" / "current" / "raw_pool@a (copy)").write_text(digest)
    with pytest.raises(WorkError, match=r"records/current: 'raw_pool@a \(copy\)' is no file"):
        records.pointers()
