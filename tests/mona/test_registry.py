"""mona.registry: a new kind is one file, or somebody's entry point; nothing is imported early."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from mona.errors import RequestError
from mona.exports import export, files_of
from mona.files import DataFile
from mona.formats import FormatError, detect, header_of
from mona.pool import PoolSource, build_pool
from mona.registry import EXPORTS, FORMATS, READERS, Registry
from mona.spec import Source, TargetFiles, TargetSpec
from mona.targets import read_target

REGISTERS = {"mona.formats": FORMATS, "mona.targets": READERS, "mona.exports": EXPORTS}

# A whole kind each, as its author would write it.
FORMAT = """
from mona.formats.base import Format, text
from mona.sample import Message

def convert(row):
    return [Message("user", text(row, "riddle")), Message("assistant", text(row, "solved"))]

KIND = Format(lambda row: "riddle" in row, {precedence}, convert, header=("riddle", "solved"))
"""
READER = """
from mona.targets.base import Reader, records, stem, target_row, text

def read(file):
    return [
        target_row(
            file, raw.line, user=text(file, raw.line, raw.data, "clue"), assistant="Yes.",
            subtask=stem(file), question=text(file, raw.line, raw.data, "clue"),
        )
        for raw in records(file)
    ]

KIND = Reader(read, from_hub=False)
"""
EXPORT = """
from mona.exports.base import ExportFormat, lineage

def convert(row):
    return {"said": [turn["content"] for turn in row["messages"]], **lineage(row)}

KIND = ExportFormat(convert, "jsonl")
"""

# Adds a kind: (package, name, source).
Add = Callable[[str, str, str], None]


@pytest.fixture(autouse=True)
def _registers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for package, register in REGISTERS.items():
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        places = [*spec.submodule_search_locations]
        monkeypatch.setattr(spec, "submodule_search_locations", places)
        monkeypatch.setattr(sys.modules[package], "__path__", places)
        monkeypatch.setattr(register, "_loaded", {})
    forget()
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("mona.", "acme_")):
            del sys.modules[name]
    forget()


def forget() -> None:
    for register in REGISTERS.values():
        vars(register).pop("_places", None)


def into_folder(tmp_path: Path) -> Add:
    def add(package: str, name: str, source: str) -> None:
        folder = tmp_path / package
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(f'"""Own."""\n{source}', encoding="utf-8")
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        spec.submodule_search_locations.append(str(folder))
        forget()

    return add


def as_entry_point(tmp_path: Path) -> Add:
    """A package that is installed as pip leaves it."""

    def add(package: str, name: str, source: str) -> None:
        root = tmp_path / f"site_{package}_{name}"
        about = root / f"acme_{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (root / f"acme_{name}.py").write_text(source, encoding="utf-8")
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{package}]\n{name} = acme_{name}:KIND\n")
        sys.path.append(str(root))
        forget()

    return add


@pytest.fixture(params=[into_folder, as_entry_point])
def add(request: pytest.FixtureRequest, tmp_path: Path) -> Add:
    made: Add = request.param(tmp_path)
    return made


def test_a_pool_format_is_one_file(add: Add, tmp_path: Path) -> None:
    row = {"riddle": "What has roots?", "solved": "A tree."}
    with pytest.raises(FormatError, match="no known format"):
        detect(row)
    with pytest.raises(ValidationError, match="'riddles' is no pool format"):
        Source(name="own", path="x", format="riddles")
    add("mona.formats", "riddles", FORMAT.format(precedence=90))
    assert detect(row) == "riddles"
    assert header_of("riddles") == ("riddle", "solved")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**row, "system": "Think."}) + "\n", encoding="utf-8")
    for format in ("riddles", "auto"):
        source = Source(name="own", path=str(file), format=format)
        out = tmp_path / format
        out.mkdir()
        build_pool([PoolSource(source, [DataFile(file)])], out, max_bad_rows=0)
        (made,) = pq.read_table(out / "pool.parquet").to_pylist()
        said = [(turn["role"], turn["content"]) for turn in made["messages"]]
        assert said == [
            ("system", "Think."),
            ("user", "What has roots?"),
            ("assistant", "A tree."),
        ]


def test_a_row_that_is_read_is_read_as_before_beside_somebodys_format(tmp_path: Path) -> None:
    row = {"riddle": "What has roots?", "prompt": "Ask.", "completion": "Told."}
    as_entry_point(tmp_path)("mona.formats", "riddles", FORMAT.format(precedence=-1))
    assert detect(row) == "prompt_completion"
    # A file of ours goes by its number.
    into_folder(tmp_path)("mona.formats", "riddles_too", FORMAT.format(precedence=-1))
    assert detect(row) == "riddles_too"


def test_a_target_reader_is_one_file(add: Add, tmp_path: Path) -> None:
    file = tmp_path / "clues.jsonl"
    file.write_text('{"clue": "Is it green?"}\n', encoding="utf-8")
    files = TargetFiles(path=str(file))
    with pytest.raises(ValidationError, match="'clues' is no target reader"):
        TargetSpec(reader="clues", examples=files)
    add("mona.targets", "clues", READER)
    spec = TargetSpec(reader="clues", examples=files)
    (found,) = read_target(spec.reader, [DataFile(file)])
    assert (found.subtask, found.question, found.messages[1].content) == (
        "clues",
        "Is it green?",
        "Yes.",
    )
    # What the reader says of itself is asked for.
    with pytest.raises(RequestError, match="task_ids is for reader mbpp, not clues"):
        read_target("clues", [DataFile(file)], task_ids=(1, 2))
    with pytest.raises(ValidationError, match="reader clues reads task files, from a path"):
        TargetSpec.model_validate({"reader": "clues", "examples": {"hub": {"repo": "a/b"}}})


def test_an_export_format_is_one_file(add: Add, tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "sample_id": "s",
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
        "score": 0.5,
        "rank": 1,
        "source": "own",
        "licence": "CC0-1.0",
    }
    out = tmp_path / "out"
    with pytest.raises(RequestError, match="'spoken' is no export format"):
        export([row], "spoken", out)
    add("mona.exports", "spoken", EXPORT)
    assert files_of("spoken", out) == {out: "jsonl"}
    assert export([row], "spoken", out) == [out]
    assert json.loads(out.read_text())["said"] == ["Hi", "Ho"]


@pytest.mark.parametrize(
    ("register", "name", "near"),
    [
        (FORMATS, "alpacca", "did you mean 'alpaca'? There are alpaca, dolly, evals"),
        (READERS, "gsm8", "did you mean 'gsm8k'? There are bbh, gpqa, gsm8k"),
        (EXPORTS, "llama_factory", "did you mean 'llamafactory'? There are alpaca, jsonl"),
        (EXPORTS, "base", "; there are alpaca"),
        (FORMATS, "_turns", "; there are alpaca"),
        (READERS, "", "; there are bbh"),
        (READERS, "../gsm8k", "'../gsm8k' is no target reader"),
    ],
)
def test_a_wrong_name_says_what_there_is(register: Registry[Any], name: str, near: str) -> None:
    with pytest.raises(RequestError) as error:
        register.get(name)
    assert near in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("alpaca", FORMAT.format(precedence=1), "two are pool format 'alpaca': mona.formats"),
        ("Riddles", FORMAT.format(precedence=1), "'Riddles' is no name"),
        ("riddles", "KIND = 'a format'", "riddles:KIND of acme-riddles: is a str, not a"),
        ("riddles", "OTHER = 1", "riddles:KIND of acme-riddles: can't be imported"),
        ("riddles", "import no_such_library", "can't be imported: No module named 'no_such_"),
    ],
)
def test_somebodys_faulty_kind_is_one_line(
    name: str, source: str, said: str, tmp_path: Path
) -> None:
    as_entry_point(tmp_path)("mona.formats", name, source)
    with pytest.raises(RequestError) as error:
        FORMATS.get(name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    if "imported" in said:  # who does not ask for it has nothing of it
        assert FORMATS.get("dolly").precedence == 50


def test_a_file_without_a_kind_is_one_line(tmp_path: Path) -> None:
    into_folder(tmp_path)("mona.exports", "spoken", "OTHER = 1")
    with pytest.raises(RequestError, match=r"mona\.exports\.spoken: is a NoneType, not a"):
        EXPORTS.get("spoken")


def test_every_kind_of_ours_is_what_its_folder_holds() -> None:
    for package, register in REGISTERS.items():
        for name in register.names():
            assert register.is_own(name)
            kind = register.get(name)
            assert type(kind).__module__ == f"{package}.base"
    order = [FORMATS.get(name).precedence for name in FORMATS.names()]
    assert len(set(order)) == len(order)


LAZY = """
import sys
import mona.spec
from mona.registry import EXPORTS, FORMATS, READERS
mona.spec.Source(name="own", path="x", format="dolly")
mona.spec.TargetSpec(reader="gsm8k", examples={"path": "x"})
for register in (FORMATS, READERS, EXPORTS):
    register.check(register.names()[0])
print(sorted(m for m in sys.modules if m.startswith(("mona.formats", "mona.targets", "mona.exp"))))
for register in (FORMATS, READERS, EXPORTS):
    for name in register.names():
        register.get(name)
heavy = {"torch", "transformers", "sae_lens", "lm_eval", "datasets", "dagster", "lancedb"}
print(sorted(heavy & sys.modules.keys()))
"""


def test_naming_a_kind_imports_none_and_using_it_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
