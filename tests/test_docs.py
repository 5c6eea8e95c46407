"""What the documentation shows is there: commands and their options, targets of make, modules,
functions and files. Nothing is run."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import click
import pytest
import yaml
from pydantic.fields import FieldInfo

from mona import spec
from mona.registry import FORMATS, READERS, Registry
from orchestration.cli import cli
from orchestration.config import AutomationSpec, StoreSpec, load_config
from resources.engine import EngineSpec

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = ("mona", "resources", "assets", "orchestration", "tests", "bench", "examples", "docs")

_FENCE = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)")
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)}|\.ci)/[\w./-]*")
_DOTTED = re.compile(rf"(?:{'|'.join(FOLDERS[:6])})(?:\.[A-Za-z_]\w*)+")
_COMMAND = re.compile(r"(\$ )?(\.venv/bin/)?mona ")
# What ends one command of a line of shell.
_SHELL = {"|", "||", "&&", ";", ">", ">>", "<", "&"}


def fenced(text: str) -> list[str]:
    """The lines of the fenced blocks, those that end in a backslash joined with the next."""
    return [
        line
        for block in _FENCE.findall(text)
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def spans(text: str) -> list[str]:
    """The code spans outside of fenced blocks, each on one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", text))]


def words(line: str) -> list[str]:
    """The first command of a line of shell, without its comment."""
    found = shlex.split(line.removeprefix("$ "), comments=True)
    end = next((place for place, word in enumerate(found) if word in _SHELL), len(found))
    return found[:end]


def fault(args: list[str], *, whole: bool) -> str | None:
    """What click refuses of `mona ARGS`, or None; what is missing counts only where `whole`."""
    command: click.Command = cli
    path = ["mona"]
    while isinstance(command, click.Group) and args and not args[0].startswith("-"):
        found = command.commands.get(args[0])
        if found is None:
            return f"'{' '.join(path)}' has no command '{args[0]}'"
        command, args = found, args[1:]
        path.append(str(found.name))
    if isinstance(command, click.Group) and not args:
        return f"'{' '.join(path)}' needs a command" if whole else None
    try:
        # The help option that a command keeps is the one it is first asked for.
        command.make_context(" ".join(path), list(args), **cli.context_settings)
    except click.exceptions.Exit:
        return None  # --help, --version
    except click.MissingParameter as error:
        return error.format_message() if whole else None
    except click.UsageError as error:
        return error.format_message()
    return None


def page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def names_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def defined(path: Path) -> set[str]:
    """The names at the top of a module, imported ones too, and of its classes as CLASS.NAME."""
    found: set[str] = set()

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    look(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.ImportFrom):
                found.update(prefix + (alias.asname or alias.name) for alias in node.names)
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            found.update(prefix + name.id for name in targets if isinstance(name, ast.Name))

    look(ast.parse(page(path)).body, "")
    return found


def missing_name(dotted: str) -> bool:
    """Whether there is no such package, module, or name in a module."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        rest = ".".join(parts[length:])
        if place.with_suffix(".py").is_file():
            return bool(rest) and rest not in defined(place.with_suffix(".py"))
        if (place / "__init__.py").is_file():
            return bool(rest) and rest not in defined(place / "__init__.py")
    return not ROOT.joinpath(parts[0]).is_dir()


@pytest.mark.parametrize("path", PAGES, ids=names_of)
def test_every_command_shown_parses(path: Path) -> None:
    shown = [words(line)[1:] for line in fenced(page(path)) if _COMMAND.match(line)]
    named = [words(span)[1:] for span in spans(page(path)) if span.startswith("mona ")]
    faults = [(args, fault(args, whole=True)) for args in shown]
    faults += [(args, fault(args, whole=False)) for args in named]
    assert [(args, found) for args, found in faults if found] == []


@pytest.mark.parametrize("path", PAGES, ids=names_of)
def test_every_make_target_and_module_that_is_run_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", page(ROOT / "Makefile"), re.MULTILINE))
    lines = [words(line) for line in [*fenced(page(path)), *spans(page(path))] if _is_run(line)]
    wrong = [line for line in lines if line[0] == "make" and not set(line[1:]) <= targets]
    modules = [line[line.index("-m") + 1] for line in lines if "-m" in line and line[0] != "make"]
    assert wrong == []
    assert [name for name in modules if _DOTTED.fullmatch(name) and missing_name(name)] == []


def leads(path: Path, file: str, heading: str) -> bool:
    """Whether a link of a page leads to a file, and to a heading of it as GitHub names them."""
    place = path.parent / file if file else path
    if not heading:
        return place.exists()
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page(place)), re.MULTILINE)
    named = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return heading in named


def _is_run(line: str) -> bool:
    return bool(re.match(r"(make|python3?|\.venv/bin/python) ", line))


@pytest.mark.parametrize("path", PAGES, ids=names_of)
def test_every_file_and_name_mentioned_exists(path: Path) -> None:
    found = spans(page(path))
    files = {span for span in found if _PATH.fullmatch(span) and not (ROOT / span).exists()}
    links = {link for link in _LINK.findall(page(path)) if not leads(path, *link)}
    names = {span for span in found if _DOTTED.fullmatch(span) and missing_name(span)}
    assert (files, links, names) == (set(), set(), set())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("mona run --config my.yaml --dry-run", None),
        ("mona explain triage/mona ID", None),
        ("mona lineage sample ID --json", None),
        ("mona --version", None),
        ("mona rum", "no command 'rum'"),
        ("mona lineage smaple ID", "'mona lineage' has no command 'smaple'"),
        ("mona run --dryrun", "No such option"),
        ("mona export triage/mona --format csv --out x", "'csv' is no"),
        ("mona explain triage/mona", "Missing argument"),
        ("mona lineage", "needs a command"),
        ("mona status extra", "unexpected extra argument"),
        ("mona export t/r --format jsonl --out x && mona rum  # then", None),
    ],
)
def test_a_command_that_is_not_there_is_noticed(line: str, said: str | None) -> None:
    found = fault(words(line)[1:], whole=True)
    assert found is None if said is None else found is not None and said in found


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("mona.pool", False),
        ("mona.evaluation", False),
        ("mona.pool.build_pool", False),
        ("resources.encodings.Encodings.sync", False),
        ("mona.targets.TargetRow", False),
        ("mona.spec.Representation", False),
        ("mona.pool.build_pools", True),
        ("mona.pols", True),
        ("resources.encodings.Encodings.synch", True),
    ],
)
def test_a_name_that_is_not_there_is_noticed(name: str, missing: bool) -> None:
    assert missing_name(name) is missing


def test_the_checks_before_a_commit_are_those_of_make_lint() -> None:
    settings = yaml.safe_load(page(ROOT / ".pre-commit-config.yaml"))
    assert [found["repo"] for found in settings["repos"]] == ["local"]
    hooks = [hook for found in settings["repos"] for hook in found["hooks"]]
    assert [hook["entry"] for hook in hooks] == ["make lint"]
    assert "make lint" in page(ROOT / ".ci" / "run").splitlines()


def test_the_licence_is_the_whole_of_the_one_that_is_declared() -> None:
    """Apache-2.0 as its authors publish it, by its digest."""
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    project = tomllib.loads(page(ROOT / "pyproject.toml"))
    assert project["project"]["license"] == "Apache-2.0"


def test_every_package_says_that_it_has_types() -> None:
    project = tomllib.loads(page(ROOT / "pyproject.toml"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["*"]
    assert [package for package in FOLDERS[:4] if not (ROOT / package / "py.typed").is_file()] == []


def test_the_configurations_of_the_readme_are_valid(tmp_path: Path) -> None:
    """The first is a whole one; the others are parts that replace or add to its entries."""
    whole, *parts = [
        yaml.safe_load(block.replace("[...]", "[{name: tickets, path: t.jsonl}]"))
        for block in re.findall(r"^```yaml\n(.*?)^```", page(ROOT / "README.md"), re.M | re.S)
    ]
    for i, part in enumerate([{}, *parts]):
        file = tmp_path / f"{i}.yaml"
        file.write_text(yaml.safe_dump({**whole, **part}, sort_keys=False), encoding="utf-8")
        assert load_config(str(file)).recipes


SECTIONS: dict[str, type[spec.Spec]] = {
    "A dataset": spec.DatasetSpec,
    "A source": spec.Source,
    "Columns": spec.Columns,
    "A hub dataset": spec.Hub,
    "A wheel": spec.Wheel,
    "A subsample": spec.Subsample,
    "A model": spec.ModelSpec,
    "A language model": spec.LanguageModel,
    "Counted tokens": spec.TokenPolicy,
    "An SAE": spec.SaeSpec,
    "Training an SAE": spec.SaeTraining,
    "Loading an SAE": spec.PretrainedSae,
    "A target": spec.TargetSpec,
    "Files of a target": spec.TargetFiles,
    "Evaluation": spec.EvaluationSpec,
    "A recipe": spec.RecipeSpec,
    "A budget": spec.Budget,
    "Fine-tuning": spec.FinetuneSpec,
    "LoRA": spec.Lora,
    "Store": StoreSpec,
    "Engine": EngineSpec,
    "Automation": AutomationSpec,
}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_and_its_default_is_in_the_page_of_the_configuration(title: str) -> None:
    """docs/configuration.md has one table a section: each key once."""
    text = page(ROOT / "docs" / "configuration.md")
    section = re.split(r"^#+ ", text.partition(f"\n### {title}\n")[2], flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\|", section, re.MULTILINE)
    assert sorted(rows) == sorted(
        (name, shown_default(field)) for name, field in SECTIONS[title].model_fields.items()
    )


@pytest.mark.parametrize("kinds", [FORMATS, READERS], ids=lambda kinds: str(kinds.what))
def test_every_kind_is_named_in_the_page_of_the_configuration(kinds: Registry[object]) -> None:
    named = set(spans(page(ROOT / "docs" / "configuration.md")))
    assert [name for name in kinds.names() if kinds.is_own(name) and name not in named] == []


def shown_default(field: FieldInfo) -> str:
    """A key's default as the page writes it."""
    if field.is_required():
        return ""
    if field.default is None or field.default_factory is not None:
        return "-"
    if isinstance(field.default, spec.Spec):
        return "see below"
    return f"`{field.default if isinstance(field.default, str) else json.dumps(field.default)}`"
