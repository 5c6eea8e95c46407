"""The one configuration file: read, expanded, validated, its names checked against each
other. What each entry may say is `mona.spec`; whether its files exist is checked by the
commands that need them (`mona check`, `mona run`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from mona.errors import RequestError
from mona.spec import DatasetSpec, LocalPath, ModelSpec, RecipeSpec, Slug, Spec, TargetSpec
from resources.engine import EngineSpec

CONFIG_VARIABLE = "MONA_CONFIG"
# A table's name holds up to four names beside its kind; a file's name has at most 255 bytes.
_MOST_LETTERS = 180
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class StoreSpec(Spec):
    """Where everything made is kept: tables under `root`, a folder or an object-store URI;
    scratch, models and Dagster's history under `home`, a local folder."""

    root: str = Field(min_length=1)
    home: LocalPath | None = None


class AutomationSpec(Spec):
    """What happens without a hand, while `mona ui` or Dagster's daemon runs."""

    follow_changes: bool = Field(
        default=False, description="bring derived partitions up to date when inputs change"
    )
    sweep: str | None = Field(
        default=None, description="cron expression: look for stale partitions that were missed"
    )
    webhook: str | None = Field(
        default=None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="environment variable with the URL that failures and taints are posted to",
    )


class Config(Spec):
    """The whole configuration; `path` is the file it was read from."""

    path: Path
    store: StoreSpec
    datasets: dict[Slug, DatasetSpec] = Field(min_length=1)
    models: dict[Slug, ModelSpec] = Field(min_length=1)
    targets: dict[Slug, TargetSpec] = Field(min_length=1)
    recipes: dict[Slug, RecipeSpec] = Field(min_length=1)
    engine: EngineSpec = EngineSpec()
    automation: AutomationSpec = AutomationSpec()

    @property
    def store_root(self) -> str:
        """The root URI, or an absolute folder."""
        if "://" in self.store.root:
            return self.store.root
        try:
            return str((self.path.parent / Path(self.store.root).expanduser()).resolve())
        except (OSError, RuntimeError) as error:  # an unknown user, or links in a circle
            raise RequestError(f"{self.path}: store.root: {self.store.root}: {error}") from error

    @property
    def home(self) -> Path:
        """The local folder for Dagster's history, prepared models, locks and scratch."""
        if self.store.home is not None:
            try:
                return Path(self.store.home).resolve()
            except (OSError, RuntimeError) as error:
                raise RequestError(f"{self.path}: store.home: {error}") from error
        if "://" in self.store.root:
            raise RequestError(f"{self.path}: store.home: needed when store.root is a URI")
        return Path(self.store_root)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice instead of keeping the last, and expands
    environment variables in keys and values: not in comments, and never into more than a value."""

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node]) -> yaml.ScalarNode:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        event.value = _expanded(event.value, event.start_mark.line + 1)
        return super().compose_scalar_node(anchor)  # type: ignore[no-any-return, no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise RequestError(f"line {line}: the name '{key}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _expanded(text: str, line: int) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise RequestError(f"line {line}: the environment variable {name} is not set")
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    # pydantic names a bad mapping key as [key]; the path to it reads better without.
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    given = first.get("input")
    message = first["msg"].removeprefix("Value error, ")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where or 'top level'}: {message}{shown}{more}"


def _check_names(config: Config) -> None:
    for model_name, model in config.models.items():
        for dataset in model.sae.sample_datasets:
            if dataset not in config.datasets:
                raise RequestError(f"models.{model_name}.sae: no dataset is called '{dataset}'")
    for dataset_name, dataset_spec in config.datasets.items():
        subsample = dataset_spec.subsample
        if subsample and subsample.tokenizer and subsample.tokenizer not in config.models:
            raise RequestError(
                f"datasets.{dataset_name}.subsample.tokenizer: "
                f"no model is called '{subsample.tokenizer}'"
            )


def _check_lengths(config: Config) -> None:
    kinds = ("targets", "recipes", "datasets", "models")
    longest = {kind: max(getattr(config, kind), key=len) for kind in kinds}
    letters = sum(map(len, longest.values()))
    if letters > _MOST_LETTERS:
        names = ", ".join(f"{kind}.{name}" for kind, name in longest.items())
        raise RequestError(
            f"{names}: {letters} letters together, at most {_MOST_LETTERS} make a file's name"
        )


def _check_store(config: Config) -> None:
    """RequestError where root or home can't be a folder."""
    if "?" in config.store_root:
        # LanceDB takes what follows for a query, and writes elsewhere.
        raise RequestError(f"store.root: {config.store.root}: '?' can't be in its name")
    local = {} if "://" in config.store_root else {"store.root": Path(config.store_root)}
    if config.store.home is not None or not local:
        local["store.home"] = config.home
    for key, path in local.items():
        for part in (path, *path.parents):
            try:
                if not part.is_dir() and (part.exists() or part.is_symlink()):
                    raise RequestError(f"{key}: {part} is no folder")
            except OSError as error:
                raise RequestError(f"{key}: {part}: {error.strerror}") from error


def _check_crons(config: Config) -> None:
    crons = {f"datasets.{name}.refresh": d.refresh for name, d in config.datasets.items()}
    crons["automation.sweep"] = config.automation.sweep
    given = {key: cron for key, cron in crons.items() if cron is not None}
    if not given:
        return
    from dagster._utils.schedules import is_valid_cron_string

    for key, cron in given.items():
        if not is_valid_cron_string(cron):
            raise RequestError(f"{key}: '{cron}' is no cron expression")


def load_config(path: str | Path | None = None) -> Config:
    """The configuration at `path`, or at MONA_CONFIG.

    Raises RequestError with one line: file, key, reason.
    """
    given = path if path is not None else os.environ.get(CONFIG_VARIABLE)
    if given is None:
        raise RequestError(f"no configuration: pass --config FILE or set {CONFIG_VARIABLE}")
    file = Path(given).expanduser().resolve()
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{file}: not UTF-8 (byte {error.start})") from error
    try:
        # The loader derives from SafeLoader: it builds plain values only.
        raw = yaml.load(text, Loader=_UniqueKeyLoader)
        if not isinstance(raw, dict):
            raise RequestError("not a mapping of store, datasets, models, targets, recipes")
        config = Config.model_validate({**raw, "path": file}, context={"base": file.parent})
        _check_names(config)
        _check_lengths(config)
        _check_store(config)
        _check_crons(config)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise RequestError(f"{file}: line {line}: {error.problem}") from error
    except ValidationError as error:
        raise RequestError(f"{file}: {_reason(error)}") from error
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error
    return config
