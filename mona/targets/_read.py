"""From files to target rows: which reader reads what. The readers are the modules beside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mona.errors import RequestError
from mona.files import DataFile
from mona.spec import TargetReader
from mona.targets._row import TargetRow
from mona.targets.base import FileReader
from mona.targets.gsm8k import read_bbh, read_gsm8k
from mona.targets.lm_eval import read_lm_eval
from mona.targets.mbpp import read_humaneval, read_mbpp
from mona.targets.mmlu import read_gpqa, read_mmlu
from mona.targets.pool import read_pool_format
from mona.targets.tydiqa import read_tydiqa

_READERS: dict[TargetReader, FileReader] = {
    "gsm8k": read_gsm8k,
    "mmlu": read_mmlu,
    "bbh": read_bbh,
    "mbpp": read_mbpp,
    "humaneval": read_humaneval,
    "tydiqa": read_tydiqa,
    "gpqa": read_gpqa,
    "lm_eval": read_lm_eval,
    "pool": read_pool_format,
}


def read_target(
    reader: TargetReader, files: Sequence[DataFile], task_ids: tuple[int, int] | None = None
) -> list[TargetRow]:
    """The rows of all files, in the order of `files` and of the rows in them.

    task_ids: the first and last `task_id` to read; only for reader "mbpp".
    Raises RequestError for a row that can't be read, a file without rows (lm_eval: without
    samples in any file), and `task_ids` with another reader.
    """
    read = _READERS[reader]
    if task_ids is not None:
        if reader != "mbpp":
            raise RequestError(f"task_ids is for reader mbpp, not {reader}")
        read = partial(read_mbpp, task_ids=task_ids)
    rows = []
    for file in files:
        found = read(file)
        # Task folders of lm-eval hold templates and groups beside the tasks; a split of MBPP
        # may lie in one of several files.
        if not found and reader != "lm_eval" and task_ids is None:
            raise RequestError(f"{file.name}: no rows")
        rows += found
    if not rows:
        first = f" in {files[0].name} and {len(files) - 1} more" if files else ""
        wanted = "samples" if reader == "lm_eval" else "rows"
        raise RequestError(f"reader {reader} finds no {wanted}{first}")
    return rows
