"""Resampling of grids, defined as torch.nn.functional.interpolate defines it with `size`.

It is separable: along each dimension every new position is a weighted sum of a few old ones, its
taps. Weights are float64. Sums run over taps in order, so that results are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from surgeon.numeric.dtypes import Array

Mode = Literal["nearest", "nearest-exact", "linear", "bilinear", "bicubic", "geometric"]
SMOOTH = ("linear", "bilinear", "bicubic")

# Of the cubic convolution kernel (Keys 1981): what torch takes, and what it takes with antialias,
# which is PIL's.
_CUBIC, _CUBIC_ANTIALIAS = -0.75, -0.5
# Of the factor by which steps between offsets grow: BEiT's and timm's limits, and how near it is
# found.
_SLOWEST, _FASTEST, _NEAR = 1.01, 1.5, 1e-6


@dataclass(frozen=True)
class Taps:
    """For each new position of a dimension, the old ones that it is made of, and their weights."""

    index: Array
    weight: Array


def taps(
    mode: Mode, source: int, target: int, *, align_corners: bool = False, antialias: bool = False
) -> Taps:
    """Return the taps of a dimension that goes from `source` to `target` positions."""
    position = np.arange(target)
    if mode == "geometric":
        return _geometric(source, target)
    if mode not in SMOOTH:
        return _nearest(mode, source, target)
    if align_corners:
        scale = (source - 1) / (target - 1) if target > 1 else 0.0
    else:
        scale = source / target
    if antialias:
        return _antialiased(mode, scale, source, target)
    coordinate = position * scale if align_corners else (position + 0.5) * scale - 0.5
    if mode != "bicubic":
        coordinate = np.maximum(coordinate, 0)
    first = np.minimum(np.floor(coordinate).astype(np.int64), source - 1)
    part = np.clip(coordinate - first, 0, 1)
    if mode != "bicubic":
        index = np.stack([first, np.minimum(first + 1, source - 1)], 1)
        return Taps(index, np.stack([1 - part, part], 1))
    offset = np.arange(-1, 3)
    weight = _cubic(part[:, None] - offset, _CUBIC)
    return Taps(np.clip(first[:, None] + offset, 0, source - 1), weight)


def _geometric(source: int, target: int) -> Taps:
    """Return two taps each, linear between offsets that lie farther apart the farther out they are.

    Their steps grow by a factor from the middle on, for which the outermost offsets meet; what lies
    beyond is the outermost. A side of a size that stays is left alone.
    """
    if source == target:
        return Taps(np.arange(source)[:, None], np.ones((source, 1)))
    half = source // 2
    slow, fast = _SLOWEST, _FASTEST
    factor = slow
    while fast - slow > _NEAR:
        factor = (slow + fast) / 2
        if (1 - factor**half) / (1 - factor) > target // 2:
            fast = factor
        else:
            slow = factor
    steps = np.cumsum(factor ** np.arange(half))
    places = np.concatenate([-steps[::-1], [0.0], steps])
    wanted = np.clip(np.arange(target) - target // 2, places[0], places[-1])
    right = np.clip(np.searchsorted(places, wanted), 1, source - 1)
    part = (wanted - places[right - 1]) / (places[right] - places[right - 1])
    return Taps(np.stack([right - 1, right], 1), np.stack([1 - part, part], 1))


def _nearest(mode: Mode, source: int, target: int) -> Taps:
    """Return one tap each, found in float32 as torch does: it decides where two are as near."""
    middle = np.float32(0.5 if mode == "nearest-exact" else 0)
    scale = np.float32(source) / np.float32(target)
    coordinate = (np.arange(target, dtype=np.float32) + middle) * scale
    index = np.minimum(np.floor(coordinate).astype(np.int64), source - 1)
    return Taps(index[:, None], np.ones((target, 1)))


def _antialiased(mode: Mode, scale: float, source: int, target: int) -> Taps:
    """Return taps whose kernel is as wide as a new position is, where that is wider than an old."""
    kernel: Callable[[Array], Array] = _triangle
    reach = 1.0
    if mode == "bicubic":
        kernel, reach = (lambda x: _cubic(x, _CUBIC_ANTIALIAS)), 2.0
    width = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum(np.trunc(centre - reach * width + 0.5), 0).astype(np.int64)
    last = np.minimum(np.trunc(centre + reach * width + 0.5), source).astype(np.int64)
    index = first[:, None] + np.arange(max(1, int((last - first).max())))
    inside = index < last[:, None]
    weight = np.where(inside, kernel((index - centre[:, None] + 0.5) / width), 0.0)
    weight /= weight.sum(1, keepdims=True)
    return Taps(np.minimum(index, source - 1), weight)


def _triangle(x: Array) -> Array:
    values: Array = np.maximum(1 - np.abs(x), 0)
    return values


def _cubic(x: Array, a: float) -> Array:
    """Return the cubic convolution kernel: 1 at 0, 0 at the other integers and beyond 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    values: Array = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return values


def resampled(values: Array, axis: int, along: Taps) -> Array:
    """Return values with the positions along an axis made of their taps."""
    shape = [1] * values.ndim
    shape[axis] = -1
    total = np.zeros(1)
    for index, weight in zip(along.index.T, along.weight.T, strict=True):
        total = total + np.take(values, index, axis) * weight.reshape(shape)
    return total
