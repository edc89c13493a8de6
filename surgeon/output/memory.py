"""How much scratch a plan needs: what `--max-memory` bounds.

Counted are the arrays that values pass through, block by block, the strips of tensors whose
elements move, what some initialisations make at once, and what merges know of a tensor; not Python
itself, headers, and the mapped pages of input files.
"""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.base.errors import PlanError
from surgeon.base.units import spoken_size
from surgeon.draft import Tensors
from surgeon.lazy import (
    BLOCK,
    Blockwise,
    ByteRange,
    Fresh,
    LazyTensor,
    Product,
    Rearranged,
    Recoded,
    Scaled,
    Strided,
    WholeTensor,
    walk,
)
from surgeon.numeric.dtypes import DTYPES
from surgeon.output.execute import COPY_BUFFER

# Per element of a block. An initialiser: float64 values, the chunk they are drawn in, what of it
# was rejected. An index into a strided view: five int64.
_FRESH, _STRIDED = 4 * 8, 5 * 8
# Values and products as float64, a float32 below them, the index of each factor and the factors.
_SCALED = 4 * 8 + 4
# A kernel's own arrays beside its operands and its result: one for each operand, and these.
_KERNEL_ARRAYS = 2
# What rounding takes per element, as measured with tracemalloc; to float8 in the second place.
_ROUNDING, _ROUNDING_FLOAT8 = 24, 56


@dataclass(frozen=True)
class Need:
    """Bytes that each worker takes, and the tensor that needs the most of them."""

    worker_bytes: int
    largest: str


def scratch_bytes(tensors: Tensors) -> Need:
    """Return what writing planned tensors takes."""
    most, largest = 0, ""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        computed = walk(tensor) if _is_computed(tensor) else ()
        needed = sum(_block_bytes(form) + _at_once_bytes(form) for form in computed)
        if needed > most or not largest:
            most, largest = needed, name
    return Need(COPY_BUFFER + most, largest)


def _is_computed(tensor: LazyTensor) -> bool:
    pieces = tensor.pieces(0, tensor.spec.count) if tensor.spec.count else ()
    return not all(isinstance(piece, ByteRange) for piece in pieces)


def _block_bytes(form: LazyTensor) -> int:
    """Return an upper bound of what one form takes for a block, its operands not counted."""
    step = form.step if isinstance(form, Blockwise) else BLOCK
    count = min(form.spec.count, step)
    own = DTYPES[form.spec.dtype].storage.itemsize
    if isinstance(form, Fresh):
        return count * (own + _FRESH + _rounding_bytes(form))
    if isinstance(form, Scaled):
        return count * (own + _SCALED + _rounding_bytes(form))
    if isinstance(form, Strided):
        return count * (own + _STRIDED)
    if isinstance(form, Blockwise):
        width = form.working.itemsize if form.working else max(4, own)
        arrays = (2 * len(form.operands) + 1 + _KERNEL_ARRAYS) * width
        return count * (own + arrays + _rounding_bytes(form))
    return count * own


def _rounding_bytes(form: LazyTensor) -> int:
    dtype = DTYPES[form.spec.dtype]
    return _ROUNDING_FLOAT8 if (dtype.kind, dtype.bits) == ("float", 8) else _ROUNDING


def _at_once_bytes(form: LazyTensor) -> int:
    match form:
        case WholeTensor() | Rearranged() | Product() | Blockwise() | Recoded():
            return form.held_bytes
        case Fresh(initialiser=initialiser):
            return form.spec.count * sum(initialiser.at_once_bytes)
    return 0


def workers_within(most_bytes: int, tensors: Tensors, workers: int) -> int:
    """Return how many of the workers a bound leaves room for; raises PlanError where none."""
    need = scratch_bytes(tensors)
    if need.worker_bytes > most_bytes:
        raise PlanError(
            f"--max-memory {spoken_size(most_bytes)}: the plan needs "
            f"{spoken_size(need.worker_bytes)} for one worker, most of it for '{need.largest}'"
        )
    return min(workers, most_bytes // need.worker_bytes)
