"""Small PNG pictures for materialisations and reports: data in, bytes out.

Belongs here: drawing. What is drawn is computed by its owner (`mona.selection`,
`mona.sae_quality`, `mona.evaluation`, the pool). The same data gives the same bytes. Where the
pool and the chosen share a picture they differ in fill and hatching, not in colour alone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_POOL = {"color": "#c3cbd6", "edgecolor": "#8793a3", "linewidth": 0.6}
_CHOSEN = {"color": "none", "edgecolor": "#b3420a", "linewidth": 1.3, "hatch": "////"}
_BINS = 40
_TOP_SOURCES = 15
_NAME_LENGTH = 34


def score_histogram(edges: np.ndarray, pool_counts: np.ndarray, chosen_counts: np.ndarray) -> bytes:
    """PNG of how many samples have which score: `edges` [bins + 1], counts [bins]."""

    def draw(axes: Any) -> None:
        axes.stairs(pool_counts, edges, fill=True, label=_label("pool", pool_counts), **_POOL)
        axes.stairs(
            chosen_counts, edges, fill=True, label=_label("chosen", chosen_counts), **_CHOSEN
        )
        # The chosen are a small share of the pool: on a linear axis they would vanish.
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=0.7)
        axes.set(title="Scores", xlabel="similarity to the prototype", ylabel="samples (log scale)")
        axes.legend()

    return _png(draw)


def length_histogram(pool: np.ndarray, chosen: np.ndarray | None, unit: str) -> bytes:
    """PNG of sample lengths, [N] in `unit`s; with `chosen`, both as shares of their own total."""
    lengths = np.maximum(pool, 1)
    edges = np.geomspace(lengths.min(), lengths.max() + 1, _BINS + 1) if len(pool) else None

    def draw(axes: Any) -> None:
        axes.set(title="Sample lengths", xlabel=f"length in {unit} (log scale)")
        axes.set_ylabel("share of samples (%)")
        if edges is None:
            _say_empty(axes)
            return
        axes.set_xscale("log")
        shares = _percent(np.histogram(lengths, edges)[0])
        axes.stairs(shares, edges, fill=True, label=f"pool ({len(pool):,})", **_POOL)
        if chosen is not None:
            shares = _percent(np.histogram(np.maximum(chosen, 1), edges)[0])
            axes.stairs(shares, edges, fill=True, label=f"chosen ({len(chosen):,})", **_CHOSEN)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.legend()

    return _png(draw)


def norm_histogram(norms: np.ndarray) -> bytes:
    """PNG of the samples' mean residual-stream norms, [N]."""
    return _histogram(norms, "Residual-stream norms", "mean norm over counted tokens")


def nonzeros_histogram(nonzeros: np.ndarray) -> bytes:
    """PNG of how many latents are active in a sample's code, [N]."""
    return _histogram(nonzeros, "Non-zero latents", "non-zero latents a sample")


def bars(pool: Mapping[str, int], chosen: Mapping[str, int] | None) -> bytes:
    """PNG of the source mix: samples by source in the pool and, where given, in the chosen,
    as shares of their own totals; the largest 15 sources, the others together."""
    mixes = [pool] if chosen is None else [pool, chosen]
    totals = [max(1, sum(mix.values())) for mix in mixes]
    names = sorted(
        set().union(*mixes),
        key=lambda name: (
            -max(mix.get(name, 0) / total for mix, total in zip(mixes, totals, strict=True)),
            name,
        ),
    )
    shown, others = names[:_TOP_SOURCES], names[_TOP_SOURCES:]
    labels = [_shortened(name) for name in shown]
    if others:
        labels.append(f"{len(others):,} other sources")

    def shares(mix: Mapping[str, int], total: int) -> np.ndarray:
        counts = [mix.get(name, 0) for name in shown]
        if others:
            counts.append(sum(mix.get(name, 0) for name in others))
        return 100 * np.array(counts) / total

    def draw(axes: Any) -> None:
        axes.set(title="Sources", xlabel="share of samples (%)")
        if not labels:
            _say_empty(axes)
            return
        places = np.arange(len(labels))
        styles = [("pool", _POOL), ("chosen", _CHOSEN)]
        height = 0.8 / len(mixes)
        for row, (mix, total) in enumerate(zip(mixes, totals, strict=True)):
            name, style = styles[row]
            offset = (row - (len(mixes) - 1) / 2) * height
            label = f"{name} ({sum(mix.values()):,})"
            axes.barh(places + offset, shares(mix, total), height, label=label, **style)
        axes.set_yticks(places, labels)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.figure.legend(loc="outside lower right", ncols=len(mixes))

    return _png(draw, height=1.6 + 0.26 * max(4, len(labels)))


def sae_quality(unexplained: Mapping[int, float]) -> bytes:
    """PNG of the fraction of variance unexplained, by the layer the activations are of."""

    def draw(axes: Any) -> None:
        layers = sorted(unexplained)
        values = [unexplained[layer] for layer in layers]
        drawn = axes.bar([str(layer) for layer in layers], values, width=0.6, **_POOL)
        axes.bar_label(drawn, fmt="%.3f", padding=2)
        axes.margins(y=0.15)
        axes.set_xlim(-0.9, len(layers) - 0.1)
        axes.grid(visible=False, axis="x")
        axes.set(title="Unexplained variance (lower is better)", xlabel="layer (hidden state)")
        axes.set_ylabel("fraction of variance unexplained")

    return _png(draw)


def loss_curve(log: Sequence[Mapping[str, float]]) -> bytes:
    """PNG of the training loss by optimiser step; `log` is a training report's."""

    def draw(axes: Any) -> None:
        axes.set(title="Training loss", xlabel="optimiser step", ylabel="loss (nats a token)")
        if not log:
            _say_empty(axes, "no steps")
            return
        steps = [entry["step"] for entry in log]
        losses = [entry["loss"] for entry in log]
        marker = "o" if len(log) <= _BINS else None
        label = f"last {losses[-1]:,.4g}"
        axes.plot(steps, losses, color="#b3420a", linewidth=1.3, marker=marker, label=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()

    return _png(draw)


def leaderboard(
    rows: Sequence[tuple[str, float, float, float]], metric: str, baseline: str | None = None
) -> bytes:
    """PNG of recipes side by side: (recipe, value, low, high) from the top down, with a line
    through the baseline's value."""

    def draw(axes: Any) -> None:
        axes.set(title="Recipes", xlabel=f"{metric} (with 95 % interval)", ylabel="recipe")
        if not rows:
            _say_empty(axes)
            return
        places = np.arange(len(rows))
        values = np.array([value for _, value, _, _ in rows])
        low = np.array([low for _, _, low, _ in rows])
        high = np.array([high for _, _, _, high in rows])
        # A bootstrap's bounds may lie on one side of a value that is no mean of the draws.
        spans = np.maximum(0, [values - low, high - values])
        axes.errorbar(
            values, places, xerr=spans, fmt="o", color="#b3420a", ecolor="#8793a3", capsize=4
        )
        for place, value in enumerate(values):
            axes.annotate(
                f"{value:.3f}", (value, place), (0, 6), textcoords="offset points", ha="center"
            )
        for recipe, value, _, _ in rows:
            if recipe == baseline:
                axes.axvline(value, color="#222222", linestyle="--", linewidth=0.8)
        axes.set_yticks(places, [_shortened(recipe) for recipe, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.grid(visible=False, axis="y")

    return _png(draw, height=1.6 + 0.4 * max(3, len(rows)))


def as_markdown(png: bytes, alt: str) -> str:
    """The picture as a Markdown image that carries its own bytes."""
    text = alt.replace("[", "(").replace("]", ")")
    return f"![{text}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})"


def _histogram(values: np.ndarray, title: str, xlabel: str) -> bytes:
    def draw(axes: Any) -> None:
        axes.set(title=title, xlabel=xlabel, ylabel="samples")
        if not len(values):
            _say_empty(axes)
            return
        bins: int | np.ndarray = _BINS
        if np.issubdtype(values.dtype, np.integer):
            # Bins that each hold the same number of whole numbers: others show a false comb.
            low, high = int(values.min()), int(values.max())
            width = -(-(high - low + 1) // _BINS)
            bins = np.arange(low, high + width + 1, width) - 0.5
        counts, edges = np.histogram(values.astype(np.float64), bins)
        axes.stairs(counts, edges, fill=True, label=f"samples ({len(values):,})", **_POOL)
        median = float(np.median(values))
        axes.axvline(median, color="#222222", linestyle="--", label=f"median {median:,.4g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.legend()

    return _png(draw)


def _label(name: str, counts: np.ndarray) -> str:
    return f"{name} ({int(counts.sum()):,})"


def _percent(counts: np.ndarray) -> np.ndarray:
    return 100 * counts / max(1, counts.sum())


def _shortened(name: str) -> str:
    """Without its middle where it is long: names of one source differ at their ends."""
    half = _NAME_LENGTH // 2
    return name if len(name) <= _NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"


def _say_empty(axes: Any, text: str = "no samples") -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


# Names are text as they stand: a folder's label may hold dollar signs.
_SETTINGS: Any = {"hatch.linewidth": 0.7, "text.parse_math": False}


def _png(draw: Callable[[Any], None], height: float = 3.4) -> bytes:
    """The bytes of one set of axes, without what varies between two runs."""
    import matplotlib
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    # The style "default" shuts out a user's own matplotlibrc.
    with style.context("default"), matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(6.4, height), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e9ee", linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        canvas.draw()
    # A palette makes the file a third as large; pictures are stored inline in metadata.
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64)
    stream = io.BytesIO()
    picture.save(stream, format="png", optimize=True)
    return stream.getvalue()
