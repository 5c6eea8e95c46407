"""Training: the mixing buffer, a planted dictionary, seeds, interruption, outliers, faults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mona.errors import RequestError, WorkError
from mona.sae import SparseAutoencoder
from mona.sae_quality import measure
from mona.sae_training import shuffled_batches, train_sae
from mona.spec import SaeTraining

D, FEATURES, PER_TOKEN = 16, 24, 3
LONG = 64 * 250
Samples = Callable[[int], Iterable[torch.Tensor]]


def planted(count: int, seed: int, scale: float = 40.0) -> list[torch.Tensor]:
    """Samples [n_i, D] of sparse non-negative sums of FEATURES unit directions, off centre."""
    directions = torch.nn.functional.normalize(
        torch.randn(FEATURES, D, generator=torch.Generator().manual_seed(0)), dim=1
    )
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        strengths = np.zeros((int(rng.integers(1, 40)), FEATURES))
        for row in strengths:
            row[rng.choice(FEATURES, PER_TOKEN, replace=False)] = rng.uniform(1, 3, PER_TOKEN)
        states = torch.from_numpy(strengths).float() @ directions
        samples.append(scale * (states + torch.linspace(0, 9, D)))
    return samples


def spec_of(**fields: Any) -> SaeTraining:
    plain = {"datasets": ["corpus"], "latents": 48, "k": 4, "tokens": 64 * 60, "batch_tokens": 64}
    return SaeTraining(**{**plain, "learning_rate": 0.01, **fields})


def train(
    samples: Samples, spec: SaeTraining, folder: Path, progress: Callable[[int], None] = id
) -> SparseAutoencoder:
    return train_sae(
        samples, D, spec, checkpoint=folder / "scratch", device="cpu", progress=progress
    )


def always(samples: list[torch.Tensor]) -> Samples:
    return lambda epoch: samples


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The matrices are too small to share, and waiting for a second thread is slow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- the mixing buffer


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), max_size=20),
    batch=st.integers(1, 8),
    extra=st.integers(0, 30),
    seed=st.integers(0, 3),
)
def test_batches_hold_every_token_once_but_a_last_part(
    lengths: list[int], batch: int, extra: int, seed: int
) -> None:
    tokens = torch.arange(sum(lengths), dtype=torch.float32)[:, None]
    samples = tokens.split(lengths) if lengths else []
    batches = list(shuffled_batches(samples, batch, batch + extra, seed))
    assert len(batches) == sum(lengths) // batch
    assert all(b.shape == (batch, 1) for b in batches)
    served = torch.cat(batches).flatten().tolist() if batches else []
    assert len(set(served)) == len(served)
    assert set(served) <= set(range(sum(lengths)))
    again = list(shuffled_batches(samples, batch, batch + extra, seed))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_tokens_are_mixed_across_samples() -> None:
    samples = [torch.full((50, 1), float(i)) for i in range(40)]
    first = next(iter(shuffled_batches(samples, 100, 1000, seed=0)))
    assert len(first.unique()) >= 15  # of the 20 samples the buffer holds
    other = next(iter(shuffled_batches(samples, 100, 1000, seed=1)))
    assert not torch.equal(first, other)


def test_the_buffer_bounds_what_is_drawn() -> None:
    drawn = 0

    def samples() -> Iterator[torch.Tensor]:
        nonlocal drawn
        for _ in range(1000):
            drawn += 1
            yield torch.zeros(10, 1)

    next(iter(shuffled_batches(samples(), 20, 200, seed=0)))
    assert drawn == 20


def test_a_buffer_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no batch"):
        next(shuffled_batches([], 10, 9, seed=0))


# --- training


def test_a_planted_dictionary_is_learned(tmp_path: Path) -> None:
    done: list[int] = []
    sae = train(always(planted(300, seed=1)), spec_of(tokens=LONG), tmp_path, done.append)
    quality = measure(sae, planted(50, seed=2))
    assert quality.fvu < 0.1
    assert quality.l0 <= 4
    assert (sae.d, sae.latents, sae.k, sae.activation) == (D, 48, 4, "topk")
    assert sum(done) == LONG
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_the_states_does_not_matter(scale: float, tmp_path: Path) -> None:
    spec = spec_of()
    plain = train(always(planted(300, seed=1)), spec, tmp_path / "plain")
    scaled = train(always(planted(300, seed=1, scale=40 * scale)), spec, tmp_path / "scaled")
    quality = measure(plain, planted(50, seed=2))
    rescaled = measure(scaled, planted(50, seed=2, scale=40 * scale))
    assert rescaled.fvu == pytest.approx(quality.fvu, abs=0.03)


def test_attention_sinks_do_not_spoil_the_rest(tmp_path: Path) -> None:
    """One token in a hundred has fifteen times the norm, along one direction."""
    samples = planted(300, seed=1)
    sink = torch.zeros(D)
    sink[2] = 15 * float(torch.cat(samples).norm(dim=1).median())
    spoiled = [torch.cat([sample, sink[None]]) if i % 5 == 0 else sample
               for i, sample in enumerate(samples)]  # fmt: skip
    sae = train(always(spoiled), spec_of(tokens=LONG), tmp_path)
    assert measure(sae, planted(50, seed=2)).fvu < 0.2


def test_the_same_inputs_give_the_same_weights(tmp_path: Path) -> None:
    samples = always(planted(100, seed=1))
    first = train(samples, spec_of(tokens=64 * 12), tmp_path / "a")
    again = train(samples, spec_of(tokens=64 * 12), tmp_path / "b")
    other = train(samples, spec_of(tokens=64 * 12, seed=1), tmp_path / "c")
    assert first.digest == again.digest
    assert first.digest != other.digest


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(always(planted(30, seed=1)), spec_of(tokens=64 * 3), tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_very_short_trainings_work(steps: int, tmp_path: Path) -> None:
    sae = train(always(planted(60, seed=1)), spec_of(tokens=64 * steps), tmp_path)
    assert np.isfinite(measure(sae, planted(20, seed=2)).fvu)


def test_a_small_pool_is_passed_repeatedly(tmp_path: Path) -> None:
    epochs: list[int] = []

    def samples(epoch: int) -> list[torch.Tensor]:
        epochs.append(epoch)
        return planted(5, seed=epoch)

    train(samples, spec_of(tokens=64 * 10), tmp_path)
    assert epochs == list(range(len(epochs)))
    assert len(epochs) > 1


def test_half_precision_samples_are_taken(tmp_path: Path) -> None:
    samples = [sample.bfloat16() for sample in planted(60, seed=1)]
    assert train(always(samples), spec_of(tokens=64 * 3), tmp_path).w_enc.dtype == torch.float32


# --- interruption


class Killed(BaseException):
    """Not an Exception, as Ctrl-C is not."""


def dying(samples: list[torch.Tensor], after: int) -> Samples:
    def stream(epoch: int) -> Iterator[torch.Tensor]:
        for i, sample in enumerate(samples):
            if epoch * len(samples) + i == after:
                raise Killed
            yield sample

    return stream


@pytest.mark.parametrize("after", [3, 250, 420])
def test_an_interrupted_training_continues_to_the_same_weights(after: int, tmp_path: Path) -> None:
    samples, spec = planted(200, seed=1), spec_of(tokens=64 * 100)
    expected = train(always(samples), spec, tmp_path / "undisturbed")
    with pytest.raises(Killed):
        train(dying(samples, after), spec, tmp_path)
    done: list[int] = []
    resumed = train(always(samples), spec, tmp_path, done.append)
    assert resumed.digest == expected.digest
    assert sum(done) == spec.tokens
    # The late kills find a checkpoint, whose token passes are reported at once.
    assert (done[0] > 0) == (after > 100)
    assert not (tmp_path / "scratch").exists()


def test_a_kill_while_a_checkpoint_is_written_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.training.sae_trainer import SAETrainer

    samples, spec = planted(200, seed=1), spec_of(tokens=64 * 40)
    expected = train(always(samples), spec, tmp_path / "undisturbed")
    save, calls = SAETrainer.save_trainer_state, []

    def killed(self: Any, checkpoint_path: Path) -> None:
        calls.append(checkpoint_path)
        if len(calls) == 3:
            raise Killed  # weights are written, the optimiser's state is not
        save(self, checkpoint_path)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SAETrainer, "save_trainer_state", killed)
        train(always(samples), spec, tmp_path)
    assert train(always(samples), spec, tmp_path).digest == expected.digest


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    samples, spec = planted(200, seed=1), spec_of(tokens=64 * 40)
    with pytest.raises(Killed):
        train(dying(samples, 190), spec_of(tokens=64 * 60, latents=32), tmp_path)
    assert list((tmp_path / "scratch").glob("step_*"))
    resumed = train(always(samples), spec, tmp_path)
    assert resumed.digest == train(always(samples), spec, tmp_path / "undisturbed").digest


# --- faults


def test_faulty_inputs_are_named(tmp_path: Path) -> None:
    good = planted(20, seed=1)
    with pytest.raises(WorkError, match=r"\[3, 17\], not \[n, 16\]"):
        train(always([*good, torch.zeros(3, D + 1)]), spec_of(), tmp_path)
    with pytest.raises(WorkError, match="epoch 0 has states that are not finite"):
        train(always([*good, torch.full((1, D), float("nan"))]), spec_of(), tmp_path)
    with pytest.raises(WorkError, match="epoch 1 has no tokens"):
        train(lambda epoch: [] if epoch else good, spec_of(), tmp_path)
    with pytest.raises(WorkError, match="do not vary"):
        train(always([torch.ones(200, D)]), spec_of(), tmp_path)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="tokens = 63 is less than batch_tokens"):
        spec_of(tokens=63)
    with pytest.raises(ValidationError, match="k = 49 is above latents = 48"):
        spec_of(k=49)


def test_a_lack_of_sae_lens_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(RequestError, match="the optional group 'sae-lens'"):
        train(always(planted(20, seed=1)), spec_of(), tmp_path)


def test_divergence_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="diverged at learning_rate = 1e"):
        train(always(planted(60, seed=1)), spec_of(learning_rate=1e30), tmp_path)
