"""mona.evaluation.loss against a row-by-row computation from the model's own logits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from mona.errors import RequestError
from mona.evaluation.loss import held_out_loss
from mona.sample import Message, sample_id
from mona.spec import Template, TokenPolicy
from mona.targets import TargetRow
from mona.tokens import Renderer

ANSWERS = ["Elbe", "The Danube, of course.", "ä", "  padded ", "ends in <|stop|>", "x" * 90]


def rows(answers: list[str]) -> list[TargetRow]:
    turns = [
        (Message("user", f"Name river {i}."), Message("assistant", answer))
        for i, answer in enumerate(answers)
    ]
    return [TargetRow(messages, "s", "f", i, "") for i, messages in enumerate(turns)]


def renderer(tokenizer: Any, template: Template = "chat", max_length: int = 512) -> Renderer:
    return Renderer(tokenizer, template, TokenPolicy(), max_length)


def by_hand(
    model: Any, tokenizer: Any, before: str, answer: str, closing: str, after: str
) -> tuple[float, int]:
    """The byte-level tokenizer has a token a byte: no seam, no merge. `closing` is counted."""
    import torch

    def ids(text: str, **how: Any) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, **how)["input_ids"])

    head, middle = ids(before), ids(answer, split_special_tokens=True)
    middle += ids(closing)
    whole = torch.tensor([head + middle + ids(after)])
    with torch.no_grad():
        scores = torch.log_softmax(model(input_ids=whole).logits[0].double(), -1)
    places = range(len(head), len(head) + len(middle))
    return -sum(float(scores[i - 1, whole[0, i]]) for i in places), len(middle)


@pytest.mark.parametrize(
    ("template", "before", "closing", "after"),
    [
        (
            "chat",
            "<|start|>system\nBe brief.<|stop|>\n<|start|>user\n{question}<|stop|>\n"
            "<|start|>assistant\n",
            "<|stop|>",
            "\n",
        ),
        ("olmo", "{question} ", "<|stop|>", ""),
        ("llama2", "<|start|>[INST] {question} [/INST] ", " <|stop|>", ""),
    ],
)
def test_the_loss_is_that_of_one_row_at_a_time(
    tiny: tuple[Any, Any], template: Template, before: str, closing: str, after: str
) -> None:
    model, tokenizer = tiny
    test = rows(ANSWERS)
    found = held_out_loss(model, renderer(tokenizer, template), test, batch_tokens=300)
    for i, row in enumerate(test):
        question, answer = (message.content for message in row.messages)
        head = before.format(question=question)
        total, count = by_hand(model, tokenizer, head, answer, closing, after)
        assert found.tokens[i] == count
        assert count - len(answer.encode()) == (2 if template == "llama2" else 1)
        assert found.sums[i] == pytest.approx(total, rel=1e-4)
    assert found.sample_ids == [sample_id(row.messages) for row in test]
    assert found.sums.dtype == np.float64


def test_batches_change_nothing(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    test = rows(ANSWERS)
    done: list[int] = []
    alone = held_out_loss(model, renderer(tokenizer), test, batch_tokens=1)
    together = held_out_loss(
        model, renderer(tokenizer), test, batch_tokens=10_000, progress=done.append
    )
    np.testing.assert_allclose(alone.sums, together.sums, rtol=1e-4)
    assert done == [6]


def test_rows_without_a_whole_answer_are_left_out(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    open_row = TargetRow((Message("user", "Open?"),), "s", "f", 1, "")
    test = [open_row, *rows(["short", "x" * 400])]
    found = held_out_loss(model, renderer(tokenizer, max_length=120), test)
    assert found.tokens.tolist() == [6]
    with pytest.raises(RequestError, match="no test row has an answer"):
        held_out_loss(model, renderer(tokenizer), [open_row])


def test_rows_that_the_template_refuses_are_left_out(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    picky = copy.deepcopy(tokenizer)
    picky.chat_template = (
        "{% for m in messages %}{% if 'river 1' in m.content %}{{ raise_exception('no') }}"
        "{% endif %}{{ '<|start|>' + m.content + '<|stop|>' }}{% endfor %}"
    )
    test = rows(["short", "longer", "longest"])
    found = held_out_loss(model, renderer(picky), test)
    assert found.sample_ids == [sample_id(test[i].messages) for i in (0, 2)]
    assert found.tokens.tolist() == [6, 8]
    with pytest.raises(RequestError, match="no test row has an answer that fits"):
        held_out_loss(model, renderer(picky), test[1:2])


def test_differences_are_paired(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    found = held_out_loss(model, renderer(tokenizer), rows(ANSWERS))
    same = found.minus(found, seed=0)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    interval = found.interval(seed=0)
    assert interval.value == pytest.approx(found.sums.sum() / found.tokens.sum())
    assert interval.low < interval.value < interval.high
    other = held_out_loss(model, renderer(tokenizer), rows(ANSWERS)[1:])
    with pytest.raises(ValueError, match="not paired"):
        found.minus(other, seed=0)
