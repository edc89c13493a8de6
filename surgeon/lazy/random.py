"""Random values that do not depend on who asks for them, and statistics of a tensor's rows.

Values are drawn in chunks of a fixed size, each from a generator of its own: any block, in any
worker and in any order, sees the same ones.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterator
from math import prod
from typing import TypeAlias

import numpy as np

from surgeon.lazy import BLOCK, LazyTensor, Scratch, Stream, upcast_blocks
from surgeon.numeric import compiled, drawing
from surgeon.numeric.dtypes import Array

CHUNK = 65536
# The uint32 that Philox makes of one number of its counter.
_STEP = 8

# In quotes, since NumPy imports its random part when that is first named.
Sample: TypeAlias = "Callable[[np.random.Generator, int], Array]"
Proposal: TypeAlias = "Callable[[np.random.Generator, int], tuple[Array, Array]]"


def drawn(
    stream: Stream,
    count: int,
    start: int,
    stop: int,
    sample: Sample,
    dtype: type[np.generic] = np.float64,
) -> Array:
    """Return elements start to stop of the `count` that a stream gives, as `dtype`."""
    return _in_chunks(
        count, start, stop, lambda chunk, size: sample(stream.generator(chunk), size), dtype
    )


def _in_chunks(
    count: int,
    start: int,
    stop: int,
    draw: Callable[[int, int], Array],
    dtype: type[np.generic],
) -> Array:
    """Return elements start to stop of what is drawn of each chunk, by its number and its size."""
    values = np.empty(stop - start, dtype)
    for chunk in range(start // CHUNK, -(-stop // CHUNK)):
        first = chunk * CHUNK
        # A chunk is always drawn as a whole, since rejection makes later draws depend on earlier.
        block = draw(chunk, min(CHUNK, count - first))
        low, high = max(start, first), min(stop, first + CHUNK)
        values[low - start : high - start] = block[low - first : high - first]
    return values


def drawn_words(stream: Stream, start: int, stop: int) -> Array:
    """Return random uint32, one for each of the elements start to stop of a stream.

    They are those that each element's number in float32 would be made of. Only these are drawn.
    """
    begin, end = start // _STEP * _STEP, -(-stop // _STEP) * _STEP
    words = np.empty(end - begin, np.uint32)
    for chunk in range(begin // CHUNK, -(-end // CHUNK)):
        first = chunk * CHUNK
        low, high = max(begin, first), min(end, first + CHUNK)
        _draw_words(stream, chunk, (low - first) // _STEP, words[low - begin : high - begin])
    return words[start - begin : stop - begin]


def _draw_words(stream: Stream, chunk: int, skipped: int, out: Array) -> None:
    """Fill whole steps with uint32 of one chunk, after so many steps of its counter."""
    if compiled.loops() and sys.byteorder == "little":
        drawing.philox(stream.key, chunk, skipped, out)
        return
    generator = stream.generator(chunk).bit_generator
    assert isinstance(generator, np.random.Philox)
    generator.advance(skipped)
    out[:] = bits(generator, len(out), np.uint32)


def truths(stream: Stream, chance: float, count: int, start: int, stop: int) -> Array:
    """Return truths start to stop of the `count` that a stream gives, each with this chance.

    Eight random bits make each, and a float64 where they do not decide.
    """
    whole, rest = divmod(chance * 256, 1)
    level = np.uint8(whole)

    def sample(generator: np.random.Generator, size: int) -> Array:
        drawn_bits = bits(generator.bit_generator, size, np.uint8)
        kept: Array = drawn_bits < level
        undecided = np.flatnonzero(drawn_bits == level)
        kept[undecided] = generator.random(len(undecided)) < rest
        return kept

    if not compiled.loops():
        return drawn(stream, count, start, stop, sample, np.bool_)
    key, spare = stream.key, np.empty(CHUNK, bool)

    def draw(chunk: int, size: int) -> Array:
        return drawing.bernoulli(key, chunk, int(whole), rest, spare[:size])

    return _in_chunks(count, start, stop, draw, np.bool_)


def bits(generator: np.random.BitGenerator, count: int, dtype: type[np.unsignedinteger]) -> Array:
    """Draw unsigned integers of all their values: those of Generator.integers, far sooner."""
    size_bytes = count * np.dtype(dtype).itemsize
    raw = generator.random_raw(-(-size_bytes // 8)).astype("<u8", copy=False)
    return raw.view(np.uint8)[:size_bytes].view(np.dtype(dtype).newbyteorder("<"))


def standard_normal(generator: np.random.Generator, count: int) -> Array:
    """Draw from the normal distribution of mean 0 and deviation 1."""
    return generator.standard_normal(count)


def truncated_normal(low: float, high: float) -> Sample:
    """Return a sampler of the standard normal within low to high.

    Rejection from a normal, an exponential or a uniform proposal, whichever wastes little: Robert
    1995, Simulation of truncated normal variables, https://arxiv.org/abs/0907.4010.
    """
    if high < 0:
        mirrored = truncated_normal(-high, -low)
        return lambda generator, count: -mirrored(generator, count)
    proposal = _proposal(low, high)

    def sample(generator: np.random.Generator, count: int) -> Array:
        values, pending = np.empty(count), np.arange(count)
        while pending.size:
            tried, accepted = proposal(generator, pending.size)
            values[pending[accepted]] = tried[accepted]
            pending = pending[~accepted]
        return values

    return sample


def _proposal(low: float, high: float) -> Proposal:
    """Return a sampler of (candidates, accepted)."""

    def from_normal(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        tried = generator.standard_normal(count)
        return tried, (low <= tried) & (tried <= high)

    def from_exponential(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        tried = low + generator.exponential(1 / low, count)
        density = np.exp(-0.5 * (tried - low) ** 2)
        return tried, (generator.random(count) < density) & (tried <= high)

    def from_uniform(generator: np.random.Generator, count: int) -> tuple[Array, Array]:
        tried = generator.uniform(low, high, count)
        density = np.exp(0.5 * (max(low, 0.0) ** 2 - tried**2))
        return tried, generator.random(count) < density

    mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    if mass > 0.3:  # the limit that torch.nn.init has
        return from_normal
    return from_exponential if low > 0 and high - low > 1 / low else from_uniform


def _rows_of(tensor: LazyTensor, dim: int) -> tuple[int, int, int]:
    """Return a tensor's shape with what is before and after `dim` flattened."""
    shape = tensor.spec.shape
    return prod(shape[:dim]), shape[dim], prod(shape[dim + 1 :])


def _boxes(
    tensor: LazyTensor, dim: int, scratch: Scratch
) -> Iterator[tuple[slice, slice, slice, Array]]:
    """Yield a tensor as boxes of bounded size, upcast: where along (before, dim, after), values."""
    before, rows, after = _rows_of(tensor, dim)
    # Each box is one run of elements: it has several entries of a dimension only where it has all
    # of those that follow.
    after_step = min(max(after, 1), BLOCK)
    rows_step = min(max(rows, 1), max(1, BLOCK // max(after, 1)))
    before_step = max(1, BLOCK // max(rows * after, 1))
    for i, j, k in itertools.product(
        range(0, before, before_step), range(0, rows, rows_step), range(0, after, after_step)
    ):
        box = (
            slice(i, min(i + before_step, before)),
            slice(j, min(j + rows_step, rows)),
            slice(k, min(k + after_step, after)),
        )
        start = (i * rows + j) * after + k
        sizes = tuple(side.stop - side.start for side in box)
        with scratch.scope():
            (block,) = upcast_blocks([tensor], start, start + prod(sizes), scratch)
            yield (*box, block.reshape(sizes))


def mean_of_rows(tensor: LazyTensor, dim: int, scratch: Scratch) -> Array:
    """Return the mean over `dim`, float64 (before, 1, after)."""
    before, rows, after = _rows_of(tensor, dim)
    total = np.zeros((before, 1, after))
    for i, _, k, block in _boxes(tensor, dim, scratch):
        total[i, :, k] += np.add.reduce(block, axis=1, dtype=np.float64, keepdims=True)
    return total / rows


def rows_like(tensor: LazyTensor, dim: int, count: int, stream: Stream, scratch: Scratch) -> Array:
    """Return normal rows with the mean and the covariance of a tensor's own.

    They are float64 (before, count, after). With X the n old rows and Z standard normal
    (count, n), mean + (n - 1)^-1/2 Z (X - mean) has normal rows whose mean is that of X and whose
    covariance is (n - 1)^-1 (X - mean)' E[z z'] (X - mean). Since E[z z'] is the identity, that is
    the sample covariance itself; no d x d matrix is formed, and none has to be positive definite.
    With n = 1 nothing is known of the covariance, and every row is the mean.
    """
    _, rows, _ = _rows_of(tensor, dim)
    mean = mean_of_rows(tensor, dim, scratch)
    made = np.repeat(mean, count, axis=1)
    if rows < 2:
        return made
    drawn_for, weights = slice(0), np.empty((0, 0))
    for i, j, k, block in _boxes(tensor, dim, scratch):
        if j != drawn_for:
            span = (j.start * count, j.stop * count)
            flat = drawn(stream, rows * count, *span, standard_normal)
            drawn_for, weights = j, flat.reshape(-1, count).T / math.sqrt(rows - 1)
        made[i, :, k] += weights @ (block - mean[i, :, k])
    return made
