"""How much scratch a plan needs: what `--max-memory` bounds.

Counted are the arrays that values pass through, block by block, the strips of tensors whose
elements move, what some initialisations make at once, what merges know of a tensor, and ranges of
what is elsewhere; not Python itself, headers, and the mapped pages of input files.
"""

from __future__ import annotations

from dataclasses import dataclass

from surgeon.base.errors import PlanError
from surgeon.base.units import spoken_size
from surgeon.draft import Tensors
from surgeon.formats.fetched import is_any_fetched, is_fetched
from surgeon.lazy import ByteRange, LazyTensor, bottom_up, walk
from surgeon.output.blocks import COPY_BUFFER, moved_elsewhere
from surgeon.remote.reader import RANGE_BYTES, hold

# What a worker holds of a file that it uploads: parts on their way, or a small file whole.
UPLOADED_BYTES = 64 << 20


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
        needed = _needed(tensor) + moved_elsewhere(tensor) if _is_computed(tensor) else 0
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


def workers_within(
    most_bytes: int, tensors: Tensors, workers: int, *, is_uploaded: bool = False
) -> int:
    """Return how many of the workers a bound leaves room for; raises PlanError where none.

    Of what is elsewhere each worker holds ranges, fewer where there is less room, and of what
    `is_uploaded` parts.
    """
    need = scratch_bytes(tensors)
    sources = _most_sources(tensors)
    # One is read of each, one is on its way, and what arrives is there twice for a moment.
    fewest = (sources + 2) * RANGE_BYTES if sources else 0
    for_each = need.worker_bytes + fewest + (UPLOADED_BYTES if is_uploaded else 0)
    if for_each > most_bytes:
        raise PlanError(
            f"--max-memory {spoken_size(most_bytes)}: the plan needs {spoken_size(for_each)} "
            f"for one worker, most of it for '{need.largest}'"
        )
    count = min(workers, most_bytes // for_each)
    if sources:
        hold((most_bytes // count - for_each + fewest) // RANGE_BYTES - 1)
    return count


def _most_sources(tensors: Tensors) -> int:
    """Return of how many files elsewhere a tensor is made at most."""
    if not is_any_fetched():
        return 0
    return max(len(_sources(tensor)) for tensor in tensors.values())


def _sources(tensor: LazyTensor) -> set[int]:
    return {
        id(piece.file)
        for form in walk(tensor)
        if not form.operands and form.spec.count
        for piece in form.locate(0, form.spec.count)
        if isinstance(piece, ByteRange) and is_fetched(piece.file)
    }
