"""Few-shot exemplars written into the task files of lm-evaluation-harness.

A task's YAML lists them under `fewshot_config.samples`. Nothing in a task file is executed:
unknown YAML tags are read as text, and samples that a function of the neighbouring Python
file returns (`!function utils.list_fewshot_samples`) are taken only where that function
returns a literal.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import yaml

from mona.errors import RequestError
from mona.files import DataFile
from mona.targets._row import TargetRow
from mona.targets.base import (
    LETTERS,
    Reader,
    question_with_options,
    row_error,
    stem,
    target_row,
    text,
    whole_text,
)
from mona.targets.mbpp import mbpp_row

_FUNCTION = "!function "
_STEP_BY_STEP = "Let's think step by step."


def read_lm_eval(file: DataFile) -> list[TargetRow]:
    """The exemplars of one task file; none where it has no samples, as group and template
    files do. The subtask is the file's name.

    A sample's user turn is its `question` or `input`, behind its `context` and before its
    options A to D where there are such; the assistant turn is its `target` or `answer`. Where
    the task's prompt ends in "Let's think step by step.", the assistant turn begins with it,
    as BIG-Bench Hard's own exemplars do. MBPP's `text`, `code` and `test_list` are read like
    MBPP's files.
    """
    try:
        task = yaml.load(whole_text(file), _TaskLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{file.name}: invalid YAML: {reason}") from None
    config = task.get("fewshot_config") if isinstance(task, dict) else None
    samples = config.get("samples") if isinstance(config, dict) else None
    if samples is None:
        return []
    if isinstance(samples, str) and samples.startswith(_FUNCTION):
        samples = _literal_samples(file, samples.removeprefix(_FUNCTION))
    if not isinstance(samples, list):
        raise RequestError(f"{file.name}: fewshot_config.samples is not a list")
    prompt = str(task.get("doc_to_text", "")).rstrip()
    cue = f"{_STEP_BY_STEP}\n" if prompt.endswith(_STEP_BY_STEP) else ""
    return [_exemplar(file, number, sample, cue) for number, sample in enumerate(samples, 1)]


class _TaskLoader(yaml.SafeLoader):
    """YAML's safe subset; any other tag is kept as the text `!tag value`."""


def _tag_as_text(loader: _TaskLoader, node: yaml.Node) -> str:
    return f"{node.tag} {node.value}" if isinstance(node, yaml.ScalarNode) else node.tag


_TaskLoader.add_constructor(None, _tag_as_text)


def _exemplar(file: DataFile, number: int, sample: object, cue: str) -> TargetRow:
    if not isinstance(sample, Mapping):
        raise row_error(file, number, "a sample is not a mapping")
    if {"text", "code", "test_list"} <= sample.keys():
        return replace(mbpp_row(file, number, sample, stem(file)), references=())
    asks = [field for field in ("input", "question") if field in sample]
    answers = [field for field in ("target", "answer") if field in sample]
    if not asks or not answers:
        fields = ", ".join(sorted(map(str, sample)))
        raise row_error(file, number, f"unknown fields of a sample: {fields}")
    # With both, `input` is the passage and `question` asks about it.
    question = text(file, number, sample, asks[-1])
    passages = [field for field in ("context", *asks[:-1]) if field in sample]
    prompt = question
    if all(letter in sample for letter in LETTERS):
        options = [text(file, number, sample, letter) for letter in LETTERS]
        prompt = question_with_options(question, options)
    parts = [*(text(file, number, sample, field) for field in passages), prompt]
    return target_row(
        file,
        number,
        user="\n\n".join(parts),
        assistant=cue + text(file, number, sample, answers[0]),
        subtask=stem(file),
        question=question,
    )


def _literal_samples(file: DataFile, function: str) -> Any:
    """What `module.function` of the Python file next to `file` returns, if it is a literal."""
    module, _, name = function.rpartition(".")
    neighbour = _neighbour(file, f"{module}.py")
    try:
        tree = ast.parse(whole_text(neighbour))
    except (RequestError, SyntaxError, ValueError, RecursionError):
        raise RequestError(f"{file.name}: no readable {module}.py beside it") from None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            last = node.body[-1]
            if len(node.body) == 1 and isinstance(last, ast.Return) and last.value is not None:
                try:
                    return ast.literal_eval(last.value)
                except (ValueError, TypeError):
                    break
    raise RequestError(f"{file.name}: its samples are made by code ({function}), which is not run")


def _neighbour(file: DataFile, filename: str) -> DataFile:
    if file.member is None:
        return replace(file, path=file.path.with_name(filename))
    return replace(file, member=str(PurePosixPath(file.member).with_name(filename)))


# Task folders hold templates and groups beside the tasks.
KIND = Reader(read_lm_eval, may_be_empty=True, from_hub=False, made="samples")
