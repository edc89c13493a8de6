"""Tensors whose runs of elements are each made of a run of another's, such as codes of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from surgeon.base.deferred import np
from surgeon.base.regions import Region
from surgeon.lazy.base import (
    BLOCK,
    NOTHING,
    LazyTensor,
    ScratchBytes,
    TensorSpec,
)
from surgeon.lazy.blockwise import upcast_blocks
from surgeon.lazy.evaluate import ComputedForm
from surgeon.lazy.same import Copied, Sharded
from surgeon.lazy.scratch import Scratch
from surgeon.numeric.dtypes import DTYPES, LARGEST, SPARE, Array, downcast

# Of the source's elements, those of the companions, and the number of the first run: the values.
RecodeKernel = Callable[[Array, Sequence[Array], int], Array]


@dataclass(frozen=True, eq=False)
class Recoded(ComputedForm):
    """Weights made of a quantised format's codes, or codes of weights, a few runs at a time.

    `run` elements are made of `source_run` of the first operand's; its last run may be short. The
    other operands, the companions, are held whole. The kernel gets the first operand upcast to
    `working`, or as it is stored where that is None, and companions always as they are stored. Its
    values are rounded once; where they do not fit into the spec's dtype, `explain` raises.
    """

    spec: TensorSpec
    kernel: RecodeKernel
    operands: tuple[LazyTensor, ...]
    run: int
    source_run: int
    working: np.dtype[Any] | None = None
    explain: Callable[[Array], None] | None = None

    step = BLOCK
    is_exact = True
    is_computed_at_once = False
    is_in_place = False
    about = NOTHING
    initialisers = None

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        return replace(self, operands=operands)

    @property
    def scratch_bytes(self) -> ScratchBytes:
        companions = sum(tensor.spec.size_bytes for tensor in self.operands[1:])
        # Source and values, as float32 and as indices on the way to them.
        held = companions + self._runs_at_once() * (self.run + self.source_run) * 24
        own = DTYPES[self.spec.dtype].storage.itemsize
        return ScratchBytes(held, own * min(self.spec.count, BLOCK), 0)

    def _runs_at_once(self) -> int:
        return max(1, BLOCK // max(self.run, self.source_run))

    def prepare(self, scratch: Scratch) -> None:
        if self.spec.count:
            scratch.known(self, self._strips)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Array:
        strips = scratch.known(self, self._strips)
        size = self._runs_at_once() * self.run
        out = scratch.take(DTYPES[self.spec.dtype].storage, stop - start)
        for number in range(start // size, -(-stop // size)):
            first, last = max(start, number * size), min(stop, (number + 1) * size)
            if strips.number != number:
                strips.number, strips.values = number, self._strip(strips, number, scratch)
            inside = first - number * size
            out[first - start : last - start] = strips.values[inside : inside + last - first]
        return out

    def _strips(self, scratch: Scratch) -> _Strips:
        companions = []
        for tensor in self.operands[1:]:
            with scratch.scope():
                stored = tensor.elements(0, tensor.spec.count, scratch)
                companions.append(stored.copy().reshape(tensor.spec.shape))
        return _Strips(companions, -1, np.empty(0))

    def _strip(self, strips: _Strips, number: int, scratch: Scratch) -> Array:
        """Return the stored elements of a strip: of whole runs, always the same ones."""
        source, runs = self.operands[0], self._runs_at_once()
        first = number * runs * self.source_run
        last = min(first + runs * self.source_run, source.spec.count)
        with scratch.scope(), np.errstate(over="ignore", invalid="ignore"):
            block = (
                source.elements(first, last, scratch)
                if self.working is None
                else upcast_blocks([source], first, last, scratch, self.working)[0]
            )
            values = self.kernel(block, strips.companions, number * runs).reshape(-1)
            if self.explain and not np.all(np.abs(values) <= LARGEST[self.spec.dtype]):
                self.explain(values)
            stored = np.empty(len(values), DTYPES[self.spec.dtype].storage)
            downcast(values, self.spec.dtype, stored, np.empty(SPARE * len(values), np.uint32))
        return stored

    def new_regions(self) -> tuple[Region, ...]:
        return ()


@dataclass
class _Strips:
    """What a worker knows of a tensor: its companions, and the strip that it made last."""

    companions: list[Array]
    number: int
    values: Array


def is_recoded(form: LazyTensor) -> bool:
    """Say whether a form reads codes as the values that they stand for, or writes such codes."""
    return isinstance(form, Recoded)


def moved_from(tensor: LazyTensor) -> object:
    """Return what a tensor shares with all that only moved from it: its place in a file, or it."""
    while isinstance(tensor, Copied | Sharded):
        tensor = tensor.source
    return tensor.byte_origin
