"""Elements on which models differ most, weighted by how much each model changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated

import numpy as np

from surgeon.lazy import Blocks, Operands, StoredBlocks
from surgeon.merges.shared import Arithmetic, TensorContext, Varying, merge
from surgeon.merges.shared.election import Election, divisor_table, election
from surgeon.merges.shared.moments import changes, root_mean_squares
from surgeon.merges.shared.selection import Cut, cuts, held_bytes, share
from surgeon.numeric import compiled
from surgeon.numeric.compiled import Block, Change
from surgeon.numeric.dtypes import Array
from surgeon.numeric.weighing import variance


@dataclass(frozen=True)
class _Known:
    selected: Cut | None
    elect: Election
    shares: Sequence[float]
    divisors: Array | None


@merge(
    example={"models": ["other"]},
    paper="Wan et al. 2024, FuseChat, https://arxiv.org/abs/2408.07990",
)
def sce(
    *,
    at: TensorContext,
    select_topk: Annotated[
        float, Varying(above=0, maximum=1), "the fraction of elements that is kept"
    ] = 1.0,
) -> Arithmetic:
    """Select by variance, calculate weights, erase minorities.

    With the base model b and dᵢ = xᵢ - b, per tensor: select the max(1, int(select_topk · n))
    elements with the largest variance of dᵢ over the models, of equal ones the first, and never
    those on which all agree; calculate qᵢ = mean(dᵢ²) of what is selected; erase, per element, the
    dᵢ whose sign is not that of Σ dᵢ, zero being positive; b + Σ qᵢ dᵢ / Σ qᵢ over those left.
    Section 3.3 of the paper. mergekit takes the fraction of the elements that differ, and compares
    sums with an absolute 1e-6, so that small changes get equal weights or vanish.
    """

    def find(operands: Operands) -> _Known:
        selected = None
        if select_topk < 1:
            wanted = share(select_topk, operands.tensors[0].spec.count)
            ((cut,),) = cuts(operands, [_Variance()], [[wanted]])
            selected = Cut(cut.least, cut.end if cut.least else 0)
        if selected:
            roots = root_mean_squares(
                operands,
                lambda blocks: _changes(blocks, selected),
                lambda blocks: _kept(blocks, selected),
            )
        else:
            roots = root_mean_squares(operands, changes)
        shares = _shares(roots)
        elect = election(at, shares, normalize=True, shares=True)
        return _Known(selected, elect, shares, divisor_table(shares, normalize=True))

    def combine(blocks: Blocks, statistics: _Known, out: Array) -> Array:
        statistics.elect(_changes(blocks, statistics.selected), out)
        return np.add(blocks[0], out, out=out)

    def compiled_form(blocks: StoredBlocks, statistics: _Known, dtype: str, out: Array) -> bool:
        mask = _kept(blocks, statistics.selected) if statistics.selected else None
        kept = [Change(mask, share=share) for share in statistics.shares]
        assert statistics.divisors is not None
        return compiled.elected(blocks, kept, statistics.divisors, 1.0, dtype, out, shares=True)[0]

    few = divisor_table([1.0] * len(at.streams), normalize=True) is not None
    return Arithmetic(
        combine, find, held_bytes=held_bytes(prod(at.shape), 1),
        compiled=compiled_form if few else None,
    )  # fmt: skip


def _changes(blocks: Blocks, selected: Cut | None) -> list[Array]:
    found = changes(blocks)
    if selected:
        mask = selected.kept(variance_of(blocks), blocks.start)
        for change in found:
            change *= mask  # a product, so that NaN and Inf stay visible
    return found


def _kept(blocks: StoredBlocks, selected: Cut) -> Array:
    return selected.kept(variance(blocks), blocks.start)


class _Variance:
    """The measure that is the variance."""

    def __call__(self, blocks: Blocks) -> Array:
        return variance_of(blocks)

    def stored(self, blocks: StoredBlocks) -> tuple[Block | None, Block]:
        return None, Block(variance(blocks), "F64")


def variance_of(blocks: Blocks) -> Array:
    """Return the variance over models, times their number: zero where all agree (Welford 1962)."""
    mean = np.subtract(blocks[1], blocks[0])
    total = np.zeros_like(mean)
    for count, block in enumerate(blocks[2:], 2):
        change = np.subtract(block, blocks[0])
        before = change - mean
        mean += before / count
        change -= mean
        total += np.multiply(before, change, out=before)
    return total


def _shares(roots: Sequence[float]) -> list[float]:
    """Return squares, in proportion; what is not zero stays so."""
    if not (largest := max(roots)):
        return [1 / len(roots)] * len(roots)
    squares = [max((root / largest) ** 2, 1e-300) for root in roots]
    return [square / sum(squares) for square in squares]
