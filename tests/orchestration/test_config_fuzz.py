"""Configuration files that nobody means to write: refused in a line a fault, never a traceback."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from mona.errors import RequestError
from orchestration import outcome
from orchestration.cli import cli
from orchestration.config import Config, load_config
from tests.orchestration.test_config import GOOD

# What YAML makes something else of than text, what it does not allow, and what no number holds.
_SCALARS = [
    "null", "true", "~", ".nan", ".inf", "-1", "0", "1e999", "9" * 5000, "0x" + "f" * 5000,
    "0b_", "1:2:3", "2024-13-45", "2024-01-01 99:99:99", "!!int ''", "!!int x", "!!float x",
    "!!bool maybe", "!!timestamp never", "!!binary '%'", "!!python/object:os.system {}", "!x 1",
    "'\"'", '"\\0"', '"\\ud800"', '"\\x1b[2J"', "\x07", "\x1b[31m", "é", "\u202e", "\ufeff",
    "*anchor", "&a [*a]", "&b {x: *b}", "[", "{", "]", "}", ": :", "- -", "? [1]\n: 2", "@", "`",
    "%", "|", ">", "<<: 5", "<<: *none", "[" * 200, "{a: " * 200, "- " * 300, "'" * 9,
    "~nobody/x", "~no\tbody", "${HOME}", "${NOT_SET_ANYWHERE}", "${", "$", "/" * 3000, "x" * 9000,
    "[]", "{}", "[1, 2]", "{a: 1}", "", " ", "\t", "# ${NOT_SET_ANYWHERE}", "---\nb: 1", "...",
]  # fmt: skip


def _mutated(text: str, draw: random.Random) -> str:
    """The text with one to three lines, keys, values or characters changed."""
    for _ in range(draw.randint(1, 3)):
        lines = text.splitlines(keepends=True)
        at = draw.randrange(len(lines))
        kind = draw.randrange(7)
        if kind == 0:
            lines[at] = draw.choice(lines)
        elif kind == 1:
            del lines[at]
        elif kind == 2:
            key, _, _ = lines[at].partition(":")
            lines[at] = f"{key}: {draw.choice(_SCALARS)}\n"
        elif kind == 3:
            lines[at] = lines[at].replace("{", f"{{{draw.choice(_SCALARS)}: 1, ", 1)
        elif kind == 4:
            lines.insert(at, f"{' ' * draw.randrange(6)}{draw.choice(_SCALARS)}\n")
        elif kind == 5:
            whole = "".join(lines)
            at = draw.randrange(len(whole))
            return whole[:at] + draw.choice(_SCALARS) + whole[at + draw.randrange(3) :]
        else:
            lines[at] = draw.choice((" ", "\t", "- ", "")) + lines[at].lstrip()
        text = "".join(lines) or GOOD
    return text


@pytest.mark.parametrize("seed", range(10))
def test_a_mutated_configuration_is_accepted_or_refused_in_lines(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    refused = 0
    for _ in range(60):
        file = tmp_path / "c.yaml"
        text = _mutated(GOOD, draw)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            config = load_config(file)
        except RequestError as error:
            refused += 1
            for line in str(error).splitlines():
                assert line.startswith(str(file)), (text, line)
                assert len(line) < 1000, (text, line)
        else:
            assert isinstance(config, Config), text
            assert config.store_root, text
            assert config.home, text
    assert refused > 20


@pytest.mark.parametrize("scalar", _SCALARS)
def test_every_odd_value_in_some_places(tmp_path: Path, scalar: str) -> None:
    for old in ("root: store", "path: rows.jsonl", "path: model", "share: 0.05"):
        key = old.partition(":")[0]
        text = GOOD.replace(old, f"{key}: {scalar}")
        (tmp_path / "c.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(RequestError):
            load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf" + GOOD.encode(), b"- 1", b"5", b"a: b: c"],
)
def test_bytes_that_are_no_configuration(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    if content.endswith(GOOD.encode()):  # with a byte order mark
        assert load_config(file).store_root
    else:
        with pytest.raises(RequestError, match=r"c\.yaml"):
            load_config(file)


@pytest.mark.parametrize("given", ["~nobody_at_all/c.yaml", "/proc/self/mem", ".", ""])
def test_places_that_hold_no_configuration(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome.exit_code(cli, ["check", "--config", given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mona: ")


def test_a_loop_of_links_is_a_line(tmp_path: Path) -> None:
    loop = tmp_path / "c.yaml"
    loop.symlink_to(loop)
    with pytest.raises(RequestError, match=r"c\.yaml"):
        load_config(loop)
