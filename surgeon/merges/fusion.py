"""Take from a model what matters most of its changes."""

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from surgeon.lazy import Blocks, Operands
from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.numeric.dtypes import Array
from surgeon.numeric.quantiles import held_bytes, quantiles


@merge(
    example={"models": ["other"]},
    paper="Arcee Fusion, https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-"
    "support-multi-gpu-acceleration",
    models=1,
)
def fusion(*, at: TensorContext) -> Arithmetic:
    """Take a model's values where they matter, the base model's elsewhere.

    Importance I = |x-b| · KL(softmax(x) ‖ softmax(b)), the softmax over the last dimension; x where
    I ≥ median + 1.5 (third quartile - first quartile) of I over the whole tensor, else b. The
    quantiles are exact, linearly interpolated as by numpy.quantile. What is kept meanwhile is one
    number per row of the last dimension; the operands are read three to five times.

    mergekit 0.1.5 adds 1e-8 to each probability, takes quantiles without interpolation, and from a
    random million of elements where there are more.
    """
    row = (at.shape[-1] if at.shape else 1) or 1
    count = prod(at.shape)

    def threshold(operands: Operands) -> tuple[Array, float]:
        with np.errstate(all="ignore"):  # operands that are not finite are found by the kernel
            parts = [
                _divergence(model.reshape(-1, row), state.reshape(-1, row))
                for state, model in operands.blocks(np.dtype(np.float64))
            ]
            divergences = np.nan_to_num(np.concatenate(parts)) if parts else np.empty(0)

            def importances() -> Iterator[Array]:
                for blocks in operands.blocks(np.dtype(np.float64)):
                    yield np.nan_to_num(_importance(blocks, divergences, blocks.start, row))

            first, middle, third = (
                quantiles(importances, count, (0.25, 0.5, 0.75)) if count else (0.0, 0.0, 0.0)
            )
        return divergences, middle + 1.5 * (third - first)

    def combine(blocks: Blocks, statistics: tuple[Array, float], out: Array) -> Array:
        divergences, least = statistics
        matters = _importance(blocks, divergences, blocks.start, row) >= least
        np.copyto(out, blocks[0])
        np.copyto(out, blocks[1], where=matters)
        return out

    # The divergences as parts, as one, and without NaN.
    held = 24 * (count // row) + held_bytes(count, 3)
    return Arithmetic(combine, threshold, run=row, held_bytes=held, hides_operands=True)


def _divergence(model: Array, state: Array) -> Array:
    """Return KL(softmax(model) ‖ softmax(state)) of each row."""
    logs, others = _log_softmax(model), _log_softmax(state)
    np.subtract(logs, others, out=others)
    # Σ p (r - 1 + exp(-r)) with r = log p - log q is Σ p r, since p and q both add up to 1; no term
    # is negative, so that nothing cancels where the rows are nearly the same.
    np.exp(logs, out=logs)
    terms = np.expm1(-others)
    terms += others
    terms *= logs
    return np.asarray(np.maximum(np.add.reduce(terms, axis=1), 0.0))


def _log_softmax(rows: Array) -> Array:
    shifted: Array = rows - rows.max(axis=1, keepdims=True)
    shifted -= np.log(np.add.reduce(np.exp(shifted), axis=1, keepdims=True))
    return shifted


def _importance(blocks: Sequence[Array], divergences: Array, start: int, row: int) -> Array:
    state, model = (block.reshape(-1, row) for block in blocks)
    found: Array = np.abs(model - state)
    first = start // row
    found *= divergences[first : first + len(found), None]
    return found.reshape(-1)
