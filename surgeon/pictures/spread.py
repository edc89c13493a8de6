"""Layers under each other: how large each is, and how its values are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgeon.base.tables import plural
from surgeon.base.units import spoken_size
from surgeon.numeric import histograms
from surgeon.numeric.dtypes import Array
from surgeon.pictures import figures
from surgeon.pictures.markup import shortened
from surgeon.pictures.palette import SERIES

if TYPE_CHECKING:
    from surgeon.pictures.figures import Axes, Figure

_ROW, _MOST_HEIGHT, _MOST_LABELS, _LONGEST = 0.23, 18.0, 90, 44
# Of the height of a line, what a histogram takes on either side of its middle.
_HALF = 0.44
# Octaves that hold less than this of every layer's values, and all below them, count as zero.
_NEGLIGIBLE = 0.002
_MOST_OCTAVES = 24


@dataclass(frozen=True)
class Layer:
    """A layer: bytes by dtype, and the counts of its values in the bins of `histograms`."""

    name: str
    sizes: Mapping[str, int]
    counts: Array


@dataclass(frozen=True)
class Spread:
    """The layers of a checkpoint, in their order."""

    name: str
    layers: Sequence[Layer]

    def plot(self, path: Path | None = None) -> Figure:
        """Return it as a figure of matplotlib, saved too where there is a path."""
        figure = _drawn(self)
        if path is not None:
            figures.save(figure, path)
        return figure

    def shares(self) -> tuple[Array, Array]:
        """Return, per layer, the share of its values in each octave, and the edges of those.

        From the largest negative values over those that are zero or nearly so, in one bin in the
        middle, to the largest positive ones. Edges are magnitudes, from small to large.
        """
        counts = np.array([layer.counts for layer in self.layers])
        octaves = counts.reshape(len(self.layers), 2, -1, 4).sum(axis=3)[:, :, :-1]
        first, last = histograms.occupied(counts.sum(axis=0))
        first, last = first // 4, -(-last // 4)
        total = np.maximum(octaves.sum(axis=(1, 2)), 1)
        below = np.cumsum(octaves.sum(axis=1), axis=1) - octaves[:, :, 0].sum(axis=1)[:, None]
        shown = (below / total[:, None] > _NEGLIGIBLE).any(axis=0)
        first = max(first, last - _MOST_OCTAVES, int(np.argmax(shown)) if shown.any() else 0)
        positive, negative = octaves[:, 0, first:last], octaves[:, 1, first:last]
        middle = octaves[:, :, :first].sum(axis=(1, 2))[:, None]
        rows = np.concatenate([negative[:, ::-1], middle, positive], axis=1)
        return rows / total[:, None], histograms.edges(4 * first, 4 * last)[::4]


@figures.figured
def _drawn(spread: Spread) -> Figure:
    layers = spread.layers
    tall = min(max(_ROW * len(layers), 0.6), _MOST_HEIGHT)
    labels = 0.075 * max((min(len(layer.name), _LONGEST) for layer in layers), default=1)
    figure = figures.new(labels + 8.2, tall + 1.6)
    total = sum(size for layer in layers for size in layer.sizes.values())
    about = f"{plural(len(layers), 'layer')}, {spoken_size(total)}"
    figures.titled(figure, "Sizes and values by layer", [figures.tail(spread.name, 80), about])
    sizes, values = figure.subplots(1, 2, sharey=True, width_ratios=[1, 2.6])
    _sizes(sizes, layers)
    _values(values, spread)
    step = figures.every(len(layers), _MOST_LABELS)
    names = [shortened(layer.name, _LONGEST) for layer in layers]
    sizes.set_yticks(range(0, len(layers), step), names[::step])
    sizes.set_ylim(len(layers) - 0.5, -0.5)
    return figure


def _sizes(axes: Axes, layers: Sequence[Layer]) -> None:
    dtypes = sorted({dtype for layer in layers for dtype in layer.sizes})
    left = np.zeros(len(layers))
    for index, dtype in enumerate(dtypes):
        sizes = np.array([layer.sizes.get(dtype, 0) for layer in layers])
        axes.barh(range(len(layers)), sizes, 0.72, left, color=SERIES[index % len(SERIES)],
                  label=dtype)  # fmt: skip
        left += sizes
    axes.set_title("size")
    axes.xaxis.set_major_formatter(lambda size, _: spoken_size(max(int(size), 0)))
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(dtypes) > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def _values(axes: Axes, spread: Spread) -> None:
    """Draw a histogram for each layer, on its own line and as high as that."""
    shares, edges = spread.shares()
    half = len(edges) - 1
    # The one in the middle is as wide as an octave.
    places = np.arange(-half, half + 2) - 0.5
    highest = np.maximum(shares.max(axis=1, initial=0), 1e-12)
    for row, (layer, found) in enumerate(zip(spread.layers, shares, strict=True)):
        base = row + _HALF
        tops = base - 2 * _HALF * found / highest[row]
        axes.stairs(tops, places, baseline=base, fill=True, color=SERIES[0], linewidth=0,
                    gid=f"layer {row}")  # fmt: skip
        axes.axhline(base, color="#cccccc", linewidth=0.5, zorder=0)
        if count := histograms.nonfinite(layer.counts):
            axes.text(half + 0.7, row, f"{count:,} nan or inf", va="center", fontsize=7,
                      color=SERIES[5])  # fmt: skip
    axes.set_xlim(places[0], places[-1])
    at, labels = _ticks(edges)
    axes.set_xticks(at, labels)
    axes.set_title("values per octave; each line scaled to its own peak")
    axes.tick_params(axis="y", length=0)


def _ticks(edges: Array) -> tuple[list[float], list[str]]:
    """Return where powers of ten are, and what they are called, on both sides of zero."""
    if len(edges) < 2:
        return [0.0], ["0"]
    octaves = np.log2(edges)
    low, high = octaves[0] * np.log10(2), octaves[-1] * np.log10(2)
    powers = np.arange(np.ceil(low), np.floor(high) + 1)
    powers = powers[::-1][:: figures.every(len(powers), 4)][::-1]
    at = [0.5 + power / np.log10(2) - octaves[0] for power in powers]
    labels = [f"{10.0**power:g}" for power in powers]
    # Where there is room for it beside its neighbours.
    zero = [(0.0, "0")] if not at or at[0] > 1.5 else []
    both = [(-x, f"-{label}") for x, label in zip(at, labels, strict=True)][::-1]
    both += [*zero, *zip(at, labels, strict=True)]
    return [x for x, _ in both], [label for _, label in both]
