"""What an answer is worth: text in, numbers out. No model, no harness; programs are run by
`mona.evaluation.sandbox`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_MARKED = re.compile(r"####\s*(" + _NUMBER.pattern + ")")
_THE_ANSWER_IS = re.compile(r"the answer is:?\s*", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def gsm8k(answer: str, references: Sequence[str]) -> dict[str, float]:
    """GSM8K: `flexible_match`, the number after the first `####`, else the last number of the
    answer; `strict_match`, only the number after `####`. Numbers are compared by value."""
    marked = _MARKED.search(answer)
    numbers = _NUMBER.findall(answer)
    strict = marked.group(1) if marked else None
    flexible = strict if strict is not None else (numbers[-1] if numbers else None)
    return {
        "flexible_match": float(_same_number(flexible, references[0])),
        "strict_match": float(_same_number(strict, references[0])),
    }


def _same_number(found: str | None, gold: str) -> bool:
    if found is None:
        return False
    try:
        return Decimal(re.sub(r"[$,]", "", found)) == Decimal(re.sub(r"[$,]", "", gold))
    except InvalidOperation:
        return False


def bbh(answer: str, references: Sequence[str]) -> dict[str, float]:
    """BIG-Bench Hard: `exact_match` of the line's rest after the last "the answer is", or of
    the whole answer where it does not say so; white space around it and a full stop at its end
    don't count."""
    *_, last = _THE_ANSWER_IS.split(answer)
    said = last.strip() if last == answer else last.partition("\n")[0].strip()
    return {"exact_match": float(_bare(said) in {_bare(gold) for gold in references})}


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").strip()


def squad(answer: str, references: Sequence[str]) -> dict[str, float]:
    """SQuAD v1.1's token `f1` and `exact_match` (arXiv 1606.05250, section 6), the best over the
    gold answers; TyDiQA-GoldP is scored by them too (arXiv 2003.05002)."""
    return {
        "f1": max(_token_f1(answer, gold) for gold in references),
        "exact_match": max(float(_words(answer) == _words(gold)) for gold in references),
    }


def _words(text: str) -> list[str]:
    """Lower case, without ASCII punctuation and English articles, split at white space."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _token_f1(answer: str, gold: str) -> float:
    said, wanted = Counter(_words(answer)), Counter(_words(gold))
    shared = (said & wanted).total()
    return 2 * shared / (said.total() + wanted.total()) if shared else 0.0


def program_of(answer: str) -> str:
    """The program in an answer: the first fenced block that defines something, else the first
    fenced block, else the answer itself."""
    blocks = _FENCE.findall(answer)
    defining = [block for block in blocks if re.search(r"^\s*(def|class) ", block, re.MULTILINE)]
    return next(iter(defining or blocks), answer)


def humaneval_program(prompt: str, answer: str, tests: str) -> str:
    """The prompt's function completed by an answer that is its body, or that defines it anew;
    then what the prompt has before the function stays. `tests` ends in `check(NAME)`."""
    name = tests.rstrip().rpartition("check(")[2].removesuffix(")")
    code = program_of(answer)
    signature = rf"^def {re.escape(name)}\b"
    if re.search(signature, code, re.MULTILINE):
        return re.split(signature, prompt, maxsplit=1, flags=re.MULTILINE)[0] + code
    return prompt + code
