"""A checkpoint as a mapping from names to tensors that are read when asked: `surgeon.open`."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from surgeon.base.errors import UsageError
from surgeon.draft import ties
from surgeon.formats import Checkpoint, open_checkpoint
from surgeon.lazy import LazyTensor, Scratch, TensorSpec
from surgeon.library.arrays import as_numpy, as_torch, read
from surgeon.numeric.dtypes import DTYPES, Array

if TYPE_CHECKING:
    import torch
    from numpy.typing import DTypeLike


def open(path: str | os.PathLike[str]) -> OpenedCheckpoint:
    """Open whatever surgeon reads; of its tensors nothing is read before they are asked for.

    Use it in a `with`. Raises SurgeonError where it is no checkpoint.
    """
    return OpenedCheckpoint(open_checkpoint(os.fspath(path)))


class Tensor:
    """A tensor of an open checkpoint, or rows of one; `numpy` and `torch` read it."""

    def __init__(
        self, name: str, tensor: LazyTensor, start: int, shape: tuple[int, ...],
        require_open: Callable[[], None],
    ) -> None:  # fmt: skip
        self.name = name
        self.shape = shape
        self._tensor = tensor
        self._start = start
        self._require_open = require_open

    @property
    def dtype(self) -> str:
        """The name that safetensors has for it, such as BF16."""
        return self._tensor.spec.dtype

    @property
    def size_bytes(self) -> int:
        return self._spec.size_bytes

    def numpy(self) -> Array:
        """Read it; BF16 and FP8, which NumPy lacks, become the same values in float32."""
        return as_numpy(self._read(), self._spec, repr(self.name))

    def torch(self) -> torch.Tensor:
        """Read it, in its own dtype."""
        return as_torch(self._read(), self._spec, repr(self.name))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        """Let NumPy's functions take it, as `numpy` reads it."""
        return np.asarray(self.numpy(), dtype)

    def __getitem__(self, index: SupportsIndex | slice) -> Tensor:
        """Return a row, or rows, that are not read yet: `tensor[3]`, `tensor[2:5]`."""
        if not self.shape:
            raise IndexError(f"'{self.name}' is a single number and has no rows")
        row = math.prod(self.shape[1:])
        if isinstance(index, slice):
            first, last, step = index.indices(self.shape[0])
            if step != 1:
                raise UsageError(f"'{self.name}': rows in steps of {step}; read it, then take them")
            shape = (max(last - first, 0), *self.shape[1:])
        elif isinstance(index, tuple):
            raise UsageError(
                f"'{self.name}': only rows can be taken before it is read: "
                "tensor[2:5].numpy()[:, 1:3]"
            )
        else:
            first = operator.index(index)
            if not -self.shape[0] <= first < self.shape[0]:
                raise IndexError(f"'{self.name}' has {self.shape[0]} rows, and no row {first}")
            first, shape = first % self.shape[0], self.shape[1:]
        start = self._start + first * row
        return Tensor(self.name, self._tensor, start, shape, self._require_open)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"'{self.name}' is a single number and has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{self.name}: {self._spec}>"

    @property
    def _spec(self) -> TensorSpec:
        return TensorSpec(self.dtype, self.shape)

    def _read(self) -> Array:
        self._require_open()
        if DTYPES[self.dtype].bits < 8:
            raise UsageError(f"'{self.name}': is {self.dtype}, which neither NumPy nor torch holds")
        stop = self._start + self._spec.count
        return read(self._tensor, self._start, stop, Scratch())


class OpenedCheckpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, and what its headers say besides.

    `ties` are the names that share a tensor with another, which they lead to; `notes` say what was
    taken of a file that holds more.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.metadata = dict(checkpoint.metadata)
        self.ties = ties(checkpoint.tensors)
        self.notes = checkpoint.notes
        self.header_sha256 = checkpoint.header_sha256
        self.size_bytes = checkpoint.size_bytes
        self._checkpoint = checkpoint
        self._is_open = True

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._checkpoint.tensors[name]
        return Tensor(name, tensor, 0, tensor.spec.shape, self._require_open)

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.tensors)

    def __len__(self) -> int:
        return len(self._checkpoint.tensors)

    def __enter__(self) -> OpenedCheckpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its files; tensors that were read stay."""
        if self._is_open:
            self._is_open = False
            self._checkpoint.close()

    def __repr__(self) -> str:
        return f"<{self.path}: {len(self)} tensors>"

    def _require_open(self) -> None:
        if not self._is_open:
            raise UsageError(f"{self.path}: is closed; read its tensors inside of the 'with'")
