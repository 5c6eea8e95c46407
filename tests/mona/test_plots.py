"""mona.plots: pictures that decode, repeat to the byte, stay small and show what they should."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mona import plots

RNG = np.random.default_rng(0)
SCORES = RNG.beta(3, 20, 5_000)
EDGES = np.linspace(0, 1, 41)
COUNTS = np.histogram(SCORES, EDGES)[0]
CHOSEN = np.histogram(np.sort(SCORES)[-200:], EDGES)[0]
LENGTHS = RNG.lognormal(6, 1, 5_000).astype(np.int64)
POOL_MIX = {f"source_{i}/{'part' * 12}_{i}": 4_000 // (i + 1) for i in range(40)}
CHOSEN_MIX = dict(list(POOL_MIX.items())[5:])
LOG = [{"step": i, "loss": 3 / i**0.5, "learning_rate": 1e-4} for i in range(1, 30)]

PICTURES: dict[str, Callable[[], bytes]] = {
    "scores": lambda: plots.score_histogram(EDGES, COUNTS, CHOSEN),
    "lengths": lambda: plots.length_histogram(LENGTHS, LENGTHS[:200], "characters"),
    "pool lengths": lambda: plots.length_histogram(LENGTHS, None, "tokens"),
    "norms": lambda: plots.norm_histogram(SCORES.astype(np.float32) + 700),
    "non-zeros": lambda: plots.nonzeros_histogram(LENGTHS % 300),
    "sources": lambda: plots.bars(POOL_MIX, CHOSEN_MIX),
    "pool sources": lambda: plots.bars({"one": 3, "two": 1}, None),
    "quality": lambda: plots.sae_quality({-2: 0.31, -1: 0.4}),
    "one layer": lambda: plots.sae_quality({28: 0.0}),
    "loss": lambda: plots.loss_curve(LOG),
    "no steps": lambda: plots.loss_curve([]),
    "recipes": lambda: plots.leaderboard(
        [("mona", 0.41, 0.36, 0.46), ("random", 0.33, 0.29, 0.38)], "acc", "random"
    ),
    "no recipes": lambda: plots.leaderboard([], "acc"),
    "no lengths": lambda: plots.length_histogram(LENGTHS[:0], None, "tokens"),
    "no non-zeros": lambda: plots.nonzeros_histogram(np.zeros(0, np.int64)),
    "no sources": lambda: plots.bars({}, {}),
    "nothing chosen": lambda: plots.score_histogram(EDGES, COUNTS, CHOSEN * 0),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_decodes_repeats_and_is_small(name: str) -> None:
    png = PICTURES[name]()
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    assert image.width == 640
    assert 250 <= image.height <= 640
    assert len(png) < 60_000
    assert set(image.info) <= {"transparency", "gamma"}  # no software, no time
    assert len(image.convert("RGB").getcolors(1 << 20)) > 3
    assert PICTURES[name]() == png


def test_bytes_do_not_depend_on_the_process_or_on_the_users_own_style() -> None:
    script = (
        "import matplotlib; matplotlib.rcParams.update({'font.size': 25, 'axes.facecolor': 'red'});"
        "import sys; from mona.plots import sae_quality;"
        "sys.stdout.buffer.write(sae_quality({-2: 0.31, -1: 0.4}))"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert other == PICTURES["quality"]()


def drawn(monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes]) -> Any:
    """The matplotlib axes a picture was drawn on."""
    kept = []
    original = plots._png

    def keep(draw: Callable[[Any], None], **options: Any) -> bytes:
        def draw_and_keep(axes: Any) -> None:
            draw(axes)
            kept.append(axes)

        return original(draw_and_keep, **options)

    monkeypatch.setattr(plots, "_png", keep)
    make()
    return kept[0]


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_says_what_it_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(monkeypatch, PICTURES[name])
    assert axes.get_title()
    assert axes.get_xlabel()
    assert axes.get_ylabel() or "sources" in name


@pytest.mark.parametrize("name", ["scores", "lengths", "sources"])
def test_chosen_and_pool_differ_without_colour(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(monkeypatch, PICTURES[name])
    hatches = {patch.get_hatch() for patch in axes.patches}
    assert hatches == {None, "////"}


def test_the_scores_drawn_are_the_scores_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, chosen = drawn(monkeypatch, PICTURES["scores"]).patches
    assert pool.get_data().values.tolist() == COUNTS.tolist()
    assert chosen.get_data().values.tolist() == CHOSEN.tolist()
    assert pool.get_label() == "pool (5,000)"
    assert chosen.get_label() == "chosen (200)"


def test_lengths_are_shares_of_each_total(monkeypatch: pytest.MonkeyPatch) -> None:
    for patch in drawn(monkeypatch, PICTURES["lengths"]).patches:
        assert patch.get_data().values.sum() == pytest.approx(100)


def test_the_15_largest_sources_are_shown_and_the_rest_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    axes = drawn(monkeypatch, PICTURES["sources"])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 16
    assert labels[-1] == "25 other sources"
    assert labels[0].startswith("source_0/")
    assert labels[0].endswith("_0")
    pool, chosen = axes.containers
    assert sum(bar.get_width() for bar in pool) == pytest.approx(100)
    assert sum(bar.get_width() for bar in chosen) == pytest.approx(100)
    assert pool[0].get_width() == pytest.approx(100 * 4_000 / sum(POOL_MIX.values()))
    assert chosen[0].get_width() == 0


def test_whole_numbers_get_bins_that_hold_equally_many(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.repeat(np.arange(200, 320), 3)
    data = drawn(monkeypatch, lambda: plots.nonzeros_histogram(values)).patches[0].get_data()
    assert set(data.values) == {9}
    assert data.values.sum() == 360


def test_markdown_carries_the_picture() -> None:
    png = PICTURES["one layer"]()
    text = plots.as_markdown(png, "unexplained [variance]")
    assert text.startswith("![unexplained (variance)](data:image/png;base64,")
    assert base64.b64decode(text.split("base64,")[1].removesuffix(")")) == png


def test_the_loss_drawn_is_the_loss_given(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = drawn(monkeypatch, PICTURES["loss"])
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [entry["step"] for entry in LOG]
    assert line.get_ydata().tolist() == [entry["loss"] for entry in LOG]


@pytest.mark.parametrize("label", ["web/a$b", "web/$x^2$", "web/$\\frac{", "web/$\\nosuch$", "$$"])
def test_a_label_with_dollar_signs_is_drawn_as_it_stands(label: str) -> None:
    assert plots.bars({label: 3, "plain": 2}, {label: 1}).startswith(b"\x89PNG")
