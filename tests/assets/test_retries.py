"""Steps that are run again, and steps that are not."""

from collections.abc import Callable, Iterator

import dagster as dg
import pytest

from assets import retries
from assets.retries import FOREGROUND_TAG, retried
from mona.errors import MonaError, PassingError, RequestError, TakenError, WorkError


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_SECONDS", 0.0)


class Failing:
    """Raises `error` the first `times` times it is called."""

    def __init__(self, error: MonaError, times: int) -> None:
        self.error, self.times, self.calls = error, times, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error


def _returning(failing: Failing) -> dg.AssetsDefinition:
    @dg.asset
    @retried
    def plain() -> None:
        failing()

    return plain


def _yielding(failing: Failing) -> dg.AssetsDefinition:
    @dg.multi_asset(specs=[dg.AssetSpec("stream")], pool="gpu")
    @retried
    def stream(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        assert context.selected_asset_keys
        failing()
        yield dg.MaterializeResult(asset_key="stream")

    return stream


@pytest.mark.parametrize("build", [_returning, _yielding])
def test_what_may_pass_is_tried_four_times(
    build: Callable[[Failing], dg.AssetsDefinition], capfd: pytest.CaptureFixture[str]
) -> None:
    failing = Failing(PassingError("hub x: silent"), 3)
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize([build(failing)], instance=instance).success
    assert failing.calls == 4
    assert capfd.readouterr().err.splitlines().count("hub x: silent; trying again in 0 s") == 3
    failing = Failing(PassingError("silent"), 4)
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(PassingError, match="silent"):
        dg.materialize([build(failing)], instance=instance)
    assert failing.calls == 4


@pytest.mark.parametrize("build", [_returning, _yielding])
@pytest.mark.parametrize("error", [WorkError("no"), RequestError("no")])
def test_any_other_failure_is_final(
    build: Callable[[Failing], dg.AssetsDefinition], error: MonaError
) -> None:
    failing = Failing(error, 1)
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(type(error)):
        dg.materialize([build(failing)], instance=instance)
    assert failing.calls == 1


@pytest.mark.parametrize("build", [_returning, _yielding])
def test_a_taken_lock_is_waited_for_longer_with_an_end(
    build: Callable[[Failing], dg.AssetsDefinition],
) -> None:
    failing = Failing(TakenError("taken"), 9)
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize([build(failing)], instance=instance).success
    assert failing.calls == 10
    failing = Failing(TakenError("taken"), 10)
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(TakenError):
        dg.materialize([build(failing)], instance=instance)
    assert failing.calls == 10


def test_a_taken_lock_is_final_where_the_command_itself_waits() -> None:
    failing = Failing(TakenError("taken"), 1)
    tags = {FOREGROUND_TAG: "1"}
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(TakenError):
        dg.materialize([_returning(failing)], instance=instance, tags=tags)
    assert failing.calls == 1
