"""Blocks of tensors from blocks of their operands, without recursion.

A recipe may do thousands of things to one tensor. A form therefore does not call its operands: it
yields what it needs of them, and what asked for it waits in a list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from surgeon.base.deferred import np
from surgeon.lazy.base import (
    Computed,
    Evaluation,
    LazyTensor,
    Part,
    Piece,
    Request,
    bottom_up,
    float64,
)
from surgeon.lazy.scratch import Scratch
from surgeon.numeric.dtypes import DTYPES, Array, upcast, working_dtype


class Form:
    """What all forms share: they are asked here, and answer with `evaluate` and `locate`."""

    __slots__ = ()

    def pieces(self: LazyTensor, start: int, stop: int) -> Iterator[Piece]:
        pending = [self.locate(start, stop)]
        while pending:
            for piece in pending[-1]:
                if isinstance(piece, Part):
                    pending.append(piece.tensor.locate(piece.start, piece.stop))
                    break
                yield piece
            else:
                pending.pop()

    def prepare(self, scratch: Scratch) -> None:
        """Find out nothing: most forms need to know nothing of the whole tensor."""

    def elements(self: LazyTensor, start: int, stop: int, scratch: Scratch) -> Array:
        return evaluated(Request(self, start, stop), scratch)

    def values(
        self: LazyTensor,
        start: int,
        stop: int,
        scratch: Scratch,
        working: np.dtype[Any] | None = None,
    ) -> Array:
        return evaluated(Request(self, start, stop, working or float64()), scratch)


class ComputedForm(Form):
    """What is computed from its operands when it is asked for: no file has its bytes."""

    is_move = False

    @property
    def byte_origin(self) -> tuple[object, ...]:
        return (id(self),)

    def locate(self: LazyTensor, start: int, stop: int) -> Iterator[Piece]:
        yield Computed(self, start, stop)


def evaluated(request: Request, scratch: Scratch) -> Array:
    """Return the elements that a request asks for, valid until the enclosing scope ends."""
    if request.tensor.operands and not scratch.is_prepared(request.tensor):
        for form in bottom_up(request.tensor):
            form.prepare(scratch)
    waiting: list[Evaluation] = []
    found = _begun(request, scratch)
    try:
        while True:
            answer: Array | None = None
            if isinstance(found, np.ndarray):
                if not waiting:
                    return found
                answer = found
            else:
                waiting.append(found)
            try:
                asked = waiting[-1].send(answer)
            except StopIteration as done:
                waiting.pop()
                found = done.value
            else:
                found = _begun(asked, scratch)
    except BaseException:
        while waiting:
            waiting.pop().close()
        raise


def _begun(request: Request, scratch: Scratch) -> Array | Evaluation:
    tensor, start, stop, working = request
    if working is None or not tensor.is_exact:
        return tensor.evaluate(start, stop, scratch, working)
    if DTYPES[tensor.spec.dtype].storage == working:
        return tensor.evaluate(start, stop, scratch, None)
    return _upcast(request, scratch)


def _upcast(request: Request, scratch: Scratch) -> Evaluation:
    """Make values of what is stored."""
    tensor, start, stop, working = request
    assert working is not None
    block = scratch.take(working, stop - start)
    with scratch.scope():
        stored = yield Request(tensor, start, stop)
        dtype = tensor.spec.dtype
        if dtype == "BF16" and working == float64():
            narrow = scratch.take(np.float32, stop - start)
            np.copyto(block, upcast(stored, dtype, narrow))
        else:
            upcast(stored, dtype, block)
    return block


def common_working(tensors: Sequence[LazyTensor]) -> np.dtype[Any]:
    """Return the dtype to combine tensors in: float64 where one of them is not rounded yet."""
    if all(tensor.is_exact for tensor in tensors):
        return working_dtype(*(tensor.spec.dtype for tensor in tensors))
    return float64()
