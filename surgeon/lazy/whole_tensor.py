"""Tensors whose arithmetic needs entire tensors at once: decompositions, interpolation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from surgeon.base.deferred import np
from surgeon.base.regions import Region
from surgeon.lazy.base import (
    BLOCK,
    LazyTensor,
    Request,
    ScratchBytes,
    TensorSpec,
    float64,
    is_without_rounding,
)
from surgeon.lazy.evaluate import ComputedForm, evaluated
from surgeon.lazy.scratch import Scratch
from surgeon.numeric.blas import one_thread
from surgeon.numeric.dtypes import DTYPES, LARGEST, SPARE, Array, downcast, rounding_bytes


@dataclass(frozen=True, eq=False)
class WholeTensor(ComputedForm):
    """Arithmetic on entire tensors, kept until the tensor is written.

    The kernel gets each operand in its own shape, upcast to `working`, and returns the values of
    the spec's shape; `spare_bytes` is what it takes besides them. Operands that are computed too
    are not rounded before, nor is this until it is stored. Where a result does not fit into the
    spec's dtype, `explain` is given the operands, to raise what is wrong with them. A tensor that
    several others take parts of is computed once for all of them where they are written one after
    the other; with `is_kept`, for what is small but dear, once for all in a process. `about` holds
    the parameters that the arithmetic was made with, to be shown.
    """

    spec: TensorSpec
    kernel: Callable[[Sequence[Array]], Array]
    operands: tuple[LazyTensor, ...]
    spare_bytes: int = 0
    working: np.dtype[Any] = field(default_factory=float64)
    explain: Callable[[Sequence[Array]], None] | None = None
    is_kept: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    _kept: list[Array] = field(default_factory=list, init=False, repr=False)

    step = BLOCK
    is_computed_at_once = True
    is_in_place = False
    initialisers = None

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        return replace(self, operands=operands)

    @property
    def is_exact(self) -> bool:
        return is_without_rounding(self.spec.dtype)

    @property
    def scratch_bytes(self) -> ScratchBytes:
        counts = sum(tensor.spec.count for tensor in self.operands) + self.spec.count
        held = counts * self.working.itemsize + self.spare_bytes
        own = DTYPES[self.spec.dtype].storage.itemsize + rounding_bytes(self.spec.dtype)
        return ScratchBytes(held, min(self.spec.count, BLOCK) * own, 0)

    def prepare(self, scratch: Scratch) -> None:
        if self.spec.count:
            self._result(scratch)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Array:
        block = self._result(scratch)[start:stop]
        if working is not None:
            return block if block.dtype == working else block.astype(working)
        storage = DTYPES[self.spec.dtype].storage
        if storage == block.dtype:
            return block
        stored = scratch.take(storage, stop - start)
        with scratch.scope():
            spare = scratch.take(np.uint32, SPARE * (stop - start))
            downcast(block, self.spec.dtype, stored, spare)
        if self.explain and not np.all(np.abs(block) <= LARGEST[self.spec.dtype]):
            self.explain(self._operands(scratch))
        return stored

    @property
    def is_awaited(self) -> bool:
        """Whether its values will be kept, and are not known yet."""
        return self.is_kept and not self._kept

    def kept(self, scratch: Scratch) -> Array:
        """Return all its values, flat."""
        return self._result(scratch)

    def keep(self, values: Array) -> None:
        """Keep what another process computed."""
        self._kept.append(values)

    def _operands(self, scratch: Scratch) -> list[Array]:
        return [read_whole(tensor, scratch, self.working) for tensor in self.operands]

    def _result(self, scratch: Scratch) -> Array:
        if not self.is_kept:
            return scratch.known(self, self._computed)
        if not self._kept:
            self._kept.append(self._computed(scratch))
        return self._kept[0]

    def _computed(self, scratch: Scratch) -> Array:
        values = self._operands(scratch)
        with one_thread(), np.errstate(over="ignore", invalid="ignore"):  # looked at below
            result = self.kernel(values).reshape(-1)
        if self.explain and not np.isfinite(result).all():
            self.explain(values)
        result.flags.writeable = False
        return result

    def new_regions(self) -> tuple[Region, ...]:
        return ()


def read_whole(tensor: LazyTensor, scratch: Scratch, working: np.dtype[Any] | None = None) -> Array:
    """Return all values of a tensor in its shape, upcast to `working` (float64); read-only."""
    working = working or float64()
    values = np.empty(tensor.spec.count, working)
    for start in range(0, tensor.spec.count, BLOCK):
        with scratch.scope():
            stop = min(start + BLOCK, tensor.spec.count)
            values[start:stop] = evaluated(Request(tensor, start, stop, working), scratch)
    values.flags.writeable = False
    return values.reshape(tensor.spec.shape)
