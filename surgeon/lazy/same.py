"""Tensors that have another's values, under an identity of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from surgeon.base.deferred import np
from surgeon.base.regions import Region, whole
from surgeon.lazy.base import (
    BLOCK,
    NOTHING,
    Evaluation,
    LazyTensor,
    Part,
    Request,
    ScratchBytes,
    TensorSpec,
)
from surgeon.lazy.evaluate import Form
from surgeon.lazy.scratch import Scratch
from surgeon.numeric.dtypes import Array


@dataclass(frozen=True, eq=False)
class _Same(Form):
    """Known at once, as of all moves, is what it says of its source."""

    source: LazyTensor

    step = BLOCK
    is_computed_at_once = False
    is_move = False
    is_in_place = False
    about = NOTHING

    def __post_init__(self) -> None:
        _ = self.spec, self.is_exact

    @cached_property
    def spec(self) -> TensorSpec:
        return self.source.spec

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        return (self.source,)

    @cached_property
    def is_exact(self) -> bool:
        return self.source.is_exact

    @property
    def scratch_bytes(self) -> ScratchBytes:
        return ScratchBytes(0, 0, 0)

    def locate(self, start: int, stop: int) -> Iterator[Part]:
        yield Part(self.source, start, stop)

    def evaluate(
        self, start: int, stop: int, scratch: Scratch, working: np.dtype[Any] | None
    ) -> Evaluation:
        block: Array = yield Request(self.source, start, stop, working)
        return block


@dataclass(frozen=True, eq=False)
class Sharded(_Same):
    """A tensor that lies in several parts in the input, and is one for all that a recipe says."""

    initialisers = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.byte_origin

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        return Sharded(*operands)

    @cached_property
    def byte_origin(self) -> tuple[object, ...]:
        return self.source.byte_origin

    def new_regions(self) -> tuple[Region, ...]:
        return ()


@dataclass(frozen=True, eq=False)
class Copied(_Same):
    """The values of another tensor, created by the recipe."""

    initialisers = ()

    def rebuilt(self, operands: tuple[LazyTensor, ...]) -> LazyTensor:
        return Copied(*operands)

    @property
    def byte_origin(self) -> tuple[object, ...]:
        return (id(self),)

    def new_regions(self) -> tuple[Region, ...]:
        return (whole(self.spec.shape),)
