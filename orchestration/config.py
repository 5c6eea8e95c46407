"""The one configuration file: read, expanded, validated, its names checked against each
other. What each entry may say is `mona.spec`; whether its files exist is checked by the
commands that need them (`mona check`, `mona run`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError

from mona.errors import Faults, RequestError
from mona.names import nearest
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
            raise RequestError(f"store.root: {self.store.root}: {error}") from error

    @property
    def home(self) -> Path:
        """The local folder for Dagster's history, prepared models, locks and scratch."""
        if self.store.home is not None:
            try:
                return Path(self.store.home).resolve()
            except (OSError, RuntimeError) as error:
                raise RequestError(f"store.home: {self.store.home}: {error}") from error
        if "://" in self.store.root:
            raise RequestError("store.home: is needed where store.root is a URI")
        return Path(self.store_root)

    def edited(self) -> str | None:
        """Why what was loaded is not what the file says now; None where it is.

        Two versions of a file over one home would each take the other's work for out of date.
        """
        try:
            now = load_config(self.path)
        except RequestError as error:
            return str(error)
        return None if now == self else f"{self.path} was edited since it was loaded"


# Stand for `${` and `}` while the file is parsed: no YAML, and no text of anybody's.
_OPEN, _CLOSE = "\uf8f0", "\uf8f1"
_MARKED = re.compile(f"{_OPEN}([A-Za-z_][A-Za-z0-9_]*){_CLOSE}")
_DEEPEST = 100


class _Loader(yaml.SafeLoader):
    """A safe loader that puts in environment variables, refuses a key given twice instead of
    keeping the last, and names the line of whatever can't be read."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > _DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise RequestError(f"line {line}: nested more than {_DEEPEST} deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        # Here, so that a variable's value is one scalar whatever it holds, and may be a number;
        # comments are gone by now.
        event = self.peek_event()
        line = event.start_mark.line + 1
        event.value = _MARKED.sub(lambda match: _variable(match.group(1), line), event.value)
        return super().compose_scalar_node(anchor)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RequestError):
            raise
        except Exception as error:  # whatever a conversion raises: int, date, binary
            line = node.start_mark.line + 1
            reason = " ".join(str(error).split())[:200]
            raise RequestError(f"line {line}: can't be read as {node.tag}: {reason}") from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            line = key_node.start_mark.line + 1
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise RequestError(f"line {line}: a name must be a plain text")
            if key in seen:
                raise RequestError(f"line {line}: the name '{_bounded(str(key))}' is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _variable(name: str, line: int) -> str:
    if name not in os.environ:
        raise RequestError(f"line {line}: the environment variable {_bounded(name)} is not set")
    return os.environ[name]


def _parsed(text: str) -> dict[str, Any]:
    marked = _VARIABLE.sub(rf"{_OPEN}\1{_CLOSE}", text)
    try:
        # The loader derives from SafeLoader: it builds plain values only.
        raw = yaml.load(marked, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        problem = _bounded(str(error.problem or error.context), 400)
        raise RequestError(f"{where}{problem}") from error
    except yaml.reader.ReaderError as error:
        line = marked.count("\n", 0, error.position) + 1
        # The library's stubs say text, of a text it gives the character's number.
        shown = f"U+{error.character:04X}" if isinstance(error.character, int) else "a byte"
        raise RequestError(f"line {line}: {shown} is no character of YAML") from error
    except RecursionError as error:
        raise RequestError("nested too deep") from error
    if not isinstance(raw, dict):
        raise RequestError("not a mapping of store, datasets, models, targets, recipes")
    if "path" in raw:  # the field that holds the file's own name
        raise RequestError("path: no such key at the top level")
    return raw


# --- faults, each as a line


def _lines(error: ValidationError) -> list[str]:
    return list(dict.fromkeys(_line(fault) for fault in error.errors()))


def _line(fault: Any) -> str:
    # pydantic names a bad mapping key as [key]; the path to it reads better without.
    where = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        *above, key = fault["loc"]
        message = f"no such key{nearest(str(key), _keys_at(above))}"
    elif fault["type"] == "missing":
        message = "is missing"
    given = fault.get("input")
    shown = ""
    if isinstance(given, str | int | float | bool) and fault["type"] != "extra_forbidden":
        try:
            text = repr(given)
        except ValueError:  # an integer of thousands of digits
            text = "a very long number"
        # A message that begins with it does not say it again.
        shown = "" if message.startswith(text) else f" (got {_bounded(text, 80)})"
    if fault["type"] == "literal_error":
        expected = re.findall(r"'([^']*)'", str(fault["ctx"]["expected"]))
        shown += nearest(str(given), expected)
    return f"{_bounded(where) or 'top level'}: {_bounded(message, 400)}{shown}"


def _bounded(text: str, longest: int = 200) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _keys_at(location: Sequence[Any]) -> list[str]:
    """The keys that the description at this place of the configuration takes."""
    at: Any = Config
    for part in location:
        if isinstance(at, type) and issubclass(at, BaseModel):
            field = at.model_fields.get(str(part))
            at = _shape(field.annotation) if field is not None else None
        elif at is not None:
            at = _shape(get_args(at)[-1])
    return [key for key in at.model_fields if key != "path" or at is not Config] if at else []


def _shape(annotation: Any) -> Any:
    """The description, or the mapping or list of them, inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    if get_origin(annotation) in (dict, list):
        return annotation
    found = (_shape(inner) for inner in get_args(annotation))
    return next((shape for shape in found if shape is not None), None)


def _name_faults(config: Config) -> Iterator[str]:
    for model_name, model in config.models.items():
        for dataset in model.sae.sample_datasets:
            if dataset not in config.datasets:
                near = nearest(dataset, config.datasets)
                yield f"models.{model_name}.sae: no dataset is called '{dataset}'{near}"
    for dataset_name, dataset_spec in config.datasets.items():
        subsample = dataset_spec.subsample
        if subsample and subsample.tokenizer and subsample.tokenizer not in config.models:
            yield (
                f"datasets.{dataset_name}.subsample.tokenizer: no model is called "
                f"'{subsample.tokenizer}'{nearest(subsample.tokenizer, config.models)}"
            )


def _length_faults(config: Config) -> Iterator[str]:
    kinds = ("targets", "recipes", "datasets", "models")
    longest = {kind: max(getattr(config, kind), key=len, default="") for kind in kinds}
    letters = sum(map(len, longest.values()))
    if letters > _MOST_LETTERS:
        names = ", ".join(f"{kind}.{name}" for kind, name in longest.items())
        yield f"{names}: {letters} letters together, at most {_MOST_LETTERS} make a file's name"


def _place_faults(config: Config) -> Iterator[str]:
    for key in ("root", "home"):
        try:
            given = config.store_root if key == "root" else str(config.home)
        except RequestError as error:
            yield str(error)
            return
        except (RuntimeError, ValueError, OSError) as error:
            # ~nobody, a zero byte, a loop of links
            yield f"store.{key}: {' '.join(str(error).split())}"
            return
        # LanceDB and Dagster take a path for a URL, and would write elsewhere.
        if "://" not in given and ("?" in given or "%" in given):
            named = "home" if config.store.home is not None else "root"
            yield f"store.{key if key == 'root' else named}: {given}: '?' and '%' can't be in it"
            return
        fault = _folder_fault(Path(given)) if "://" not in given else None
        if fault is not None:
            yield f"store.{key}: {fault}"
            return


def _folder_fault(path: Path) -> str | None:
    """Why a path is no folder and can't be made one."""
    for part in (path, *path.parents):
        try:
            if part.is_symlink() or part.exists():
                return None if part.is_dir() or not part.exists() else f"{part} is no folder"
        except OSError as error:
            return f"{part}: {error.strerror}"
    return None


def _cron_faults(config: Config) -> Iterator[str]:
    crons = {f"datasets.{name}.refresh": d.refresh for name, d in config.datasets.items()}
    crons["automation.sweep"] = config.automation.sweep
    given = {key: cron for key, cron in crons.items() if cron is not None}
    if not given:
        return
    from dagster._utils.schedules import is_valid_cron_string

    for key, cron in given.items():
        if not is_valid_cron_string(cron):
            yield f"{key}: '{cron}' is no cron expression"


def load_config(path: str | Path | None = None) -> Config:
    """The configuration at `path`, or at MONA_CONFIG.

    Raises RequestError with a line: file, key, reason; `Faults` where there are several.
    """
    given = path if path is not None else os.environ.get(CONFIG_VARIABLE)
    if given is None:
        raise RequestError(f"no configuration: pass --config FILE or set {CONFIG_VARIABLE}")
    try:
        file = Path(given).expanduser().resolve()
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{given}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{given}: not UTF-8 (byte {error.start})") from error
    except (RuntimeError, ValueError) as error:  # ~nobody, a loop of links, a zero byte
        raise RequestError(f"{given!r}: {' '.join(str(error).split())}") from error
    try:
        raw = _parsed(text)
        config = Config.model_validate({**raw, "path": file}, context={"base": file.parent})
        faults = [
            fault
            for look in (_name_faults, _length_faults, _cron_faults, _place_faults)
            for fault in look(config)
        ]
    except ValidationError as error:
        faults = _lines(error)
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error
    if faults:
        raise Faults([f"{file}: {fault}" for fault in faults])
    return config
