"""Target readers against small files of known content and against the real benchmarks."""

from __future__ import annotations

import gzip
import importlib.util
import json
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mona.errors import RequestError
from mona.files import DataFile
from mona.sample import Message, sample_id
from mona.spec import Hub, TargetFiles, TargetSpec
from mona.targets import (
    EXAMPLES_SCHEMA,
    TargetRow,
    choose_examples,
    from_table,
    held_out,
    read_target,
    to_table,
)

BENCHMARKS = Path(__file__).resolve().parents[4] / "shared" / "data" / "targets"


def written(path: Path, content: str) -> DataFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(content), encoding="utf-8")
    return DataFile(path)


def json_lines(path: Path, *rows: object) -> DataFile:
    return written(path, "".join(json.dumps(row) + "\n" for row in rows))


def turns(row: TargetRow) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in row.messages]


# --- readers ------------------------------------------------------------------------------


def test_gsm8k_keeps_the_rationale_to_the_letter(tmp_path: Path) -> None:
    answer = "Ida picks 3*4 = <<3*4=12>>12 pears.\n#### 12"
    file = json_lines(
        tmp_path / "train.jsonl",
        {"question": "Ida picks 3 pears an hour for 4 hours. How many?", "answer": answer},
        {"question": "How many legs have two hens?"},
    )
    first, second = read_target("gsm8k", [file])
    assert turns(first) == [
        ("user", "Ida picks 3 pears an hour for 4 hours. How many?"),
        ("assistant", answer),
    ]
    assert (first.subtask, first.file, first.row) == ("gsm8k", "train.jsonl", 1)
    assert first.question == "Ida picks 3 pears an hour for 4 hours. How many?"
    assert turns(second) == [("user", "How many legs have two hens?")]
    assert second.row == 2


def test_mmlu_letters_the_options_and_answers_with_letter_and_text(tmp_path: Path) -> None:
    file = written(
        tmp_path / "marine_biology_dev.csv",
        """\
        "Which of these, if any, is a fish?",Whale,Cod,Squid,"None, really",B
        How many arms has a starfish?,3,4,5,6,C
        """,
    )
    first, second = read_target("mmlu", [file])
    assert turns(first) == [
        (
            "user",
            "Which of these, if any, is a fish?\n"
            "A. Whale\nB. Cod\nC. Squid\nD. None, really\nAnswer:",
        ),
        ("assistant", "B. Cod"),
    ]
    assert first.question == "Which of these, if any, is a fish?"
    assert first.subtask == "marine_biology"
    assert (second.messages[1].content, second.row) == ("C. 5", 2)


def test_bbh_reads_tasks_and_exemplars(tmp_path: Path) -> None:
    task = written(
        tmp_path / "coin_order.json",
        json.dumps({"canary": "x", "examples": [{"input": "Which coin?", "target": "(A)"}]}),
    )
    exemplars = written(
        tmp_path / "cot" / "coin_order.txt",
        """\
        A canary line.
        -----
        Put the coins in order.

        Q: Which coin is left?
        Options:
        (A) copper
        A: Let's think step by step.
        Copper. So the answer is (A).

        Q: Which coin is right?
        A: Let's think step by step.
        Silver.""",
    )
    rows = read_target("bbh", [task, exemplars])
    assert [turns(row) for row in rows] == [
        [("user", "Which coin?"), ("assistant", "(A)")],
        [
            ("user", "Which coin is left?\nOptions:\n(A) copper"),
            ("assistant", "Let's think step by step.\nCopper. So the answer is (A)."),
        ],
        [
            ("user", "Which coin is right?"),
            ("assistant", "Let's think step by step.\nSilver."),
        ],
    ]
    assert {row.subtask for row in rows} == {"coin_order"}
    assert [row.row for row in rows] == [1, 1, 2]


def mbpp_rows(field: str) -> list[dict[str, object]]:
    return [
        {field: f"Return {n}.", "code": f"def f(): return {n}", "task_id": n, "test_list": ["t"]}
        for n in (510, 511, 600, 601)
    ]


def test_mbpp_takes_a_split_by_task_id_from_both_kinds_of_file(tmp_path: Path) -> None:
    full = json_lines(tmp_path / "mbpp.jsonl", *mbpp_rows("text"))
    sanitized = written(tmp_path / "sanitized.json", json.dumps(mbpp_rows("prompt"), indent=2))
    rows = read_target("mbpp", [full, sanitized], task_ids=(511, 600))
    assert [row.question for row in rows] == ["Return 511.", "Return 600."] * 2
    assert turns(rows[0]) == [
        ("user", "Return 511. Your code should pass these tests:\n\nt"),
        ("assistant", "def f(): return 511"),
    ]
    assert len(read_target("mbpp", [full])) == 4


def test_files_are_refused_that_a_reader_has_no_use_for(tmp_path: Path) -> None:
    full = json_lines(tmp_path / "mbpp.jsonl", *mbpp_rows("text"))
    with pytest.raises(RequestError, match="task_ids is for reader mbpp, not gsm8k"):
        read_target("gsm8k", [full], task_ids=(1, 10))
    with pytest.raises(RequestError, match=r"finds no rows in mbpp\.jsonl"):
        read_target("mbpp", [full], task_ids=(1, 10))
    with pytest.raises(ValidationError, match="first <= last"):
        TargetFiles(path="mbpp.jsonl", task_ids=(600, 511))
    split = TargetFiles(hub=Hub(repo="orchard/tasks"))
    with pytest.raises(ValidationError, match="lm_eval reads task files"):
        TargetSpec(reader="lm_eval", examples=split)


def test_humaneval_reads_the_compressed_file(tmp_path: Path) -> None:
    row = {"task_id": "T/0", "prompt": "def one():\n", "canonical_solution": "    return 1\n"}
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode() + b"\n"))
    (found,) = read_target("humaneval", [DataFile(path)])
    assert turns(found) == [("user", "def one():\n"), ("assistant", "    return 1\n")]


def squad(*questions: dict[str, object]) -> str:
    paragraph = {"context": "Der Fluss ist lang.", "qas": list(questions)}
    return json.dumps({"data": [{"title": "Fluss", "paragraphs": [paragraph]}]})


@pytest.mark.parametrize(
    ("path", "question_id", "language"),
    [
        ("all/dev.json", "swahili-4-0", "swahili"),
        ("all/tydiqa-goldp-dev-finnish.json", "17", "finnish"),
        ("thai/dev.json", "17", "thai"),
        ("all/dev.json", "17", "dev"),
    ],
)
def test_tydiqa_tells_the_language(
    tmp_path: Path, path: str, question_id: str, language: str
) -> None:
    question = {
        "id": question_id,
        "question": "Wie ist er?",
        "answers": [{"text": "lang"}, {"text": "Fluss"}],
    }
    (row,) = read_target("tydiqa", [written(tmp_path / path, squad(question))])
    assert turns(row) == [("user", "Der Fluss ist lang.\n\nWie ist er?"), ("assistant", "lang")]
    assert row.question == "Wie ist er?"
    assert row.subtask == language


def test_tydiqa_question_without_answer_is_a_user_turn_alone(tmp_path: Path) -> None:
    file = written(tmp_path / "dev.json", squad({"id": "a-1", "question": "Wo?", "answers": []}))
    (row,) = read_target("tydiqa", [file])
    assert [message.role for message in row.messages] == ["user"]


GPQA = """\
    Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3{columns}
    What boils first?,ether,water,lead,iron{first}
    What sinks?,stone,cork,oil,foam{second}
    """


def test_gpqa_orders_options_by_content_and_answers_after_the_rationale(tmp_path: Path) -> None:
    plain = written(tmp_path / "main.csv", GPQA.format(columns="", first="", second=""))
    rich = written(
        tmp_path / "extended.csv",
        GPQA.format(
            columns=",Explanation,Subdomain,High-level domain",
            first=",It is volatile.,Physical chemistry,Chemistry",
            second=",,Mechanics,",
        ),
    )
    rows, richer = read_target("gpqa", [plain]), read_target("gpqa", [rich])
    for row, correct in zip(rows, ("ether", "stone"), strict=True):
        question, *options, cue = row.messages[0].content.split("\n")
        assert question == row.question
        assert cue == "Answer:"
        assert [line[:3] for line in options] == ["A. ", "B. ", "C. ", "D. "]
        assert row.messages[1].content in options
        assert row.messages[1].content[3:] == correct
    assert [row.messages[0] for row in rows] == [row.messages[0] for row in richer]
    assert richer[0].messages[1].content == f"It is volatile.\n{rows[0].messages[1].content}"
    assert [row.subtask for row in rows] == ["main", "main"]
    assert [row.subtask for row in richer] == ["Chemistry", "Mechanics"]


def test_rows_of_a_hub_are_read_as_the_files_are(tmp_path: Path) -> None:
    options = ["3", "4", "5", "6"]
    arms = {"question": "How many arms?", "choices": options, "answer": 2, "subject": "sea"}
    gpqa = {"Question": "What boils first?", "Correct Answer": "ether", "Explanation": None}
    gpqa |= {f"Incorrect Answer {i}": name for i, name in enumerate(("water", "lead", "iron"), 1)}
    columns = ",".join(name for name in gpqa if name != "Explanation")
    passage = {"id": "swahili-4-0", "context": "Der Fluss ist lang.", "question": "Wie ist er?"}
    found = {"text": ["lang", "Fluss"], "answer_start": [15, 4]}
    entry = {**passage, "answers": [{"text": text} for text in found["text"]]}
    pairs = [
        (
            "mmlu",
            written(tmp_path / "sea_dev.csv", "How many arms?,3,4,5,6,C\n"),
            json_lines(tmp_path / "all.jsonl", arms),
        ),
        (
            "gpqa",
            written(tmp_path / "a.csv", f"{columns}\nWhat boils first?,ether,water,lead,iron\n"),
            json_lines(tmp_path / "a.jsonl", gpqa),
        ),
        (
            "bbh",
            written(tmp_path / "coin.json", '{"examples": [{"input": "Q?", "target": "(A)"}]}'),
            json_lines(tmp_path / "coin.jsonl", {"input": "Q?", "target": "(A)"}),
        ),
        (
            "tydiqa",
            written(tmp_path / "all.json", squad(entry)),
            json_lines(tmp_path / "secondary_task.jsonl", passage | {"answers": found}),
        ),
    ]
    for reader, file, rows in pairs:
        (one,), (other,) = read_target(reader, [file]), read_target(reader, [rows])
        assert replace(one, file="") == replace(other, file="")


def test_gpqa_right_answers_take_every_letter(tmp_path: Path) -> None:
    header = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3\n"
    body = "".join(f"Riddle {n}?,yes,no,maybe,never\n" for n in range(200))
    rows = read_target("gpqa", [written(tmp_path / "gpqa.csv", header + body)])
    letters = Counter(row.messages[1].content[0] for row in rows)
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > 30


def test_pool_formats_are_targets_too(tmp_path: Path) -> None:
    file = json_lines(
        tmp_path / "mine.jsonl",
        {"instruction": "Name a river.", "input": "", "output": "Elbe"},
        {
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": "Bye"},
                {"role": "assistant", "content": "Bye!"},
            ]
        },
        {"prompt": "A question without an answer"},
    )
    rows = read_target("pool", [file])
    assert turns(rows[0]) == [("user", "Name a river."), ("assistant", "Elbe")]
    assert rows[1].question == "Hello\nBye"
    assert turns(rows[2]) == [("user", "A question without an answer")]
    assert [(row.subtask, row.row) for row in rows] == [("mine", 1), ("mine", 2), ("mine", 3)]


# --- lm-evaluation-harness ------------------------------------------------------------------

LM_EVAL_FILES = {
    "tasks/_group.yaml": "group: birds\ntask: [owls]\n",
    "tasks/owls.yaml": """\
        task: owls
        doc_to_text: "Q: {{input}}\\nA: Let's think step by step.\\n"
        process_docs: !function utils.explode
        other: !unknown {a: 1}
        fewshot_config:
          sampler: first_n
          samples:
            - {input: "Is an owl a bird?", target: It has feathers. Yes.}
            - {input: "Is a bat a bird?", target: It has fur. No.}
        """,
    "tasks/ducks.yaml": """\
        fewshot_config:
          samples:
            - {context: A pond., question: "Who swims?", answer: The duck.}
            - {question: "Which one?", A: a, B: b, C: c, D: d, target: B}
        """,
    "tasks/code.yaml": "fewshot_config:\n  samples: !function utils.samples\n",
    "tasks/utils.py": """\
        raise SystemExit("this file must never run")


        def samples():
            return [{"text": "Add.", "code": "x + y", "test_list": ["t1", "t2"], "flag": True}]


        def computed():
            return [{"question": str(1), "target": "2"}]
        """,
}


def wheel_of(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, dedent(content))
    return path


def test_lm_eval_reads_exemplars_in_a_wheel_without_running_it(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path / "tasks-1.0-py3-none-any.whl", LM_EVAL_FILES)
    members = [name for name in LM_EVAL_FILES if name.endswith(".yaml")]
    rows = read_target("lm_eval", [DataFile(wheel, member) for member in members])
    assert [(row.subtask, turns(row)) for row in rows] == [
        (
            "owls",
            [
                ("user", "Is an owl a bird?"),
                ("assistant", "Let's think step by step.\nIt has feathers. Yes."),
            ],
        ),
        (
            "owls",
            [
                ("user", "Is a bat a bird?"),
                ("assistant", "Let's think step by step.\nIt has fur. No."),
            ],
        ),
        ("ducks", [("user", "A pond.\n\nWho swims?"), ("assistant", "The duck.")]),
        ("ducks", [("user", "Which one?\nA. a\nB. b\nC. c\nD. d\nAnswer:"), ("assistant", "B")]),
        (
            "code",
            [
                ("user", "Add. Your code should pass these tests:\n\nt1\nt2"),
                ("assistant", "x + y"),
            ],
        ),
    ]
    assert rows[0].file == "tasks-1.0-py3-none-any.whl!tasks/owls.yaml"
    assert [row.question for row in rows[2:4]] == ["Who swims?", "Which one?"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ("!function utils.computed", "made by code"),
        ("!function utils.absent", "made by code"),
        ("!function other.samples", r"no readable other\.py beside it"),
        ("some text", "not a list"),
        ("[{json_schema: a, json_object: b}]", "row 1: unknown fields of a sample: json_object"),
        ("[{question: a, target: '  '}]", "row 1: field 'target' is empty"),
        ("[plain]", "row 1: a sample is not a mapping"),
        ("[", "invalid YAML"),
    ],
)
def test_lm_eval_names_what_it_cannot_read(tmp_path: Path, samples: str, message: str) -> None:
    files = {**LM_EVAL_FILES, "tasks/new.yaml": f"fewshot_config:\n  samples: {samples}\n"}
    wheel = wheel_of(tmp_path / "t.whl", files)
    with pytest.raises(RequestError, match=rf"^t\.whl!tasks/new\.yaml.*{message}"):
        read_target("lm_eval", [DataFile(wheel, "tasks/new.yaml")])


def test_lm_eval_never_builds_python_objects(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = written(
        tmp_path / "evil.yaml",
        f"""\
        x: !!python/object/apply:os.system ["touch {marker}"]
        fewshot_config:
          samples:
            - question: q
              target: !!python/name:os.system sys
        """,
    )
    (row,) = read_target("lm_eval", [file])
    assert not marker.exists()
    assert row.messages[1].content == "tag:yaml.org,2002:python/name:os.system sys"


def test_lm_eval_without_any_sample_is_an_error(tmp_path: Path) -> None:
    wheel = wheel_of(tmp_path / "t.whl", LM_EVAL_FILES)
    with pytest.raises(RequestError, match=r"finds no samples in t\.whl!tasks/_group"):
        read_target("lm_eval", [DataFile(wheel, "tasks/_group.yaml")])


# --- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "name", "content", "message"),
    [
        ("gsm8k", "a.jsonl", '{"question": "q"}\n{"question": ', "a.jsonl row 2: invalid JSON"),
        ("gsm8k", "a.jsonl", '{"answer": "x"}', "a.jsonl row 1: no field 'question'"),
        ("gsm8k", "a.jsonl", '{"question": 3}', "a.jsonl row 1: field 'question' is a int"),
        ("gsm8k", "a.jsonl", '{"question": "q", "answer": " "}', "row 1: field 'answer' is empty"),
        ("gsm8k", "a.jsonl", '{"question": "\\ud83d"}', "row 1: half a surrogate pair"),
        ("gsm8k", "a.jsonl", "", "a.jsonl: empty file"),
        ("mmlu", "a.csv", "q,1,2,3,4,A\nq,1,2,3,B\n", "a.csv row 2: 5 columns where 6"),
        ("mmlu", "a.csv", "q,1,2,3,4,E\n", "a.csv row 1: the answer is 'E'"),
        ("mmlu", "a.csv", " ,1,2,3,4,A\n", "a.csv row 1: the question is empty"),
        ("mmlu", "a.csv", 'q,1,2,3,4,A\n"open', "a.csv line 2: invalid CSV"),
        ("mmlu", "a.csv", "", "a.csv: no rows"),
        ("mmlu", "a.jsonl", '{"choices": "ABCD"}', "a.jsonl row 1: field 'choices'"),
        ("mmlu", "a.jsonl", '{"choices": [], "answer": 4}', "a.jsonl row 1: field 'answer' is 4"),
        ("tydiqa", "a.jsonl", '{"answers": ["lang"]}', "a.jsonl row 1: field 'answers'"),
        ("bbh", "a.json", '{"examples": {}}', "a.json: no list 'examples'"),
        ("bbh", "a.json", '{"examples": [4]}', "a.json row 1: not an object"),
        ("bbh", "a.json", "{", "a.json: invalid JSON"),
        ("bbh", "a.txt", "Q: one\nA: 1\n\nQ: two\n", "a.txt row 2: an exemplar is one"),
        ("bbh", "a.txt", "nothing here", "a.txt: no rows"),
        ("mbpp", "a.jsonl", '{"text": "t", "code": "c"}', "row 1: field 'test_list' is not a list"),
        ("tydiqa", "a.json", '{"data": [{"title": "t"}]}', "a.json: not SQuAD's"),
        ("gpqa", "a.csv", "Question,Answer\nq,a\n", "a.csv: no column 'Correct Answer'"),
        ("gpqa", "a.csv", "Question,Correct Answer\nq\n", "a.csv row 1: 1 columns where 2"),
        ("gpqa", "a.csv", "Question,Correct Answer\nq,a\n", "no field 'Incorrect Answer 1'"),
        ("pool", "a.jsonl", '{"instruction": "q", "input": "i"}', "a.jsonl row 1: no answer"),
        ("pool", "a.jsonl", '{"prompt": ""}', "a.jsonl row 1: field 'prompt' is empty"),
        (
            "pool",
            "a.jsonl",
            '{"prompt": "p", "chosen": "c", "rejected": "r"}',
            "a.jsonl row 1: a preference row",
        ),
    ],
)
def test_a_bad_row_names_its_file_and_row(
    tmp_path: Path, reader: str, name: str, content: str, message: str
) -> None:
    file = written(tmp_path / name, content)
    with pytest.raises(RequestError) as caught:
        read_target(reader, [file])  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"caf\xe9,1,2,3,4,A\n")
    with pytest.raises(RequestError, match=r"a\.csv: not UTF-8 \(byte 3\)"):
        read_target("mmlu", [DataFile(path)])


def test_no_files_is_an_error() -> None:
    with pytest.raises(RequestError, match="reader gsm8k finds no rows"):
        read_target("gsm8k", [])


# --- examples and test rows ---------------------------------------------------------------------


def invented(number: int, subtask: str = "s") -> TargetRow:
    question = f"question {number}"
    messages = (Message("user", question), Message("assistant", str(number)))
    return TargetRow(messages, subtask, "file", number + 1, question)


def test_the_draw_is_seeded_and_keeps_the_order() -> None:
    rows = [invented(number) for number in range(200)]
    drawn = choose_examples(rows, count=20, per_subtask=None, seed=1)
    assert len(drawn) == 20
    assert [row.row for row in drawn] == sorted(row.row for row in drawn)
    assert drawn == choose_examples(rows, count=20, per_subtask=None, seed=1)
    assert drawn != choose_examples(rows, count=20, per_subtask=None, seed=2)
    # A known answer: the draw must stay the same on every machine and in every version.
    assert [row.row for row in choose_examples(rows, count=5, per_subtask=None, seed=0)] == [
        29,
        129,
        131,
        133,
        160,
    ]


@given(st.permutations(range(12)), st.integers(1, 12), st.integers(0, 5))
def test_the_draw_depends_on_neither_order_nor_the_rows_that_lose(
    order: list[int], count: int, seed: int
) -> None:
    rows = [invented(number) for number in range(12)]
    expected = {row.row for row in choose_examples(rows, count=count, per_subtask=None, seed=seed)}
    shuffled = [rows[number] for number in order]
    drawn = choose_examples(shuffled, count=count, per_subtask=None, seed=seed)
    assert {row.row for row in drawn} == expected
    assert choose_examples(drawn, count=count, per_subtask=None, seed=seed) == drawn
    smaller = choose_examples(rows, count=count - 1 or 1, per_subtask=None, seed=seed)
    assert {row.row for row in smaller} <= expected


def test_per_subtask_takes_that_many_of_each_before_the_count() -> None:
    rows = [invented(number, "abc"[number % 3]) for number in range(30)]
    drawn = choose_examples(rows, count=None, per_subtask=2, seed=0)
    assert Counter(row.subtask for row in drawn) == {"a": 2, "b": 2, "c": 2}
    fewer = choose_examples(rows, count=4, per_subtask=2, seed=0)
    assert len(fewer) == 4
    assert set(fewer) <= set(drawn)
    assert choose_examples(rows, count=None, per_subtask=None, seed=0) == rows


def test_a_draw_larger_than_what_there_is_is_refused() -> None:
    rows = [invented(0, "a"), invented(1, "b"), invented(2, "b")]
    with pytest.raises(RequestError, match="4 examples were asked for, there are 3"):
        choose_examples(rows, count=4, per_subtask=None, seed=0)
    with pytest.raises(RequestError, match="2 examples per subtask were asked for, 'a' has 1"):
        choose_examples(rows, count=None, per_subtask=2, seed=0)


def test_repeated_rows_stay_repeated() -> None:
    rows = [invented(0), invented(0), invented(1)]
    assert choose_examples(rows, count=None, per_subtask=None, seed=0) == rows
    assert choose_examples(rows, count=3, per_subtask=None, seed=0) == rows


def test_held_out_drops_the_same_conversation_and_the_same_question() -> None:
    example = invented(0)
    same_question = TargetRow((Message("user", "other"),), "s", "f", 1, " question 0\n")
    same_messages = TargetRow(example.messages, "s", "f", 2, "asked otherwise")
    other = invented(1)
    rows = [other, same_question, same_messages, example]
    assert held_out(rows, [example]) == [other]
    assert held_out(rows, []) == rows


def test_table_round_trip() -> None:
    rows = [
        invented(0, "ä"),
        TargetRow((Message("user", "alone\n"),), "b", "w.whl!m.csv", 7, "alone", ("x", "y")),
    ]
    table = to_table(rows)
    assert table.schema == EXAMPLES_SCHEMA
    assert table.column("sample_id").to_pylist() == [sample_id(row.messages) for row in rows]
    assert from_table(table) == rows
    assert to_table([]).schema == EXAMPLES_SCHEMA


# --- the real files -------------------------------------------------------------------------------

real_files = pytest.mark.skipif(
    not BENCHMARKS.is_dir(), reason="the benchmarks' files are not beside the repository"
)


def real(reader: str, pattern: str, **options: tuple[int, int]) -> list[TargetRow]:
    files = [DataFile(path) for path in sorted(BENCHMARKS.glob(pattern))]
    rows = read_target(reader, files, **options)  # type: ignore[arg-type]
    for row in rows:
        assert [message.role for message in row.messages] == ["user", "assistant"]
        assert all(message.content.strip() for message in row.messages)
        assert row.question.strip()
    return rows


@real_files
@pytest.mark.parametrize(
    ("reader", "pattern", "count", "subtasks"),
    [
        ("gsm8k", "gsm8k/train.jsonl", 7473, 1),
        ("gsm8k", "gsm8k/test.jsonl", 1319, 1),
        ("mmlu", "mmlu/dev/*.csv", 285, 57),
        ("mmlu", "mmlu/val/*.csv", 1531, 57),
        ("mmlu", "mmlu/test/*.csv", 14042, 57),
        ("bbh", "bbh/bbh/*.json", 6511, 27),
        ("bbh", "bbh/cot-prompts/*.txt", 81, 27),
        ("mbpp", "mbpp/mbpp.jsonl", 974, 1),
        ("mbpp", "mbpp/sanitized-mbpp.json", 427, 1),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", 164, 1),
        ("tydiqa", "tydiqa_goldp/*/*_dev.json", 5077, 9),
    ],
)
def test_real_files_give_every_row(reader: str, pattern: str, count: int, subtasks: int) -> None:
    rows = real(reader, pattern)
    assert (len(rows), len({row.subtask for row in rows})) == (count, subtasks)


@real_files
def test_real_examples_of_the_paper() -> None:
    assert len(real("mbpp", "mbpp/mbpp.jsonl", task_ids=(511, 600))) == 90
    exemplars = real("bbh", "bbh/cot-prompts/*.txt")
    assert set(Counter(row.subtask for row in exemplars).values()) == {3}
    questions = real("tydiqa", "tydiqa_goldp/*/*_dev.json")
    drawn = choose_examples(questions, count=None, per_subtask=1, seed=0)
    assert len(drawn) == 9
    assert len({row.subtask for row in drawn}) == 9
    rest = held_out(questions, drawn)
    assert not {row.question for row in rest} & {row.question for row in drawn}
    assert 5077 - 9 - 5 <= len(rest) <= 5077 - 9
    train = real("gsm8k", "gsm8k/train.jsonl")
    assert len(choose_examples(train, count=100, per_subtask=None, seed=0)) == 100


@real_files
def test_five_questions_of_mmlu_are_in_dev_and_test() -> None:
    """Found by comparing the files' text: five test rows repeat dev rows with their options."""
    test, dev = real("mmlu", "mmlu/test/*.csv"), real("mmlu", "mmlu/dev/*.csv")
    prompts = {row.messages[0] for row in dev}
    assert sum(row.messages[0] in prompts for row in test) == 5
    assert len(held_out(test, dev)) == 14042 - 5


LM_EVAL = importlib.util.find_spec("lm_eval")


@pytest.mark.skipif(LM_EVAL is None, reason="lm_eval is not installed")
@pytest.mark.parametrize(
    ("pattern", "count", "subtasks"),
    [
        ("bbh/cot_fewshot/*.yaml", 81, 27),
        ("mmlu/flan_cot_fewshot/*.yaml", 282, 57),
        ("gsm8k/gsm8k-cot.yaml", 8, 1),
        ("mbpp/mbpp.yaml", 3, 1),
    ],
)
def test_exemplars_of_the_installed_lm_eval(pattern: str, count: int, subtasks: int) -> None:
    assert LM_EVAL is not None
    assert LM_EVAL.submodule_search_locations
    tasks = Path(LM_EVAL.submodule_search_locations[0]) / "tasks"
    rows = read_target("lm_eval", [DataFile(path) for path in sorted(tasks.glob(pattern))])
    assert (len(rows), len({row.subtask for row in rows})) == (count, subtasks)
    for row in rows:
        assert [message.role for message in row.messages] == ["user", "assistant"]
        assert all(message.content.strip() for message in row.messages)


# --- references -------------------------------------------------------------------------------


def test_references_are_what_a_metric_compares_with(tmp_path: Path) -> None:
    gsm8k = json_lines(
        tmp_path / "g.jsonl",
        {"question": "q", "answer": "1000+250=1250\n#### 1,250"},
        {"question": "open"},
    )
    assert [row.references for row in read_target("gsm8k", [gsm8k])] == [("1250",), ()]
    mmlu = written(tmp_path / "m_test.csv", "q,1,2,3,4,C\n")
    assert read_target("mmlu", [mmlu])[0].references == ("C",)
    gpqa = written(tmp_path / "main.csv", GPQA.format(columns="", first="", second=""))
    for row in read_target("gpqa", [gpqa]):
        assert row.references == (row.messages[1].content[0],)
    bbh = json_lines(tmp_path / "b.json", {"examples": [{"input": "i", "target": "(B)"}]})
    assert read_target("bbh", [bbh])[0].references == ("(B)",)
    answers = [{"text": "lang"}, {"text": "weit"}, {"text": "lang"}]
    tydiqa = written(
        tmp_path / "dev.json", squad({"id": "a-1", "question": "Wie?", "answers": answers})
    )
    assert read_target("tydiqa", [tydiqa])[0].references == ("lang", "weit")


def test_references_of_programs_are_their_tests(tmp_path: Path) -> None:
    tests = ["assert f() == 1", "assert f() > 0"]
    problem = {"text": "t", "code": "c", "task_id": 1, "test_list": tests}
    rows = json_lines(
        tmp_path / "mbpp.jsonl",
        problem | {"test_setup_code": "import math"},
        problem | {"test_setup_code": "", "test_imports": ["import re"]},
    )
    first, second = read_target("mbpp", [rows])
    assert first.references == ("import math", *tests)
    assert second.references == ("import re", *tests)
    humaneval = json_lines(
        tmp_path / "h.jsonl",
        {"prompt": "def one():\n", "test": "def check(f):\n    f()", "entry_point": "one"},
    )
    assert read_target("humaneval", [humaneval])[0].references == (
        "def check(f):\n    f()\ncheck(one)\n",
    )
