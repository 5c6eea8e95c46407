"""LLaMA-Factory: a folder with `<folder name>.json`, in its sharegpt formatting with OpenAI-style
messages, an entry in `dataset_info.json`, which keeps the entries it has, and with a recipe that
trains a `<folder name>.yaml` of the same hyperparameters. Turns have to alternate: neighbours of
one role become one turn, joined by a blank line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mona.errors import RequestError
from mona.exports.base import (
    ExportFormat,
    FileKind,
    Folder,
    Row,
    as_messages,
    check_pairs,
    joined,
    refuse_marks,
    split_system,
)
from mona.publishing import refuse_existing
from mona.spec import FinetuneSpec


def _convert(row: Row) -> Row:
    refuse_marks(row, "llamafactory")
    # LLaMA-Factory drops, with a warning only, conversations that do not alternate.
    check_pairs(row, split_system(row)[1], ("user", "tool"), "llamafactory")
    return {**as_messages(row), "messages": joined(row["messages"])}


def _files(out: Path, training: FinetuneSpec | None) -> dict[Path, FileKind]:
    name = out.resolve().name
    files: dict[Path, FileKind] = {
        out / f"{name}.json": "array",
        out / "dataset_info.json": "settings",
    }
    if training is not None:
        files[out / f"{name}.yaml"] = "settings"
    return files


def _settings(out: Path, training: FinetuneSpec | None, force: bool) -> dict[Path, str]:
    data, info, *others = _files(out, training)
    for path in others:
        refuse_existing(path, force)
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out}: is a file; llamafactory is written to a folder")
    refuse_existing(data, force)
    entries, name = _dataset_entries(info), out.resolve().name
    if name in entries and not force:
        raise RequestError(f"{info}: has an entry '{name}'; give --force to overwrite it")
    entries[name] = _entry(data.name)
    texts = {info: json.dumps(entries, ensure_ascii=False, indent=2) + "\n"}
    if training is not None:
        texts[others[0]] = _training(training, out)
    return texts


def _entry(file_name: str) -> dict[str, Any]:
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


def _training(spec: FinetuneSpec, out: Path) -> str:
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


KIND = ExportFormat(_convert, "array", Folder(_files, _settings))
