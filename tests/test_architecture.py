"""Imports point one way: orchestration -> assets -> resources -> mona."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from resources.asset_partition import KINDS

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("mona", "resources", "assets", "orchestration")
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_its_own_layer_and_those_below(path: Path) -> None:
    layer = LAYERS.index(path.relative_to(ROOT).parts[0])
    assert not imported(path) & set(LAYERS[layer + 1 :])
    if layer == 0:
        assert "dagster" not in imported(path)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_unpickles_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if tree.body:
        assert ast.get_docstring(tree)
    assert not imported(path) & {"pickle", "dill", "joblib", "cloudpickle"}


def by_hand(tree: ast.AST) -> list[int]:
    """The lines that cut the name of an asset partition, or put one together."""
    cutting = {"split", "rsplit", "partition", "rpartition", "removeprefix", "removesuffix"}
    looking = {"startswith", "endswith", "removeprefix", "removesuffix"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            if "dataset}|{" in ast.unparse(node):
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            parts = (part for argument in node.args for part in ast.walk(argument))
            values = [part.value for part in parts if isinstance(part, ast.Constant)]
            texts = [value for value in values if isinstance(value, str)]
            if node.func.attr in cutting and any(set("[|]") & set(text) for text in texts):
                found.append(node.lineno)
            if node.func.attr in looking and any(
                text[1:] in KINDS for text in texts if text[:1] == "/"
            ):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_module_knows_how_asset_partitions_are_named(path: Path) -> None:
    where = path.relative_to(ROOT)
    if where.parts[0] != "mona" and where.name != "asset_partition.py":
        assert not by_hand(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "line",
    [
        "asset.partition('[')[2]",
        "asset.split('|')",
        "rest.removesuffix(']')",
        "asset.endswith('/examples')",
        "asset.removeprefix(f'{label(RAW_POOL)}[')",
        "label(ACTIVATIONS, f'{dataset}|{model}')",
        "f'{subset}/{kind}[{dataset}|{model}]'",
    ],
)
def test_a_name_that_is_cut_by_hand_is_found(line: str) -> None:
    assert by_hand(ast.parse(line)) == [1]
