"""mona.evaluation.run and its tasks: a tiny model through the harness, without a network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mona.errors import RequestError
from mona.evaluation import harness, run
from mona.evaluation.results import RowResult, summarise
from mona.evaluation.run import evaluate
from mona.evaluation.tasks import make_tasks, shots_of
from mona.sample import Message, sample_id
from mona.spec import EvaluationSpec, TargetReader
from mona.targets import TargetRow

pytest.importorskip("lm_eval")


def row(
    prompt: str, answer: str, subtask: str = "s", references: Sequence[str] | None = None
) -> TargetRow:
    turns = (Message("user", prompt), Message("assistant", answer))
    gold = (answer,) if references is None else tuple(references)
    return TargetRow(turns, subtask, "file", 1, prompt, gold)


def choice(n: int, letter: str, subtask: str) -> TargetRow:
    options = "\n".join(f"{name}. {n}{name.lower()}" for name in "ABCD")
    prompt = f"Which of {n}?\n{options}\nAnswer:"
    return row(prompt, f"{letter}. {n}{letter.lower()}", subtask, [letter])


CHOICES = [choice(n, "ABCD"[n % 4], "birds" if n % 3 else "fish") for n in range(9)]
SHOTS = [choice(100, "D", "fish"), choice(101, "B", "birds"), choice(102, "C", "birds")]


def likelihoods(tiny: tuple[Any, Any], context: str, continuations: Sequence[str]) -> list[float]:
    """Each continuation's log-likelihood; the tokenizer has a token a byte."""
    import torch

    model, tokenizer = tiny
    found = []
    for continuation in continuations:
        head = tokenizer(context, add_special_tokens=False)["input_ids"]
        tail = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([head + tail])
        with torch.no_grad():
            scores = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
        places = range(len(head), len(head) + len(tail))
        found.append(sum(float(scores[i - 1, ids[0, i]]) for i in places))
    return found


def chat(turns: Sequence[tuple[str, str]]) -> str:
    text = "<|start|>system\nBe brief.<|stop|>\n"
    for role, content in turns:
        text += f"<|start|>{role}\n{content}<|stop|>\n"
    return f"{text}<|start|>assistant\n"


@pytest.mark.parametrize("in_chat", [True, False])
@pytest.mark.parametrize("shots", [0, 2])
def test_a_choice_is_the_likeliest_letter(
    tiny: tuple[Any, Any], tmp_path: Path, in_chat: bool, shots: int
) -> None:
    spec = EvaluationSpec(chat=in_chat, shots=shots)
    found = evaluate(*tiny, "mmlu", CHOICES, SHOTS, spec, scratch=tmp_path, batch_tokens=700)
    said = {answered.sample_id: answered for answered in found.rows}
    for test in CHOICES:
        asked = [("user", test.messages[0].content)]
        before = [
            (turn.role, turn.content if turn.role == "user" else shot.references[0])
            for shot in shots_of(test.subtask, SHOTS, shots)
            for turn in shot.messages
        ]
        if in_chat:
            scores = likelihoods(tiny, chat([*before, *asked]), "ABCD")
        else:
            ends = {"user": " ", "assistant": "\n\n"}
            context = "".join(f"{content}{ends[role]}" for role, content in before)
            scores = likelihoods(tiny, context + asked[0][1], [f" {letter}" for letter in "ABCD"])
        answered = said[sample_id(test.messages)]
        assert answered.answer == "ABCD"[int(np.argmax(scores))]
        assert answered.metrics["acc"] == float(answered.answer == test.references[0])
    assert found.headline == "acc"
    assert found.n == 9
    assert {own.subtask: own.n for own in found.subtasks} == {"birds": 6, "fish": 3}


def generated(tiny: tuple[Any, Any], context: str, tokens: int) -> str:
    import torch

    model, tokenizer = tiny
    ids = torch.tensor([tokenizer(context, add_special_tokens=False)["input_ids"]])
    start = ids.shape[1]
    for _ in range(tokens):
        with torch.no_grad():
            following = model(input_ids=ids).logits[0, -1].argmax()
        if following == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, following.reshape(1, 1)], 1)
    return str(tokenizer.decode(ids[0, start:]))


def test_an_answer_is_the_greedy_one(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    test = [row(f"Add {n} and {n}.", f"#### {2 * n}", "s", [str(2 * n)]) for n in range(5)]
    spec = EvaluationSpec(max_new_tokens=12, shots=1)
    shot = row("Add 9 and 9.", "#### 18")
    found = evaluate(*tiny, "gsm8k", test, [shot], spec, scratch=tmp_path, batch_tokens=500)
    assert list(found.metrics) == ["flexible_match", "strict_match"]
    said = {answered.sample_id: answered.answer for answered in found.rows}
    for asked in test:
        turns = [(turn.role, turn.content) for turn in (*shot.messages, asked.messages[0])]
        assert said[sample_id(asked.messages)] == generated(tiny, chat(turns), 12)


def answering(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> None:
    """A model that gives an answer by a word of the question."""

    def wrapped(model: Any, tokenizer: Any, batch_tokens: int) -> Any:
        from lm_eval.api.model import LM

        class Canned(LM):
            tokenizer_name = "none"

            def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
                return [
                    next(said for word, said in answers.items() if word in request.args[0])
                    for request in requests
                ]

            def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
                raise NotImplementedError

            def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
                raise NotImplementedError

        return Canned()

    monkeypatch.setattr(run, "wrapped", wrapped)


def test_f1_is_the_mean_of_the_languages(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, {"Fluss": "der Rhein", "See": "nichts", "jokea": "joki"})
    test = [
        row("Welcher Fluss?", "Rhein", "german", ["Rhein", "Rheinstrom"]),
        row("Welcher See?", "Bodensee", "german"),
        row("Mitä jokea?", "joki", "finnish"),
    ]
    spec = EvaluationSpec(chat=False)
    found = evaluate(*tiny, "tydiqa", test, [], spec, scratch=tmp_path)
    assert found.metrics["f1"].value == pytest.approx((1 + (2 / 3) / 2) / 2)
    assert found.metrics["exact_match"].value == 0.5
    assert {own.subtask: own.metrics["exact_match"] for own in found.subtasks} == {
        "german": 0.0,
        "finnish": 1.0,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_programs_are_run_in_the_sandbox(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(
        monkeypatch,
        {"two": "```python\ndef f():\n    return 2\n```", "three": "import sys\nsys.exit(0)"},
    )
    test = [
        row("Return two.", "-", "mbpp", ["assert f() == 2", "assert f() != 3"]),
        row("Return three.", "-", "mbpp", ["assert f() == 3"]),
    ]
    spec = EvaluationSpec(chat=False, allow_code_execution=True)
    found = evaluate(*tiny, "mbpp", test, [], spec, scratch=tmp_path)
    assert [answered.metrics["pass@1"] for answered in found.rows if "def" in answered.answer] == [
        1
    ]
    assert found.metrics["pass@1"].value == 0.5
    with pytest.raises(RequestError, match="allow_code_execution"):
        evaluate(*tiny, "mbpp", test, [], EvaluationSpec(chat=False), scratch=tmp_path)


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "CHUNK_ROWS", 4)
    spec = EvaluationSpec(rows=8)

    def go(scratch: Path, done: list[int]) -> Any:
        return evaluate(*tiny, "mmlu", CHOICES, [], spec, scratch=scratch, progress=done.append)

    whole = go(tmp_path / "whole", [])
    answer = run.answer
    calls: list[int] = []

    def ends(*given: Any, **named: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return answer(*given, **named)

    monkeypatch.setattr(run, "answer", ends)
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", done)
    assert done == [4]
    monkeypatch.setattr(run, "answer", answer)
    assert go(tmp_path / "cut", done) == whole
    assert done == [4, 4, 4]
    monkeypatch.setattr(run, "answer", None)
    assert go(tmp_path / "cut", done) == whole
    assert not list((tmp_path / "cut").glob("*.partial"))


def test_chunks_of_another_request_are_not_taken(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    for spec in (EvaluationSpec(rows=4), EvaluationSpec(rows=4, seed=1), EvaluationSpec(rows=5)):
        evaluate(*tiny, "mmlu", CHOICES, [], spec, scratch=tmp_path)
    evaluate(*tiny, "mmlu", CHOICES, [], EvaluationSpec(rows=4), scratch=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_shots_are_of_the_rows_own_subtask_first() -> None:
    assert shots_of("birds", SHOTS, 2) == SHOTS[1:]
    assert shots_of("birds", SHOTS, 3) == [*SHOTS[1:], SHOTS[0]]
    assert shots_of("fish", SHOTS, 1) == SHOTS[:1]
    with pytest.raises(RequestError, match="4 shots were asked for, the target has 3"):
        shots_of("fish", SHOTS, 4)


@pytest.mark.parametrize(
    ("reader", "test", "spec", "message"),
    [
        ("pool", [row("q", "a")], {}, "reader 'pool' have no task metric"),
        ("gsm8k", [row("q", "a", references=[])], {}, "no test row has anything to compare"),
        ("gsm8k", [row("q", "a")], {"shots": 1}, "1 shots were asked for, the target has 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tiny: tuple[Any, Any],
    tmp_path: Path,
    reader: TargetReader,
    test: list[TargetRow],
    spec: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        evaluate(*tiny, reader, test, [], EvaluationSpec(**spec), scratch=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_harness_or_template_is_said_in_one_line(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(RequestError, match="no chat template: set evaluation.chat to false"):
        evaluate(model, tokenizer, "mmlu", CHOICES, [], EvaluationSpec(), scratch=tmp_path)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RequestError, match=r"pip install 'mona-select\[evaluate\]'"):
        harness.require_harness()


def test_the_harness_is_not_imported_before_it_is_used() -> None:
    script = (
        "import sys, mona.evaluation; print({'lm_eval', 'torch', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_named_task_is_drawn_in_turn(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, {"?": "It is 4, or 5"})
    made = make_tasks(
        "tydiqa",
        [row(f"Q{n}?", "4", "ab"[n % 2], ["4"]) for n in range(8)],
        [],
        EvaluationSpec(chat=False),
    )
    monkeypatch.setattr(run, "named_tasks", lambda name, spec: made)
    spec = EvaluationSpec(task="named", rows=4, chat=False)
    found = evaluate(*tiny, "pool", [], [], spec, scratch=tmp_path)
    assert {own.subtask: own.n for own in found.subtasks} == {"a": 2, "b": 2}
    assert {answered.sample_id[:2] for answered in found.rows} == {"a:", "b:"}
    assert len({answered.sample_id for answered in found.rows}) == found.n == 4


def test_documents_never_pass_a_template_engine(tmp_path: Path) -> None:
    test = [row("{{ 7 * 6 }} {% x", "12", "s", ["12"])]
    (task,) = make_tasks("gsm8k", test, [], EvaluationSpec()).values()
    document = task.eval_docs[0]
    assert task.doc_to_text(document) == "{{ 7 * 6 }} {% x"
    assert task.doc_to_target(document) == "12"


def test_a_mean_that_is_no_proportion_has_a_bootstrap_interval() -> None:
    rows = [RowResult(str(i), "s", "", {"f1": i / 10}) for i in range(11)]
    found = summarise(rows, macro=False, seed=0).metrics["f1"]
    assert found.value == pytest.approx(0.5)
    assert found.low < found.value < found.high
