"""What every format may have, and the rows that are no conversation. What a format has of its own
is in the file called as it.
"""

from __future__ import annotations

import collections
import datetime
import hashlib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mona.containers import EmptyFileError, RawRow, read_rows
from mona.files import DataFile
from mona.formats import FormatError, detect, header_of, read, to_messages
from mona.registry import FORMATS
from mona.sample import ROLES, from_records, sample_id, to_records
from mona.spec import Columns
from tests.mona.formats.rows import HEARD, POOLS, SPOKEN, needs_pools, tree, turns

# Every format of ours has a test file, which says what is recognised as it.
_TESTS = {
    name: import_module(f"tests.mona.formats.test_{name}")
    for name in FORMATS.names()
    if FORMATS.is_own(name)
}
CASES: list[dict[str, Any]] = [row for test in _TESTS.values() for row, _ in test.CASES]
# One row of each format, whose question is "Ask." and whose answer is "Told.".
PLAIN: dict[str, dict[str, Any]] = {name: test.PLAIN for name, test in _TESTS.items()}


def test_null_fields_count_as_absent() -> None:
    # The rows of one table carry the columns of all its formats.
    row = dict.fromkeys(
        ("messages", "prompt", "ideal", "definition", "chosen", "rejected", "label")
    )
    assert turns({**row, "instruction": "a", "output": "b"}) == ["user: a", "assistant: b"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "no known format has the fields"),
    ({"text": "a", "label": 1}, "no known format has the fields"),
    ({"instruction": "Do it"}, "no answer"),
    ({"instruction": "Do it", "output": " \n"}, "an empty assistant turn"),
    ({"instruction": "", "input": " ", "output": "x"}, "an empty user turn"),
    ({"instruction": "a", "output": 3}, "field 'output' is a int, not text"),
    ({"instruction": "a", "output": "b", "history": ["xy"]}, "not a list of pairs"),
    ({"instruction": "a", "output": "b", "history": {"x": "y"}}, "not a list"),
    ({"instruction": "a\ud800", "output": "b"}, "half a surrogate pair in a user turn"),
    ({"messages": []}, "no user turn"),
    ({"messages": ["hi"]}, "a turn is a str"),
    ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn"),
    ({"messages": [{"role": "critic", "content": "a"}]}, "unknown role 'critic'"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown role"),
    ({"messages": [{"role": "user", "content": ""}]}, "an empty user turn"),
    ({"messages": [{"role": "user", "content": None}]}, "an empty user turn"),
    ({"messages": [{"role": "user", "content": 5}]}, "a message part is of type 'int'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "a message part is of type 'image_url', not text",
    ),
    ({"question": "a", "answer": "b", "rationale": ""}, "field 'rationale' is empty"),
    ({"0": "a", "1": "b", "2": "c"}, "no known format has the fields"),
    ({"Definition": ["a"], "input": "b"}, "no field 'output'"),
    ({"Definition": [], "input": "b", "output": "c"}, "'Definition' is an empty list"),
    ({"input": "a", "ideal": []}, "'ideal' is an empty list"),
    ({"input": "a", "ideal": [["b"]]}, "'ideal' is a list, not text"),
    ({"input": {"word": "a"}, "ideal": "b"}, "'input' is a dict, not text"),
    ({"prompt": tree("a")}, "the tree has no answer"),
    ({"prompt": tree("a", deleted=True)}, "the prompt is deleted"),
    ({"prompt": tree("a", replies=[tree("b", "assistant", deleted=True)])}, "no answer"),
    ({"prompt": tree("a", replies=["b"])}, "a reply is a str"),
    ({"prompt": tree("a", role="narrator")}, "unknown role 'narrator'"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_a_row_without_a_conversation_is_refused_with_a_reason(
    row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(FormatError, match=reason):
        to_messages(row, "auto", "refuse")


@pytest.mark.parametrize("format", PLAIN)
def test_a_row_that_is_not_of_the_configured_format_is_refused(format: str) -> None:
    with pytest.raises(FormatError):
        to_messages({"body": "a", "reply": "b"}, format, "refuse")


# --- what every format may have -----------------------------------------------------------


@pytest.mark.parametrize("format", PLAIN)
@pytest.mark.parametrize("field", ["system", "system_prompt"])
def test_a_system_field_is_a_system_turn_in_every_format(format: str, field: str) -> None:
    row = {**PLAIN[format], field: "Be brief. "}
    assert turns(row, format)[:2] == ["system: Be brief. ", "user: Ask."]
    assert turns({**PLAIN[format], field: " "}, format)[0] == "user: Ask."
    with pytest.raises(FormatError, match=f"field '{field}' is a int"):
        turns({**PLAIN[format], field: 4}, format)


def test_a_system_prompt_said_twice_is_one() -> None:
    leading = {"role": "system", "content": "Be brief."}
    row = {"messages": [leading, *SPOKEN], "system": "Be brief.", "system_prompt": "Be brief."}
    assert turns(row)[:2] == ["system: Be brief.", "user: Ask."]
    assert turns({**row, "system": "Rhyme."})[0] == "system: Rhyme.\n\nBe brief."


@pytest.mark.parametrize("format", PLAIN)
def test_context_and_options_follow_the_question_in_every_format(format: str) -> None:
    row = {**PLAIN[format], "context": ["Ann came.", "Bo left."], "options": ["Ann", "Bo"]}
    assert turns(row, format)[0] == "user: Ask.\n\nAnn came.\n\nBo left.\n\nA. Ann\nB. Bo"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["A) 2", "B) 3"], "A) 2\nB) 3"),
        (["(a) 2", "(b) 3"], "(a) 2\n(b) 3"),
        ({"A": "two", "B": 3}, "A. two\nB. 3"),
        ("yes or no", "yes or no"),
        ([1, 2.5], "A. 1\nB. 2.5"),
    ],
)
def test_options_are_lines_with_labels(options: Any, shown: str) -> None:
    assert turns({"question": "q", "answer": "a", "options": options})[0] == f"user: q\n\n{shown}"


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"options": {"temperature": 0.5}}, "keys are no labels"),
        ({"options": [None]}, "no field 'options'"),
        ({"options": True}, "'options' is a bool"),
        ({"context": {"title": "x"}}, "'context' is a dict"),
        ({"context": [3]}, "'context' is a int"),
    ],
)
def test_a_context_that_can_not_be_read_refuses_the_row(extra: Any, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        turns({"question": "q", "answer": "a", **extra})


@pytest.mark.parametrize("format", PLAIN)
@pytest.mark.parametrize(
    "media",
    [{"images": ["a.png"]}, {"image": {"bytes": b"x"}}, {"audio": "a.wav"}, {"videos": "a.mp4"}],
)
def test_a_row_with_media_is_refused_in_every_format(format: str, media: Any) -> None:
    (field,) = media
    with pytest.raises(FormatError, match=f"the row has '{field}'; only text is read"):
        turns({**PLAIN[format], **media}, format)
    assert turns({**PLAIN[format], field: type(media[field])()}, format)[0] == "user: Ask."


def test_a_turn_with_media_refuses_its_row() -> None:
    with pytest.raises(FormatError, match="the row has 'images'"):
        turns({"messages": [{**SPOKEN[0], "images": ["a.png"]}, SPOKEN[1]]})


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"loss": False}, {"weight": 0.0}]
)
@pytest.mark.parametrize("chat", [SPOKEN, HEARD])
def test_a_turn_marked_as_not_to_learn_is_known_by_its_message(mark: Any, chat: Any) -> None:
    row = {"messages": [chat[0], {**chat[1], **mark}, chat[0], {**chat[1], "weight": 1}]}
    (messages,) = to_messages(row, "auto", "refuse")
    assert [turn.learn for turn in messages] == [True, False, True, True]
    assert from_records(to_records(messages)) == messages
    (plain,) = to_messages({"messages": [*chat, *chat]}, "auto", "refuse")
    assert sample_id(messages) != sample_id(plain)
    with pytest.raises(FormatError, match="every assistant turn is marked"):
        to_messages({"messages": [chat[0], {**chat[1], **mark}]}, "auto", "refuse")


def test_marks_that_mean_nothing_change_nothing() -> None:
    user, answer = SPOKEN
    row = {"messages": [{**user, "weight": 0, "train": False}, {**answer, "loss": 1.7, "train": 1}]}
    assert to_messages(row, "auto", "refuse") == to_messages({"messages": SPOKEN}, "auto", "refuse")
    with pytest.raises(FormatError, match=r"a turn's weight is 0\.5"):
        turns({"messages": [user, {**answer, "weight": 0.5}]})


def test_an_id_is_what_it_was_before_marks_existed() -> None:
    # SHA-256 of [["user","Ask."],["assistant","Told."]], as every store holds it.
    (messages,) = to_messages({"messages": SPOKEN}, "auto", "refuse")
    canonical = b'[["user","Ask."],["assistant","Told."]]'
    assert sample_id(messages) == hashlib.sha256(canonical).hexdigest()[:32]


PADDED = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Rain?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"name": "sky", "arguments": {"place": "Oslo", "day": 1}}],
            },
            {"role": "tool", "content": [{"type": "text", "text": "wet"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
        ],
        "tools": [{"name": "sky", "parameters": {"place": {"type": "string"}}}],
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Change?"}]},
            {"role": "assistant", "content": [{"type": "reasoning", "value": "Pay in crowns."}]},
            {
                "role": "assistant",
                "content": [],
                "tool_calls": [{"name": "change", "arguments": {"currency": "NOK"}}],
            },
        ],
        "tools": [
            {
                "name": "change",
                "parameters": {"currency": {"type": "string"}, "n": {"type": "integer"}},
            }
        ],
    },
]


def test_rows_of_parquet_are_those_of_json_lines(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in PADDED), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(PADDED), table)
    read_by = {}
    for path in (lines, table):
        raw = [row for row in read_rows(DataFile(path)) if isinstance(row, RawRow)]
        assert len(raw) == 2
        read_by[path] = [to_messages(row.data, "auto", "refuse") for row in raw]
    # Parquet pads `arguments` with a null place, currency and day.
    assert "null" not in str(read_by[table])
    assert [m[0][0].content for m in read_by[table]] == [m[0][0].content for m in read_by[lines]]
    assert read_by[table] == read_by[lines]


@pytest.mark.parametrize("field", ["messages", "conversations", "conversation"])
def test_turns_may_be_json_text(field: str) -> None:
    row = {field: json.dumps([*SPOKEN, {"role": "user", "content": "Oh", "name": None}])}
    assert turns(row) == ["user: Ask.", "assistant: Told.", "user: Oh"]
    with pytest.raises(FormatError, match=f"field '{field}' is text that is no JSON"):
        turns({field: "[{'role': 'user'}]"})
    with pytest.raises(FormatError, match="no known format"):
        turns({field: "a chat"})


def test_a_function_call_is_part_of_its_turn() -> None:
    call = {"name": "sky", "arguments": '{"place": "Oslo"}'}
    answer = {"role": "assistant", "content": "I look.", "function_call": call}
    row = {"functions": [{"name": "sky"}], "messages": [SPOKEN[0], answer, *SPOKEN]}
    found = turns(row)
    assert found[0] == 'system: [{"name": "sky"}]'
    assert found[2] == f"assistant: I look.\n\n{json.dumps(call)}"
    assert turns({"messages": [SPOKEN[0], {**answer, "content": None}]}) == [
        "user: Ask.",
        f"assistant: {json.dumps(call)}",
    ]
    texts = [SPOKEN[0], {"role": "assistant", "content": "", "tool_calls": '[{"name": "sky"}]'}]
    assert turns({"messages": texts})[1] == 'assistant: [{"name": "sky"}]'


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        (
            {"Frage": "Eis?", "Antwort": "Ja", "Ton": "knapp"},
            {"prompt": "Frage", "answer": "Antwort", "system": "Ton"},
            ["system: knapp", "user: Eis?", "assistant: Ja"],
        ),
        (
            {"Instruction": "Add.", "Input": "1 2", "Output": "3", "instruction": "no"},
            {"prompt": ["Instruction", "Input"], "answer": "Output"},
            ["user: Add.\n\n1 2", "assistant: 3"],
        ),
        (
            {"Instruction": "Add.", "Input": None, "Output": "3"},
            {"prompt": ["Instruction", "Input"], "answer": "Output"},
            ["user: Add.", "assistant: 3"],
        ),
        (
            {"q": "And?", "a": "Yes", "past": [["Hi", "Hello"]]},
            {"prompt": "q", "answer": "a", "history": "past"},
            ["user: Hi", "assistant: Hello", "user: And?", "assistant: Yes"],
        ),
        (
            {"q": "And?", "a": "Yes", "past": json.dumps(SPOKEN)},
            {"prompt": "q", "answer": "a", "history": "past"},
            ["user: Ask.", "assistant: Told.", "user: And?", "assistant: Yes"],
        ),
        (
            {"messages": "Hm?", "output": "Ho"},
            {"prompt": "messages", "answer": "output", "history": "past"},
            ["user: Hm?", "assistant: Ho"],
        ),
    ],
)
def test_a_source_may_name_its_own_columns(row: Any, columns: Any, expected: list[str]) -> None:
    (messages,) = to_messages(row, "auto", "refuse", Columns(**columns))
    assert [f"{turn.role}: {turn.content}" for turn in messages] == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"q": "a"}, "no field 'a'"),
        ({"a": "a"}, "no field 'q'"),
        ({"q": "a", "a": ["b"]}, "field 'a' is a list, not text"),
        ({"q": "a", "a": "b", "h": [["c"]]}, "field 'h' is not a list of pairs"),
        ({"q": "a", "a": "b", "h": "c"}, "field 'h' is text that is no JSON"),
        ({"q": "a", "a": "b", "images": ["c"]}, "the row has 'images'"),
    ],
)
def test_a_row_without_the_named_columns_is_refused(row: Any, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        to_messages(row, "auto", "refuse", Columns(prompt="q", answer="a", history="h"))


def test_text_that_nothing_reads_is_named() -> None:
    def unread(row: dict[str, Any], format: str = "auto") -> tuple[str, ...]:
        return read(row, format, "refuse").unread

    assert unread({**PLAIN["alpaca"], "text": "x", "id": 3, "lang": " "}) == ("text",)
    # Of two answers one is read.
    assert unread({**PLAIN["alpaca"], "response": "x"}) == ("response",)
    assert unread({**PLAIN["openai"], "prompt": "Ask."}) == ("prompt",)
    for format, row in PLAIN.items():
        assert unread({**row, "system": "a", "context": "b", "note": "c"}, format) == ("note",)
    columns = Columns(prompt="q", answer="a")
    assert read({"q": "a", "a": "b", "system": "c"}, "auto", "refuse", columns).unread == (
        "system",
    )


def test_a_row_nested_beyond_reason_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(FormatError, match="nested too deeply"):
        to_messages({"prompt": "a", "completion": "b", "more": deep}, "auto", "refuse")


def test_a_value_that_json_has_not_is_refused() -> None:
    calls = [{"name": "f", "arguments": {"when": datetime.date(2024, 1, 1)}}]
    row = {"messages": [SPOKEN[0], {"role": "assistant", "content": "a", "tool_calls": calls}]}
    with pytest.raises(FormatError, match="can't be written as JSON"):
        turns(row)


# --- preferences --------------------------------------------------------------------------

HUMAN = {"from": "human", "value": "Sing"}
PREFERENCES: list[tuple[dict[str, Any], list[str]]] = [
    (
        {
            "conversations": [{"from": "system", "value": "Hum."}, HUMAN],
            "chosen": {"from": "gpt", "value": "La"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        ["system: Hum.", "user: Sing", "assistant: La"],
    ),
    (
        {"conversations": [HUMAN], "chosen": "La", "rejected": "No"},
        ["user: Sing", "assistant: La"],
    ),
    (
        {"instruction": "Sing", "input": "low", "chosen": "La", "rejected": "No"},
        ["user: Sing\n\nlow", "assistant: La"],
    ),
    ({"prompt": "Sing", "chosen": "La", "rejected": "No"}, ["user: Sing", "assistant: La"]),
    (
        {
            "prompt": "Sing",
            "chosen": [{"role": "assistant", "content": "La"}],
            "rejected": [{"role": "assistant", "content": "No"}],
        },
        ["user: Sing", "assistant: La"],
    ),
    (
        {
            "prompt": "Sing",
            "chosen": [
                {"role": "user", "content": "Sing"},
                {"role": "assistant", "content": "La"},
            ],
            "rejected": [],
        },
        ["user: Sing", "assistant: La"],
    ),
    (
        {"conversations": [HUMAN, {"from": "gpt", "value": "La"}], "label": True},
        ["user: Sing", "assistant: La"],
    ),
    (
        {"prompt": "Sing", "completion": "La", "label": True},
        ["user: Sing", "assistant: La"],
    ),
]


@pytest.mark.parametrize(("row", "expected"), PREFERENCES)
def test_preference_rows_are_refused_unless_the_chosen_answer_is_asked_for(
    row: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(FormatError, match="preference: chosen"):
        to_messages(row, "auto", "refuse")
    assert turns(row, preference="chosen") == expected


def test_a_row_labelled_false_gives_nothing() -> None:
    row = {"messages": [{"role": "user", "content": "a"}], "label": False}
    assert to_messages(row, "auto", "chosen") == []


def test_a_label_that_is_a_class_is_no_preference() -> None:
    assert turns({"prompt": "a", "completion": "b", "label": 1}) == ["user: a", "assistant: b"]


# --- anything -----------------------------------------------------------------------------


def _fields(value: Any) -> set[str]:
    """All keys of objects within a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set(value if isinstance(value, dict) else ()).union(*map(_fields, inner))


FIELDS = st.sampled_from(sorted(_fields(CASES + [r for r, _ in PREFERENCES])))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["user", "assistant", "human", "gpt", "system", "tool", "text"])
    | st.text(st.characters(), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=25,
)


@given(
    st.dictionaries(FIELDS | st.text(st.characters(), max_size=3), VALUES, max_size=6),
    st.sampled_from(["auto", *PLAIN]),
    st.sampled_from(["refuse", "chosen"]),
)
def test_any_row_is_a_conversation_or_a_clear_refusal(
    row: dict[str, Any], format: str, preference: str
) -> None:
    try:
        found = to_messages(row, format, preference)
    except FormatError as error:
        reason = str(error)
        assert reason
        assert len(reason) < 400
        reason.encode()
        return
    for messages in found:
        roles = [message.role for message in messages]
        assert {"user", "assistant"} <= set(roles) <= set(ROLES)
        for message in messages:
            assert message.content.strip()
            message.content.encode()


# --- real collections ---------------------------------------------------------------------

# Rows that can be used, by detected format, and rows that can't: counted apart from this code.
REAL: dict[str, tuple[str, int, int]] = {
    "alpaca/alpaca_data.json": ("alpaca", 51974, 28),
    "alpaca_zh/zh-data-part-00.json": ("alpaca", 10015, 6),
    "code/code_alpaca_2k.json": ("alpaca", 2015, 2),
    "code/code_example.json": ("alpaca", 8783, 0),
    "dolly/dolly_3k.json": ("alpaca", 2996, 0),
    "dolly/dolly_unused_5k.jsonl": ("alpaca", 5010, 0),
    "dolly/knowtuning/dolly_test.json": ("alpaca", 200, 0),
    "dolly/knowtuning/dolly_train.json": ("alpaca", 4000, 0),
    "dolly/knowtuning/dolly_valid.json": ("alpaca", 200, 0),
    "flan_v2_cot_tsv/aqua_train.tsv": ("flan_cot", 2728, 0),
    "flan_v2_cot_tsv/creak_train.tsv": ("flan_cot", 6915, 0),
    "flan_v2_cot_tsv/ecqa_train.tsv": ("flan_cot", 7112, 0),
    "flan_v2_cot_tsv/gsm8k_train.tsv": ("flan_cot", 7473, 0),
    "flan_v2_cot_tsv/qasc_train.tsv": ("flan_cot", 1084, 0),
    "flan_v2_cot_tsv/sensemaking_train.tsv": ("flan_cot", 6070, 0),
    "flan_v2_cot_tsv/strategyqa_train.tsv": ("flan_cot", 2061, 0),
    "gpteacher/codegen-instruct.json": ("alpaca", 4535, 0),
    "gpteacher/toolformer-dedupe-only-dataset.json": ("alpaca", 7673, 0),
    "llamafactory_demo/alpaca_en_demo.json": ("alpaca", 999, 0),
    "llamafactory_demo/alpaca_zh_demo.json": ("alpaca", 1000, 0),
    "llamafactory_demo/dataset_info.json": ("", 0, 1),
    "llamafactory_demo/dpo_en_demo.json": ("sharegpt", 0, 300),
    "llamafactory_demo/glaive_toolcall_en_demo.json": ("sharegpt", 300, 0),
    "llamafactory_demo/glaive_toolcall_zh_demo.json": ("sharegpt", 300, 0),
    "llamafactory_demo/identity.json": ("alpaca", 91, 0),
    "llamafactory_demo/kto_en_demo.json": ("openai", 0, 300),
    "llamafactory_demo/reason_tool_use_demo_50.jsonl": ("openai", 50, 0),
    "llamafactory_demo/v1_sft_demo.jsonl": ("openai", 500, 0),
    "oasst/en_100_tree.jsonl": ("oasst", 100, 0),
    "oasst/oa_questions.jsonl": ("prompt_completion", 953, 0),
    "oasst/oasst2_filtered.jsonl": ("oasst", 118, 433),
    "octopack_oasst/oasstcommitpackft.jsonl": ("prompt_completion", 151, 0),
    "octopack_oasst/oasstcommitpackftmanual.jsonl": ("prompt_completion", 1178, 0),
    "octopack_oasst/rawin.jsonl": ("alpaca", 0, 5003),
    "vigogne_fr/oasst_20230412_fr_top1.jsonl": ("openai", 256, 0),
}


def converted(path: Path, preference: str = "refuse") -> tuple[collections.Counter[str], int, int]:
    """(rows by format, conversations, rows refused) of a file."""
    formats: collections.Counter[str] = collections.Counter()
    good = bad = 0
    # FLAN's files have no header: their source says what they are.
    format = "flan_cot" if path.suffix == ".tsv" else "auto"
    for row in read_rows(DataFile(path), header_of(format)):
        assert isinstance(row, RawRow)
        try:
            formats[format if format == "flan_cot" else detect(row.data)] += 1
            good += len(to_messages(row.data, format, preference))
        except FormatError:
            bad += 1
    return formats, good, bad


@needs_pools
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read(name: str) -> None:
    format, expected_good, expected_bad = REAL[name]
    formats, good, bad = converted(POOLS / name)
    assert (good, bad) == (expected_good, expected_bad)
    assert set(formats) == ({format} if format else set())


@needs_pools
def test_every_real_file_is_accounted_for() -> None:
    files = {path.relative_to(POOLS).as_posix() for path in POOLS.rglob("*") if path.is_file()}
    assert {file for file in files if not file.startswith("t0_train_50k/")} == set(REAL)


@needs_pools
def test_a_folder_of_many_templates_is_read() -> None:
    rows = empty = 0
    for path in sorted((POOLS / "t0_train_50k").iterdir()):
        try:
            formats, good, bad = converted(path)
        except EmptyFileError:
            empty += 1
            continue
        assert (set(formats), bad) == ({"prompt_completion"}, 0)
        rows += good
    assert (rows, empty) == (55185, 11)


@needs_pools
@pytest.mark.parametrize(("name", "expected"), [("dpo_en_demo", 300), ("kto_en_demo", 150)])
def test_chosen_answers_of_real_preferences(name: str, expected: int) -> None:
    formats, good, bad = converted(POOLS / f"llamafactory_demo/{name}.json", "chosen")
    assert (sum(formats.values()), good, bad) == (300, expected, 0)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("roles", [("role", "content"), ("from", "value")])
def test_reasoning_in_a_field_leads_the_answer(field: str, roles: tuple[str, str]) -> None:
    role, content = roles
    turns = [
        {role: "user", content: "Why?", field: None},
        {role: "assistant", content: "So.", field: "\nBecause\n\nof this.\n"},
        {role: "user", content: "And?", field: "not an answer"},
        {role: "assistant", content: "<think>mine</think>No.", field: "again"},
        {role: "assistant", content: "Yes.", field: ""},
    ]
    (found,) = to_messages({"messages": turns}, "auto", "refuse")
    assert [turn.content for turn in found] == [
        "Why?",
        "<think>\nBecause\n\nof this.\n</think>\n\nSo.",
        "And?",
        "<think>mine</think>No.",
        "Yes.",
    ]


def test_reasoning_that_is_no_text_is_refused() -> None:
    turns = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "reasoning": {"effort": "high"}},
    ]
    with pytest.raises(FormatError, match="field 'reasoning' is a dict, not text"):
        to_messages({"messages": turns}, "auto", "refuse")
