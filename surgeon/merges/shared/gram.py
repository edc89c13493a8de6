"""Inner products of a tensor's operands, and combinations of them: what spherical merges share.

A tensor is one vector, or each of its rows or columns is. One pass over the data gives all inner
products; what a merge does with directions and lengths is then done with these few numbers, and a
second pass adds the operands up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from surgeon.lazy import Blocks, CompiledForm, Kernel, Operands, StoredBlocks
from surgeon.merges.shared.operands import Arithmetic
from surgeon.numeric import compiled
from surgeon.numeric.compiled import Block, Change, Ending
from surgeon.numeric.dtypes import Array
from surgeon.numeric.sums import sums
from surgeon.numeric.weighing import Weighed, Weights, weighed

Granularity = Literal["tensor", "row", "column"]

# Beyond this cosine the arc is so flat that sin θ loses its digits and a straight line serves.
_PARALLEL = 0.9995
# Shares of equal operands that should add up to 1 do so to a few last bits.
_ADDS_UP = 1e-9


@dataclass(frozen=True)
class Vectors:
    """Which elements of a tensor are one vector: all, those of a row, or those of a column.

    A row is an index of dimension 0, a column one of dimension 1. Tensors without them (of rank 0
    or 1, of one row) are one vector.
    """

    granularity: Granularity = "tensor"
    columns: int = 1
    run: int = 1

    @classmethod
    def of(cls, granularity: Granularity, shape: Sequence[int]) -> Vectors:
        """Return the vectors of a tensor of this shape."""
        whole = len(shape) < 2 or not prod(shape) or (granularity == "row" and shape[0] == 1)
        if granularity == "tensor" or whole:
            return cls()
        return cls(granularity, shape[1], prod(shape[1:]))

    def view(self, block: Array) -> Array:
        """Return a block of whole rows with one dimension along which the vectors lie."""
        match self.granularity:
            case "tensor":
                return block.reshape(1, -1)
            case "row":
                return block.reshape(-1, self.run)
        return block.reshape(-1, self.columns, self.run // self.columns)

    def inner(self, a: Array, b: Array) -> Array:
        """Return the inner products of two blocks, of each vector or of its part that is here."""
        a, b = self.view(a), self.view(b)
        if self.granularity == "column":
            return np.asarray(np.einsum("ijk,ijk->j", a, b))
        return sums(np.multiply(a, b))

    def spread(self, numbers: Array, start: int, count: int) -> Array:
        """Return one number per vector so that it meets the view of a block's elements."""
        match self.granularity:
            case "tensor":
                return numbers
            case "row":
                return numbers[start // self.run : (start + count) // self.run, None]
        return numbers[:, None]


def gram(operands: Operands, vectors: Vectors, *, relative: bool = False) -> Array:
    """Return the inner products of all operands with one another: (vectors, points, points).

    With `relative` the points are what the other operands add to the first. Sums are float64, in
    the order of the blocks.
    """
    parts: list[Array] = []
    for part in _parts(operands, vectors, relative):
        if parts and vectors.granularity != "row":
            parts[0] += part
        else:
            parts.append(part)
    points_count = len(operands.tensors) - relative
    return np.concatenate(parts) if parts else np.zeros((1, points_count, points_count))


def _parts(operands: Operands, vectors: Vectors, relative: bool) -> Iterator[Array]:
    """Yield the inner products of each block's points."""
    if operands.are_compiled and vectors.granularity != "column":
        for stored in operands.stored_blocks():
            count = len(stored[0].elements) // vectors.run if vectors.granularity == "row" else 1
            yield compiled.products(stored, count, relative=relative)
        return
    for blocks in operands.blocks(np.dtype(np.float64)):
        points: list[Array] = list(blocks)
        with np.errstate(over="ignore", invalid="ignore"):
            if relative:
                first, *points = points
                points = [np.subtract(point, first) for point in points]
            yield _products(points, vectors)


def _products(points: Sequence[Array], vectors: Vectors) -> Array:
    rows = [[vectors.inner(a, b) for b in points[: i + 1]] for i, a in enumerate(points)]
    count = len(points)
    found = np.empty((len(rows[0][0]), count, count))
    for i, row in enumerate(rows):
        for j, products in enumerate(row):
            found[:, i, j] = found[:, j, i] = products
    return found


@dataclass(frozen=True)
class Shares:
    """How much of each point goes into the result: (vectors, points).

    `alike` says of each vector whether all points are the same, or as good as, and the shares add
    up to 1.
    """

    factors: Array
    alike: Array


def shares_of(
    vectors: Vectors, factors: Callable[[Array], Array], *, relative: bool = False
) -> Callable[[Operands], Shares]:
    """Return the statistics that `combination` takes, made by a function of inner products."""

    def statistics(operands: Operands) -> Shares:
        products = gram(operands, vectors, relative=relative)
        with np.errstate(all="ignore"):  # what is not finite here is not in the result either
            found = factors(products)
            add_up = np.abs(found.sum(axis=1) - 1) < _ADDS_UP
        return Shares(found, add_up & (products == products[:, :1, :1]).all(axis=(1, 2)))

    return statistics


def combination(vectors: Vectors, *, relative: bool = False) -> Kernel:
    """Return the kernel that adds up the operands, each times its share.

    With `relative`, it adds what they add to the first operand to that.
    """

    def combine(blocks: Blocks, statistics: Shares, out: Array) -> Array:
        def spread(numbers: Array) -> Array:
            return vectors.spread(numbers, blocks.start, out.size)

        factors = [spread(column) for column in statistics.factors.T]
        views = [vectors.view(block) for block in blocks]
        if relative:
            _add_differences(views, factors, vectors.view(out))
            return out
        if not statistics.alike.all():
            _add(views, factors, vectors.view(out))
        if statistics.alike.any():
            # Shares add up to 1 here, but for their last bit: equal operands must stay as they are.
            same = np.empty_like(out)
            _add_differences(views, factors[1:], vectors.view(same))
            np.copyto(vectors.view(out), vectors.view(same), where=spread(statistics.alike))
        return out

    return combine


def combined(vectors: Vectors, *, relative: bool = False) -> CompiledForm:
    """Return the compiled form of `combination`."""
    if vectors.granularity != "tensor":
        return _combined_by_vector(vectors, relative)

    def combine(blocks: StoredBlocks, statistics: Shares, dtype: str, out: Array) -> bool:
        factors = [float(factor) for factor in statistics.factors[0]]
        if not relative and not statistics.alike[0]:
            return compiled.linear(blocks, factors, dtype, out, keep_zeros=True)
        changes = [Change(weight=factor) for factor in (factors if relative else factors[1:])]
        return compiled.summed(blocks, changes, Ending(from_zero=True), dtype, out)

    return combine


def _combined_by_vector(vectors: Vectors, relative: bool) -> CompiledForm:
    """Return the same of rows or columns: shares for each row, or for each place in a row."""

    def combine(blocks: StoredBlocks, statistics: Shares, dtype: str, out: Array) -> bool:
        rows, first = len(out) // vectors.run, blocks.start // vectors.run
        factors, alike = statistics.factors, statistics.alike
        if vectors.granularity == "row":
            factors, alike = factors[first : first + rows], alike[first : first + rows, None]
            steps = (1, 0)
        else:
            inner = vectors.run // vectors.columns
            factors, alike = np.repeat(factors, inner, axis=0), np.repeat(alike, inner)
            steps = (0, 1)
        numbers = [Block(np.ascontiguousarray(column), "F64") for column in factors.T]
        shares = [Weights(block, *steps) for block in (numbers[:1] * relative + numbers)]

        def write(what: Weighed, into: Array) -> bool:
            return weighed(blocks, shares, what, dtype, into, vectors=rows)[0]

        if relative or alike.all():
            return write(Weighed.CHANGES, out)
        fits = write(Weighed.SUM, out)
        if alike.any():
            fits &= write(Weighed.CHANGES, same := np.empty_like(out))
            np.copyto(out.reshape(rows, -1), same.reshape(rows, -1), where=alike)
        return fits

    return combine


def _add(views: Sequence[Array], factors: Sequence[Array], out: Array) -> None:
    np.multiply(views[0], factors[0], out=out)
    spare = np.empty_like(out)
    for view, factor in zip(views[1:], factors[1:], strict=True):
        np.multiply(view, factor, out=spare)
        out += spare


def _add_differences(views: Sequence[Array], factors: Sequence[Array], out: Array) -> None:
    """Add the other operands' differences to the first, each times its factor."""
    # Subtracted, not added: -0 less what is nothing stays -0.
    out[...] = 0
    spare = np.empty_like(out)
    for view, factor in zip(views[1:], factors, strict=True):
        np.subtract(views[0], view, out=spare)
        spare *= factor
        out += spare
    np.subtract(views[0], out, out=out)


def norms_of(products: Array) -> Array:
    """Return the points' norms: (vectors, points)."""
    return np.asarray(np.sqrt(np.diagonal(products, axis1=1, axis2=2)))


def cosines_of(products: Array, norms: Array) -> Array:
    """Return the cosines between the points; NaN where one is zero."""
    cosines: Any = products / norms[:, :, None] / norms[:, None, :]
    return np.asarray(np.clip(cosines, -1.0, 1.0))


def by_inner_products(
    vectors: Vectors, factors: Callable[[Array], Array], *, relative: bool = False
) -> Arithmetic:
    """Return the combination of operands whose shares are a function of their inner products."""
    return Arithmetic(
        combination(vectors, relative=relative),
        shares_of(vectors, factors, relative=relative),
        run=vectors.run,
        compiled=combined(vectors, relative=relative),
    )


def along_arc(t: float) -> Callable[[Array], Array]:
    """Return the shares of two points in what lies at `t` on the arc from the first to the second.

    Of unnormalised points; on the straight line where they are parallel, or where one is zero.
    """

    def factors(products: Array) -> Array:
        norms = norms_of(products)
        cosines = cosines_of(products, norms)[:, 0, 1]
        straight = (np.abs(cosines) > _PARALLEL) | (norms == 0).any(axis=1)
        angles = np.arccos(np.where(straight, 0.0, cosines))
        turned = np.stack([np.sin((1 - t) * angles), np.sin(t * angles)], axis=1)
        turned /= np.sin(angles)[:, None]
        return np.where(straight[:, None], [1 - t, t], turned)

    return factors
