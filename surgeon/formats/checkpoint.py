"""An opened checkpoint, and what the readers of every format share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeGuard

from surgeon.base.errors import CheckpointError
from surgeon.formats.files import InputFile
from surgeon.lazy import ByteSource, Form, LazyTensor, TensorSpec
from surgeon.numeric.dtypes import DTYPES

# What torch calls the index of a distributed checkpoint, which is a folder.
DISTRIBUTED = ".metadata"
# One byte of pickle can make a container of 64 bytes; 100 000 tensors need 12 MB.
LONGEST_PICKLE = 256_000_000
# NumPy 1 has no arrays of more dimensions.
MOST_DIMENSIONS = 32
# A file that is wrong throughout should not fill the screen.
_MOST_PROBLEMS = 20


def is_tensor(value: object) -> TypeGuard[LazyTensor]:
    """Say whether what a torch file holds is a tensor, among whatever else there may be."""
    return isinstance(value, Form)


class Record(NamedTuple):
    """A run of bytes whose CRC-32 the file states; the executor verifies those it used."""

    file: ByteSource
    offset: int
    size_bytes: int
    crc32: int


@dataclass(eq=False, slots=True)
class Opaque:
    """What a torch file holds besides tensors and plain values; none of its code is run.

    `problem` says why a tensor of the file, or an array, cannot be used; it is empty for objects
    that hold no weights, such as an argparse.Namespace. `state` are the attributes of a
    torch.nn.Module, and `items` what an object of a class that extends dict holds.
    """

    what: str
    problem: str = ""
    state: dict[str, object] | None = None
    items: dict[object, object] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, none of them read yet, and what else its headers say.

    Names of one tied tensor share one LazyTensor. `header_sha256` is over the safetensors header,
    over data.pkl, or over the header hashes of a folder's weight files in order. `shards` maps
    names to weight files where there are several; `contents` is all that a torch file holds;
    `safetensors` are the files whose tensors have the names that those have there. `left_behind`
    are the names, in `folder`, of weights that were not read: other formats, strays, other runs.
    Nothing may be read after `close`.
    """

    path: Path
    tensors: dict[str, LazyTensor]
    header_sha256: str
    size_bytes: int
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    weight_files: tuple[Path, ...] = ()
    folder: Path | None = None
    shards: dict[str, str] = field(default_factory=dict)
    contents: Contents | None = None
    safetensors: tuple[InputFile, ...] = ()
    left_behind: tuple[str, ...] = ()
    closers: tuple[Callable[[], None], ...] = ()

    def close(self) -> None:
        for closer in self.closers:
            closer()


@dataclass(frozen=True)
class Contents:
    """Everything that a torch file holds: plain containers, scalars, LazyTensors and Opaques.

    `origins` are the records of the storages that the tensors lie in, where the file states them.
    A distributed checkpoint is a folder of several files. `notes` are for the user.
    """

    path: Path
    value: object
    header_sha256: str
    size_bytes: int
    origins: Mapping[LazyTensor, Record]
    close: Callable[[], None]
    weight_files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def is_optimizer(value: Mapping[object, object]) -> bool:
    """Say whether a dict is what an optimizer's state_dict() returned."""
    return "state" in value and "param_groups" in value


def at_most(problems: Sequence[str], place: object) -> CheckpointError:
    """Return one error of all problems, or of the first ones and a count of the others."""
    shown = problems[:_MOST_PROBLEMS]
    if left := len(problems) - len(shown):
        shown = [*shown, f"{place}: and {left} more problems"]
    return CheckpointError(*shown)


def plain(value: object) -> str:
    """Return a scalar as it would be written; of anything else, which may nest, the type."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return f"{value!r:.200}"
    return type(value).__name__


def plain_key(value: object) -> object:
    """Return a key that is cheap to hash: shared tuples in tuples take exponential time."""
    if type(value) is frozenset or (
        type(value) is tuple and any(type(item) in (tuple, frozenset) for item in value)
    ):
        raise ValueError("found a tuple of tuples as a key")
    hash(value)
    return value


def spec_of(dtype: str, shape: Sequence[object]) -> TensorSpec:
    """Return the spec that a header states; raises ValueError with what is wrong with it."""
    try:
        return _spec(dtype, *shape)
    except TypeError:  # a list among the sizes
        return _spec.__wrapped__(dtype, *shape)


# Typed, or else 1 would pass for True and 1.0. A model has few shapes.
@lru_cache(maxsize=1024, typed=True)
def _spec(dtype: str, *shape: object) -> TensorSpec:
    if dtype not in DTYPES:
        raise ValueError(f"found dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"found {len(shape)} dimensions, expected at most {MOST_DIMENSIONS}")
    product = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise ValueError(f"found {plain(size)} in its shape, expected sizes of 0 or more")
        product *= size or 1
    if product >= 1 << 60:
        raise ValueError(f"found shape {shape}, expected a product that fits in 64 bits")
    return TensorSpec(dtype, shape)  # type: ignore[arg-type]  # checked above
