"""Target rows as tasks of lm-evaluation-harness: what is asked, what counts as an answer, how
it is scored. Nothing is run here; `mona.evaluation.run` does that.

One task a subtask, because each has shots of its own. The harness is imported when a task is
made, never before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mona.errors import RequestError
from mona.evaluation import scoring
from mona.evaluation.sandbox import run_program
from mona.sample import sample_id
from mona.spec import EvaluationSpec, TargetReader
from mona.targets import TargetRow

LETTERS = ("A", "B", "C", "D")

# Of a document (prompt, references) and an answer: metric names and values, the headline first.
Score = Callable[[Mapping[str, Any], str], dict[str, float]]


def _mbpp(document: Mapping[str, Any], answer: str) -> dict[str, float]:
    program = scoring.program_of(answer)
    outcome = run_program(program, "\n".join(document["references"]))
    return {"pass@1": float(outcome.status == "passed")}


def _humaneval(document: Mapping[str, Any], answer: str) -> dict[str, float]:
    (tests,) = document["references"]
    program = scoring.humaneval_program(document["prompt"], answer, tests)
    return {"pass@1": float(run_program(program, tests).status == "passed")}


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a reader's rows are asked and scored.

    score: None for a choice of letters by their likelihoods. Without a chat template `between`
    stands between prompt and answer, `after` behind an answer, and generation stops at `after`
    or a text of `stops`.
    """

    metrics: tuple[str, ...]
    score: Score | None
    between: str = "\n"
    after: str = "\n\n"
    stops: tuple[str, ...] = ()
    runs_programs: bool = False


_KINDS: dict[TargetReader, _Kind] = {
    "mmlu": _Kind(("acc",), None, between=" "),
    "gpqa": _Kind(("acc",), None, between=" "),
    "gsm8k": _Kind(
        ("flexible_match", "strict_match"),
        lambda document, answer: scoring.gsm8k(answer, document["references"]),
    ),
    "bbh": _Kind(
        ("exact_match",), lambda document, answer: scoring.bbh(answer, document["references"])
    ),
    "tydiqa": _Kind(
        ("f1", "exact_match"),
        lambda document, answer: scoring.squad(answer, document["references"]),
    ),
    # A program has blank lines of its own.
    "mbpp": _Kind(("pass@1",), _mbpp, after="\n\n\n", runs_programs=True),
    "humaneval": _Kind(
        ("pass@1",),
        _humaneval,
        between="",
        after="\n\n\n",
        stops=("\ndef ", "\nclass ", "\nif ", "\nprint("),
        runs_programs=True,
    ),
}


def has_metric(reader: TargetReader) -> bool:
    """Whether the reader's rows have a task metric; a held-out loss needs none."""
    return reader in _KINDS


def runs_programs(reader: TargetReader) -> bool:
    """Whether scoring runs what the model writes."""
    return reader in _KINDS and _KINDS[reader].runs_programs


def shots_of(subtask: str, examples: Sequence[TargetRow], count: int) -> list[TargetRow]:
    """`count` examples with an answer, in the order of `examples`, those of the subtask first.

    Raises RequestError where there are too few.
    """
    answered = [row for row in examples if row.messages[-1].role == "assistant"]
    if len(answered) < count:
        raise RequestError(
            f"{count} shots were asked for, the target has {len(answered)} examples with an answer"
        )
    return sorted(answered, key=lambda row: row.subtask != subtask)[:count]


def make_tasks(
    reader: TargetReader,
    rows: Sequence[TargetRow],
    examples: Sequence[TargetRow],
    spec: EvaluationSpec,
) -> dict[str, Any]:
    """The harness's task of every subtask of `rows`, by the subtask's name; its documents are
    the subtask's rows in order.

    Raises RequestError for a reader without a metric, a row without references and too few
    examples for the shots.
    """
    if reader not in _KINDS:
        raise RequestError(
            f"rows of reader '{reader}' have no task metric: name a task in evaluation.task"
        )
    kind = _KINDS[reader]
    for row in rows:
        if not row.references:
            raise RequestError(f"{row.file} row {row.row}: nothing to compare an answer with")
    by_subtask: dict[str, list[TargetRow]] = {}
    for row in rows:
        by_subtask.setdefault(row.subtask, []).append(row)
    return {
        subtask: _task(kind, subtask, own, shots_of(subtask, examples, spec.shots), spec)
        for subtask, own in by_subtask.items()
    }


def _task(
    kind: _Kind,
    subtask: str,
    rows: Sequence[TargetRow],
    shots: Sequence[TargetRow],
    spec: EvaluationSpec,
) -> Any:
    import datasets
    from lm_eval.api.task import ConfigurableTask

    documents = [_document(row, kind) for row in rows]
    config: dict[str, Any] = {
        "task": subtask,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(documents)},
        "test_split": "test",
        "doc_to_text": _prompt,
        "doc_to_target": _answer,
        "target_delimiter": kind.between,
        "fewshot_delimiter": kind.after,
        "num_fewshot": len(shots),
        "fewshot_config": {
            "sampler": "first_n",
            "samples": [_document(row, kind) for row in shots],
        },
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in kind.metrics
        ],
    }
    if kind.score is None:
        return ConfigurableTask(
            config=config
            | {
                "output_type": "multiple_choice",
                "doc_to_choice": list(LETTERS),
                # Shots end in the letter, as the choices do, not in the option's text.
                "doc_to_target": _letter,
            }
        )
    score = kind.score
    stops = [] if spec.chat else [kind.after, *kind.stops]
    return ConfigurableTask(
        config=config
        | {
            "output_type": "generate_until",
            "generation_kwargs": {
                "until": stops,
                "max_gen_toks": spec.max_new_tokens,
                "do_sample": False,
            },
            "process_results": lambda document, results: score(document, results[0]),
        }
    )


def _document(row: TargetRow, kind: _Kind) -> dict[str, Any]:
    answered = row.messages[-1].role == "assistant"
    return {
        "sample_id": sample_id(row.messages),
        "prompt": row.messages[0].content,
        "answer": row.messages[-1].content if answered else "",
        "references": list(row.references),
    }


def _prompt(document: Mapping[str, Any]) -> str:
    return str(document["prompt"])


def _answer(document: Mapping[str, Any]) -> str:
    return str(document["answer"])


def _letter(document: Mapping[str, Any]) -> int:
    return LETTERS.index(document["references"][0])
