"""mona.evaluation.scoring: known answers of the published metrics."""

from __future__ import annotations

import pytest

from mona.evaluation import scoring
from mona.evaluation.sandbox import run_program


@pytest.mark.parametrize(
    ("answer", "gold", "flexible", "strict"),
    [
        ("2 and 3 make 5.\n#### 5", "5", 1, 1),
        ("#### 1,250", "1250", 1, 1),
        ("#### $1,250.00 in all", "1250", 1, 1),
        ("#### -3", "-3", 1, 1),
        ("#### 5\n#### 6", "5", 1, 1),
        ("She has 12 pears.", "12", 1, 0),
        ("That is $18.00.", "18", 1, 0),
        ("3 + 4 = 7, so 70", "7", 0, 0),
        ("#### 7 of 9", "9", 0, 0),
        ("#### none, or 4", "4", 1, 0),
        ("no idea", "4", 0, 0),
        ("", "4", 0, 0),
        ("It costs 0.50", ".5", 1, 0),
    ],
)
def test_gsm8k(answer: str, gold: str, flexible: float, strict: float) -> None:
    assert scoring.gsm8k(answer, [gold]) == {"flexible_match": flexible, "strict_match": strict}


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("(B)", "(B)", 1),
        (" (B).\n", "(B)", 1),
        ("Let's think step by step.\nSo the answer is (B).", "(B)", 1),
        ("The answer is: yes", "yes", 1),
        ("The answer is no. Wait. So the answer is yes.\nMore text.", "yes", 1),
        ("the answer is (A).", "(B)", 0),
        ("I would say (B)", "(B)", 0),
        ("] } >", "] } >", 1),
        ("the answer is", "(B)", 0),
    ],
)
def test_bbh(answer: str, gold: str, right: float) -> None:
    assert scoring.bbh(answer, [gold]) == {"exact_match": right}


@pytest.mark.parametrize(
    ("answer", "golds", "f1", "exact"),
    [
        ("The Danube.", ["danube"], 1, 1),
        ("in the old town", ["old town"], 0.8, 0),
        ("a b c", ["b c d e"], 4 / 6, 0),  # the article is gone: {b, c} of {b, c, d, e}
        ("two two", ["two"], 2 / 3, 0),
        ("1,5 km", ["15 km"], 1, 1),
        ("river", ["lake", "the river", "sea"], 1, 1),
        ("", ["river"], 0, 0),
        ("ocean", ["river"], 0, 0),
        ("театр", ["Театр!"], 1, 1),
        ("«театр»", ["театр"], 0, 0),  # only ASCII punctuation is removed
        ("the", ["a"], 0, 1),  # nothing is left of either
    ],
)
def test_squad(answer: str, golds: list[str], f1: float, exact: float) -> None:
    assert scoring.squad(answer, golds) == pytest.approx({"f1": f1, "exact_match": exact})


def test_the_program_in_an_answer() -> None:
    assert scoring.program_of("x = 1") == "x = 1"
    fenced = "Sure:\n```\npip install it\n```\nand\n```python\ndef f():\n    pass\n```\nDone."
    assert scoring.program_of(fenced) == "def f():\n    pass\n"
    assert scoring.program_of("```py\nprint(1)") == "print(1)"


def test_humaneval_programs_are_bodies_or_whole_functions() -> None:
    prompt = "import math\n\ndef half(x):\n    return x / 2\n\ndef root(x):\n    '''Root.'''\n"
    tests = "def check(f):\n    assert f(8) == 2.0\ncheck(root)\n"
    for answer in (
        "    return math.sqrt(half(x))\n",
        "```python\ndef root(x):\n    return math.sqrt(half(x))\n```",
    ):
        program = scoring.humaneval_program(prompt, answer, tests)
        assert run_program(program, tests).status == "passed", program
    wrong = scoring.humaneval_program(prompt, "    return x\n", tests)
    assert run_program(wrong, tests).status == "failed"
