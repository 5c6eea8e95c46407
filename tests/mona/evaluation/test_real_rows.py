"""Real test rows of six benchmarks through their tasks: gold answers get full marks, others
none, and a tiny model is asked all of them by the harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mona.evaluation.draw import draw_rows
from mona.evaluation.run import evaluate
from mona.evaluation.tasks import make_tasks
from mona.files import DataFile
from mona.sample import sample_id
from mona.spec import EvaluationSpec, TargetReader
from mona.targets import TargetRow, read_target
from tests.conftest import REPOSITORY

pytest.importorskip("lm_eval")
TARGETS = REPOSITORY.parent / "shared" / "data" / "targets"
pytestmark = pytest.mark.skipif(not TARGETS.exists(), reason="needs ../shared/data")

TEST_ROWS: dict[TargetReader, str] = {
    "mmlu": "mmlu/test/*.csv",
    "gsm8k": "gsm8k/test.jsonl",
    "bbh": "bbh/bbh/*.json",
    "mbpp": "mbpp/mbpp.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "tydiqa": "tydiqa_goldp/*/*_dev.json",
}
HEADLINE = {
    "mmlu": "acc",
    "gsm8k": "flexible_match",
    "bbh": "exact_match",
    "mbpp": "pass@1",
    "humaneval": "pass@1",
    "tydiqa": "f1",
}
GENERATED: list[TargetReader] = [reader for reader in TEST_ROWS if reader != "mmlu"]
SPEC = EvaluationSpec(max_new_tokens=4, allow_code_execution=True)


def drawn(reader: TargetReader, count: int, seed: int = 0) -> list[TargetRow]:
    files = [DataFile(path) for path in sorted(Path(TARGETS).glob(TEST_ROWS[reader]))]
    rows = read_target(reader, files, task_ids=(11, 510) if reader == "mbpp" else None)
    return draw_rows(rows, count, seed)


@pytest.mark.parametrize("reader", GENERATED)
def test_gold_answers_get_full_marks_and_others_none(reader: TargetReader) -> None:
    rows = drawn(reader, 27)
    tasks = make_tasks(reader, rows, [], SPEC)
    gold = {sample_id(row.messages): row.messages[-1] for row in rows}
    for task in tasks.values():
        for document in task.eval_docs:
            answer = gold[document["sample_id"]]
            # BBH's rows give the answer alone.
            said = answer.content if answer.role == "assistant" else document["references"][0]
            full = task.process_results(document, [said])
            assert full[HEADLINE[reader]] == 1, document["sample_id"]
            none = task.process_results(document, ["I would rather not say"])
            assert none[HEADLINE[reader]] == 0, document["sample_id"]


@pytest.mark.parametrize("reader", list(TEST_ROWS))
def test_the_harness_asks_every_row(
    tiny: tuple[Any, Any], tmp_path: Path, reader: TargetReader
) -> None:
    rows = drawn(reader, 6)
    found = evaluate(*tiny, reader, rows, [], SPEC, scratch=tmp_path)
    assert [row.sample_id for row in found.rows] == [sample_id(row.messages) for row in rows]
    assert found.headline == HEADLINE[reader]
    assert all(0 <= row.metrics[found.headline] <= 1 for row in found.rows)
    if reader == "mmlu":
        gold = {sample_id(row.messages): row.references[0] for row in rows}
        for row in found.rows:
            assert row.answer in "ABCD"
            assert row.metrics["acc"] == float(row.answer == gold[row.sample_id])
