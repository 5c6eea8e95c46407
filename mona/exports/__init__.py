"""A chosen subset written in the forms other trainers read.

Belongs here: the formats and how files are put in place. Which rows to write, and in which
order, is the caller's.

A row is a dict with `sample_id`, `messages` (a list of role/content dicts), `score`, `rank`,
`source` and `licence`. Every format keeps the last four and the id beside the conversation,
so that a file can be traced back. Files are written whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TextIO, cast, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mona.errors import RequestError, WorkError
from mona.publishing import published_file, refuse_existing, unfinished
from mona.sample import fold_system, from_records, to_records
from mona.spec import FinetuneSpec, SystemTurns

ExportFormat = Literal["jsonl", "sharegpt", "alpaca", "llamafactory", "parquet"]
# What a written file is: rows in one of three forms, or settings, which hold no row.
FileKind = Literal["jsonl", "array", "parquet", "settings"]

_LINEAGE = ("sample_id", "rank", "score", "source", "licence")
_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}
_PARQUET_SCHEMA = pa.schema(
    [
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("sample_id", pa.string()),
        ("rank", pa.int64()),
        ("score", pa.float32()),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
_PARQUET_ROWS = 1_000

Row = dict[str, Any]


class UnfitSampleError(RequestError):
    """A conversation has a shape that the format cannot hold."""


def export(
    rows: Iterable[Row],
    fmt: ExportFormat,
    out: Path,
    *,
    force: bool = False,
    left_out: Callable[[str], None] | None = None,
    training: FinetuneSpec | None = None,
    system: SystemTurns = "keep",
) -> list[Path]:
    """Writes rows, streamed and in order, and returns the files written.

    - jsonl: one object a line, `messages` beside the lineage columns. As in sharegpt, a turn
      that is not to be learned has a `weight` of 0; the other formats can't hold such a sample.
    - sharegpt: a JSON array of `conversations` (from: system, human, gpt, tool; value).
    - alpaca: a JSON array of instruction, input (always empty), output, system, history
      (the earlier turns as [user, assistant] pairs).
    - llamafactory: `out` is a folder; it gets `<folder name>.json`, in LLaMA-Factory's
      sharegpt formatting with OpenAI-style messages, an entry in `dataset_info.json`, which
      keeps the entries it has, and with `training` a `<folder name>.yaml` of the same
      hyperparameters.
    - parquet: the columns of jsonl.
    alpaca and llamafactory need turns that alternate: neighbours of one role become one turn,
    joined by a blank line. system: "fold" puts system turns into the user turn that follows, as
    the model that chose read them.

    Raises RequestError when `out` exists and `force` is not given, when it cannot be written,
    when there are no rows, and UnfitSampleError when a conversation has a shape the format cannot
    hold (naming the sample); with `left_out`, such samples are left out and their reasons go
    there. After an error what was there before is there still.
    """
    if fmt not in get_args(ExportFormat):
        raise RequestError(f"'{fmt}' is no export format: {', '.join(get_args(ExportFormat))}")
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        raise RequestError(f"{out}: there are no rows to export")
    rows = chain([first], iterator)
    if system == "fold":
        rows = map(_folded, rows)
    convert = {
        "sharegpt": _as_sharegpt,
        "alpaca": _as_alpaca,
        "llamafactory": _as_llamafactory,
        "parquet": _as_parquet,
    }.get(fmt, _as_messages)
    converted = _converted(rows, convert, left_out)
    written = list(files_of(fmt, out, training))
    if fmt == "llamafactory":
        for settings in written[2:]:
            refuse_existing(settings, force)  # before the first file is written
        _write_llamafactory(converted, out, written[:2], force)
        for settings in written[2:]:
            assert training is not None
            with _replacing(settings) as temporary:
                temporary.write_text(_llamafactory_training(training, out), encoding="utf-8")
        return written
    if out.is_dir():
        raise RequestError(f"{out}: is a folder; {fmt} is written to a file")
    refuse_existing(out, force)
    if fmt == "parquet":
        with _replacing(out) as temporary:
            _write_parquet(converted, temporary)
    elif fmt == "jsonl":
        with _replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
            for row in converted:
                file.write(_json(row) + "\n")
    else:
        with _replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
            _write_array(converted, file)
    return written


def files_of(
    fmt: ExportFormat, out: Path, training: FinetuneSpec | None = None
) -> dict[Path, FileKind]:
    """The files that an export to `out` writes, in their order, and what each is."""
    if fmt != "llamafactory":
        return {out: "array" if fmt in ("sharegpt", "alpaca") else cast(FileKind, fmt)}
    name = out.resolve().name
    files: dict[Path, FileKind] = {
        out / f"{name}.json": "array",
        out / "dataset_info.json": "settings",
    }
    if training is not None:
        files[out / f"{name}.yaml"] = "settings"
    return files


def held(file: Path, kind: FileKind, sample_ids: Collection[str]) -> int:
    """How many rows of a written export are of these samples. WorkError for a file that can't be
    read as what it was written as."""
    return sum(row["sample_id"] in sample_ids for row in _read_back(file, kind))


def without(file: Path, kind: FileKind, sample_ids: Collection[str]) -> int:
    """Takes the rows of these samples out of a written export, in place; returns how many.
    WorkError as `held`, or where it can't be written; the file is as it was then."""
    rows = _read_back(file, kind)
    left = [row for row in rows if row["sample_id"] not in sample_ids]
    if len(left) < len(rows):
        try:
            with _replacing(file) as temporary:
                if kind == "parquet":
                    _write_parquet(left, temporary)
                else:
                    with temporary.open("w", encoding="utf-8") as stream:
                        if kind == "array":
                            _write_array(left, stream)
                        else:
                            stream.writelines(_json(row) + "\n" for row in left)
        except RequestError as error:
            raise WorkError(str(error)) from error
    return len(rows) - len(left)


def kind_by_content(file: Path) -> FileKind:
    """What an export's file is, from how it begins: for those written before the ledger of
    exports said it."""
    with file.open("rb") as stream:
        start = stream.read(4)
    if start == b"PAR1":
        return "parquet"
    if start.startswith(b"["):
        return "array"
    # Settings are JSON over several lines or YAML; a row is an object on one.
    return "jsonl" if start.startswith(b'{"') else "settings"


def _read_back(file: Path, kind: FileKind) -> list[Row]:
    try:
        rows: Any = []
        if kind == "parquet":
            rows = pq.read_table(file).to_pylist()
        elif kind == "array":
            rows = json.loads(file.read_text(encoding="utf-8"))
        elif kind == "jsonl":
            # By line feeds only: a text may hold other line separators.
            lines = file.read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
    except (ValueError, OSError) as error:
        raise WorkError(f"{file}: can't be read as {kind} ({error})") from error
    if not all(isinstance(row, dict) and "sample_id" in row for row in rows):
        raise WorkError(f"{file}: has rows without a sample_id")
    return cast(list[Row], rows)


def _converted(
    rows: Iterable[Row], convert: Callable[[Row], Row], left_out: Callable[[str], None] | None
) -> Iterator[Row]:
    fitting = 0
    for row in rows:
        try:
            yield convert(row)
            fitting += 1
        except UnfitSampleError as error:
            if left_out is None:
                raise
            left_out(str(error))
    if not fitting:
        raise UnfitSampleError("the format can hold none of the samples")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends. RequestError where none can
    be written there."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(published_file(path, unfinished(path)))
        except OSError as error:
            raise RequestError(f"{path}: cannot be written ({error.strerror})") from error
        yield temporary


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_array(rows: Iterable[Row], file: TextIO) -> None:
    """One JSON array, an element a line: what these formats' own files are. Readers take its
    types from the whole; from lines, a first stretch of empty histories misleads them."""
    separator = "[\n"
    for row in rows:
        file.write(separator + _json(row))
        separator = ",\n"
    file.write("\n]\n" if separator != "[\n" else "[]\n")


def _folded(row: Row) -> Row:
    return {**row, "messages": to_records(fold_system(from_records(row["messages"])))}


def _lineage(row: Row) -> Row:
    return {key: row[key] for key in _LINEAGE}


def _mark(turn: Row) -> Row:
    """What says of a turn that it carries no loss, as OpenAI's and ShareGPT's files do."""
    return {"weight": 0} if turn.get("learn") is False else {}


def _refuse_marks(row: Row, fmt: str) -> None:
    if any(map(_mark, row["messages"])):
        raise UnfitSampleError(
            f"sample {row['sample_id']}: {fmt} cannot say that a turn is not to be learned"
        )


def _as_messages(row: Row) -> Row:
    messages = [
        {"role": turn["role"], "content": turn["content"], **_mark(turn)}
        for turn in row["messages"]
    ]
    return {"messages": messages, **_lineage(row)}


def _as_parquet(row: Row) -> Row:
    # A column for the mark would be null in the turns of all other rows.
    _refuse_marks(row, "parquet")
    return _as_messages(row)


def _as_sharegpt(row: Row) -> Row:
    turns = [
        {"from": _SHAREGPT_ROLES[turn["role"]], "value": turn["content"], **_mark(turn)}
        for turn in row["messages"]
    ]
    return {"conversations": turns, **_lineage(row)}


def _joined(messages: Iterable[Row]) -> list[dict[str, str]]:
    """The turns, neighbours of one role joined; a tool's answers stay apart."""
    turns: list[dict[str, str]] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"] != "tool":
            turns[-1]["content"] += "\n\n" + message["content"]
        else:
            turns.append({"role": message["role"], "content": message["content"]})
    return turns


def _split_system(row: Row) -> tuple[str, list[dict[str, str]]]:
    """The leading system prompt, or "", and the turns after it."""
    messages = _joined(row["messages"])
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


def _check_pairs(row: Row, turns: list[dict[str, str]], asking: tuple[str, ...], fmt: str) -> None:
    """Raises RequestError unless `turns` are pairs of an asking role and the assistant."""
    for position, turn in enumerate(turns):
        expected = ("assistant",) if position % 2 else asking
        if turn["role"] not in expected:
            raise UnfitSampleError(
                f"sample {row['sample_id']}: {fmt} cannot hold its {turn['role']} turn where "
                f"{' or '.join(expected)} is due"
            )
    if not turns or len(turns) % 2:
        raise UnfitSampleError(
            f"sample {row['sample_id']}: {fmt} cannot hold a conversation that does not end "
            "with an assistant turn"
        )


def _as_alpaca(row: Row) -> Row:
    _refuse_marks(row, "alpaca")
    system, turns = _split_system(row)
    _check_pairs(row, turns, ("user",), "alpaca")
    texts = [turn["content"] for turn in turns]
    *history, (instruction, output) = zip(texts[::2], texts[1::2], strict=True)
    return {
        "instruction": instruction,
        "input": "",
        "output": output,
        "system": system,
        "history": [list(pair) for pair in history],
        **_lineage(row),
    }


def _as_llamafactory(row: Row) -> Row:
    _refuse_marks(row, "llamafactory")
    # LLaMA-Factory drops, with a warning only, conversations that do not alternate.
    _check_pairs(row, _split_system(row)[1], ("user", "tool"), "llamafactory")
    return {**_as_messages(row), "messages": _joined(row["messages"])}


def _write_llamafactory(rows: Iterable[Row], out: Path, files: Sequence[Path], force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out}: is a file; llamafactory is written to a folder")
    name = out.resolve().name
    data, info = files
    refuse_existing(data, force)
    entries = _dataset_entries(info)
    if name in entries and not force:
        raise RequestError(f"{info}: has an entry '{name}'; give --force to overwrite it")
    entries[name] = _llamafactory_entry(data.name)
    with _replacing(data) as temporary, temporary.open("w", encoding="utf-8") as file:
        _write_array(rows, file)
    with _replacing(info) as temporary:
        text = json.dumps(entries, ensure_ascii=False, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def _llamafactory_entry(file_name: str) -> dict[str, Any]:
    """What dataset_info.json says of a file of role/content messages."""
    return {
        "file_name": file_name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "observation_tag": "tool",
            "system_tag": "system",
        },
    }


def _llamafactory_training(spec: FinetuneSpec, out: Path) -> str:
    """A LLaMA-Factory training file that says what `spec` says, for one device."""
    lora: dict[str, Any] = {"finetuning_type": "full"}
    if spec.lora is not None:
        lora = {
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": spec.lora.rank,
            "lora_alpha": spec.lora.alpha,
            "lora_dropout": spec.lora.dropout,
        }
    base = spec.base.repo or spec.base.path if spec.base is not None else None
    settings = {
        "model_name_or_path": base or "the base model's repo or folder",
        "stage": "sft",
        "do_train": True,
        **lora,
        "dataset": out.resolve().name,
        "dataset_dir": ".",
        "template": "the name of the base model's template",
        "cutoff_len": spec.max_length,
        "packing": spec.packing,
        "per_device_train_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.batch_size // spec.micro_batch_size,
        "num_train_epochs": spec.epochs,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": spec.schedule,
        "warmup_ratio": spec.warmup_ratio,
        "weight_decay": spec.weight_decay,
        "bf16": spec.dtype != "float32",
        "disable_gradient_checkpointing": not spec.gradient_checkpointing,
        "save_steps": spec.checkpoint_steps,
        "logging_steps": 1,
        "seed": spec.seed,
        "output_dir": "tuned",
    }
    return yaml.safe_dump(settings, sort_keys=False)


def _dataset_entries(info: Path) -> dict[str, Any]:
    if not info.exists():
        return {}
    try:
        entries = json.loads(info.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{info}: is not JSON ({error})") from error
    if not isinstance(entries, dict):
        raise RequestError(f"{info}: is not a JSON object of datasets")
    return entries


def _write_parquet(rows: Iterable[Row], path: Path) -> None:
    iterator = iter(rows)
    with pq.ParquetWriter(path, _PARQUET_SCHEMA) as writer:
        while batch := list(islice(iterator, _PARQUET_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=_PARQUET_SCHEMA))
