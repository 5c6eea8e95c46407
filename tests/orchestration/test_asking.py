"""How often something is asked for, and when no more."""

from __future__ import annotations

import pytest

from orchestration.asking import TRIES, Asking


def looks(states: list[str], patience: int = 0, busy: tuple[int, ...] = ()) -> list[int]:
    """The looks at which `x` is asked for, its cursor read anew each time; `busy` are looks at
    which it is being made."""
    cursor, asked = None, []
    for look, state in enumerate(states):
        asking = Asking.read(cursor, patience)
        if asking.look({"x": state} if state else {}, {"x"} if look in busy else ()):
            asked.append(look)
        cursor = asking.cursor()
    return asked


def test_it_asks_ever_more_rarely_and_ends() -> None:
    assert looks(["a"] * 200) == [0, 2, 5, 10, 19, 36]
    assert len(looks(["a"] * 200)) == TRIES
    assert looks(["a"] * 4, patience=2) == [2]


def test_changed_inputs_begin_anew_and_what_was_made_is_forgotten() -> None:
    assert looks([*["a"] * 60, *["b"] * 3])[-2:] == [60, 62]
    assert looks(["a", "", "a"]) == [0, 2]


def test_what_is_being_made_waits_no_further() -> None:
    assert looks(["a"] * 6, busy=(1, 2, 3)) == [0, 5]


def test_given_up_is_said() -> None:
    asking = Asking.read(None)
    for _ in range(100):
        assert asking.pending() or asking.given_up() or asking.cursor() == "{}"
        asking.look({"x": "a"}, ())
    assert asking.given_up() == ["x"]
    assert not asking.pending()


@pytest.mark.parametrize("cursor", [None, "", "{", "[]", '{"x": 3}', '{"x": {"other": 1}}', "7"])
def test_a_cursor_of_another_version_is_begun_anew(cursor: str | None) -> None:
    assert Asking.read(cursor).look({"x": "a"}, ()) == {"x": 1}
