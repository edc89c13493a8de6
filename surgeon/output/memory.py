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
from surgeon.lazy import ByteRange, LazyTensor, bottom_up
from surgeon.output.blocks import COPY_BUFFER


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
        needed = _needed(tensor) if _is_computed(tensor) else 0
        if needed > most or not largest:
            most, largest = needed, name
    return Need(COPY_BUFFER + most, largest)


def _is_computed(tensor: LazyTensor) -> bool:
    pieces = tensor.pieces(0, tensor.spec.count) if tensor.spec.count else ()
    return not all(isinstance(piece, ByteRange) for piece in pieces)


def _needed(tensor: LazyTensor) -> int:
    """Return what is held of everything below, and the most that is taken for a block."""
    held = 0
    blocks: dict[int, int] = {}
    for form in bottom_up(tensor):
        own = form.scratch_bytes
        held += own.held
        below = max((blocks[id(operand)] for operand in form.operands), default=0)
        blocks[id(form)] = max(own.block, own.under + below)
    return held + blocks[id(tensor)]


def workers_within(most_bytes: int, tensors: Tensors, workers: int) -> int:
    """Return how many of the workers a bound leaves room for; raises PlanError where none."""
    need = scratch_bytes(tensors)
    if need.worker_bytes > most_bytes:
        raise PlanError(
            f"--max-memory {spoken_size(most_bytes)}: the plan needs "
            f"{spoken_size(need.worker_bytes)} for one worker, most of it for '{need.largest}'"
        )
    return min(workers, most_bytes // need.worker_bytes)
