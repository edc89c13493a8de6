"""Elements on which models differ most, weighted by how much each model changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated

import numpy as np

from surgeon.lazy import Blocks, Operands, StoredBlocks
from surgeon.merges.shared import Arithmetic, TensorContext, Varying, merge
from surgeon.merges.shared.election import Election, divisor_table, election
from surgeon.merges.shared.moments import root_mean_squares
from surgeon.merges.shared.selection import Cut, cuts, held_bytes, share
from surgeon.numeric import compiled
from surgeon.numeric.compiled import Change
from surgeon.numeric.dtypes import Array, upcast


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
            ((cut,),) = cuts(operands, [_variance], [[wanted]])
            selected = Cut(cut.least, cut.end if cut.least else 0)
        roots = root_mean_squares(operands, lambda blocks: _changes(blocks, selected))
        shares = _shares(roots)
        elect = election(at, shares, normalize=True, shares=True)
        return _Known(selected, elect, shares, divisor_table(shares, normalize=True))

    def combine(blocks: Blocks, statistics: _Known, out: Array) -> Array:
        statistics.elect(_changes(blocks, statistics.selected), out)
        return np.add(blocks[0], out, out=out)

    def compiled_form(blocks: StoredBlocks, statistics: _Known, dtype: str, out: Array) -> bool:
        mask = None
        if statistics.selected:
            raised = (upcast(b.elements, b.dtype, np.empty(len(out), np.float64)) for b in blocks)
            values = Blocks(raised, blocks.start)
            mask = statistics.selected.kept(_variance(values), blocks.start)
        changes = [Change(mask, share=share) for share in statistics.shares]
        assert statistics.divisors is not None
        return compiled.elected(blocks, changes, statistics.divisors, 1.0, dtype, out, shares=True)[
            0
        ]

    few = divisor_table([1.0] * len(at.streams), normalize=True) is not None
    return Arithmetic(
        combine, find, held_bytes=held_bytes(prod(at.shape), 1),
        compiled=compiled_form if few else None,
    )  # fmt: skip


def _changes(blocks: Blocks, selected: Cut | None) -> list[Array]:
    changes = [np.subtract(block, blocks[0]) for block in blocks[1:]]
    if selected:
        mask = selected.kept(_variance(blocks), blocks.start)
        for change in changes:
            change *= mask  # a product, so that NaN and Inf stay visible
    return changes


def _variance(blocks: Blocks) -> Array:
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
