"""lm-evaluation-harness at arm's length: the only module that runs it. Imported when used."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mona.errors import MonaError, RequestError, WorkError
from mona.evaluation.results import RowResult
from mona.hub import first_line, hub_answers
from mona.spec import EvaluationSpec

# A task's name and the number of one of its documents.
Place = tuple[str, int]
_COMMIT = re.compile(r"[0-9a-f]{40}")


def require_harness() -> None:
    """RequestError where lm-evaluation-harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise RequestError(
            "evaluation needs lm-evaluation-harness: pip install 'mona-select[evaluate]'"
        ) from None


def answer(
    model: Any, tasks: Mapping[str, Any], ids: Mapping[Place, str], *, chat: bool
) -> list[RowResult]:
    """The documents at the places of `ids` asked of `model` (made by `wrapped`) and scored, each
    result under its id. WorkError where that fails."""
    from lm_eval.evaluator import evaluate as run_harness

    numbers: dict[str, list[int]] = defaultdict(list)
    for name, number in ids:
        numbers[name].append(number)
    try:
        results = run_harness(
            lm=model,
            task_dict={"tasks": {name: tasks[name] for name in numbers}, "groups": {}},
            # The harness takes documents in ascending order and numbers them so.
            samples={name: sorted(own) for name, own in numbers.items()},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=True,
        )
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WorkError(f"the evaluation of {', '.join(numbers)} failed: {reason}") from error
    merged: dict[str, RowResult] = {}
    for name, samples in results["samples"].items():
        for sample in samples:
            row_id = ids[name, sample["doc_id"]]
            suffix = "" if sample["filter"] == "none" else f" ({sample['filter']})"
            metrics = {
                f"{metric}{suffix}": float(sample[metric])
                for metric in sample["metrics"]
                if isinstance(sample[metric], int | float | np.number)
            }
            known = merged.get(row_id)
            merged[row_id] = RowResult(
                row_id, name, _said(sample), {**(known.metrics if known else {}), **metrics}
            )
    return list(merged.values())


def _said(sample: Mapping[str, Any]) -> str:
    responses = sample["filtered_resps"]
    if isinstance(responses[0], str):
        return str(responses[0])
    likelihoods = [float(response[0]) for response in responses]
    return str(sample["arguments"][int(np.argmax(likelihoods))][1]).strip()


def wrapped(model: Any, tokenizer: Any, batch_tokens: int) -> Any:
    """A transformers model as the harness's, which runs batches of so many tokens."""
    from lm_eval.models.huggingface import HFLM

    from mona.encoder import plan_batches

    class Model(HFLM):
        """The harness's model, in batches of so many tokens and without progress bars."""

        def _in_batches(self, requests: Sequence[Any], new_tokens: int, call: Any) -> list[Any]:
            # The harness pads all its batches as if they held the longest request.
            # Those of one length by their text: batches do not depend on the requests' order.
            order = sorted(range(len(requests)), key=lambda i: requests[i].args[0])
            prompts = (requests[i].args[0] for i in order)
            lengths = [len(self.tok_encode(prompt)) + new_tokens for prompt in prompts]
            answers: list[Any] = [None] * len(requests)
            for batch in plan_batches(lengths, batch_tokens):
                self.batch_size_per_gpu = len(batch)
                made = call([requests[order[i]] for i in batch], disable_tqdm=True)
                for i, one in zip(batch, made, strict=True):
                    answers[order[i]] = one
            return answers

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            longest = max(request.args[1].get("max_gen_toks", 256) for request in requests)
            return self._in_batches(requests, longest, super().generate_until)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            longest = max(len(self.tok_encode(request.args[1])) for request in requests)
            return self._in_batches(requests, longest, super().loglikelihood)

    # A copy: the harness gives the tokenizer a padding token and a padding side.
    return Model(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),
        backend="causal",
        softmax_dtype="float32",
    )


def named_tasks(name: str, spec: EvaluationSpec) -> dict[str, Any]:
    """The tasks that a name of the harness stands for, by theirs. Its own number of shots stands
    unless the specification has one. RequestError where it can't be loaded or runs programs,
    PassingError where its hub did not answer."""
    try:
        with hub_answers(f"task '{name}' of the harness"):
            tasks: dict[str, Any] = _manager().load([name])["tasks"]
    except MonaError:
        raise
    except Exception as error:
        # The harness runs a task's own code and a download here: anything may come.
        raise RequestError(f"the harness can't load task '{name}': {first_line(error)}") from error
    for leaf, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise RequestError(f"task '{leaf}' runs generated programs without limits: refused")
        if spec.shots or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=spec.shots)
        if task.OUTPUT_TYPE == "generate_until":
            settings = {"max_gen_toks": spec.max_new_tokens}
            task.set_config(key="generation_kwargs", value=settings, update=True)
        task.set_fewshot_seed(seed=spec.seed)
    return tasks


def data_commits(tasks: Mapping[str, Any]) -> dict[str, str]:
    """Repository -> the commit of it that tasks made by `named_tasks` read their documents at."""
    return {
        task.DATASET_PATH: folder
        for task in tasks.values()
        for split in task.dataset.values()
        for file in split.cache_files
        # datasets keeps what it read of a hub in a folder named by the commit.
        if _COMMIT.fullmatch(folder := Path(file["filename"]).parent.name)
    }


@functools.cache
def _manager() -> Any:
    # It reads thousands of task files, which takes seconds.
    from lm_eval.tasks import TaskManager

    return TaskManager()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The harness without its log lines and the progress bar that has no switch."""
    import lm_eval.api.task as harness_task

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, harness_task.tqdm
    logger.setLevel(logging.ERROR)
    harness_task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        logger.setLevel(level)
        harness_task.tqdm = bar
