"""The part of a tensor that has to be made, and the ways of making it; see values.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.places import Places
from surgeon.base.schema import Schema, of_parameters
from surgeon.lazy import Fresh, LazyTensor, Scratch, Selected, Stream, TensorSpec
from surgeon.lazy.random import Sample, drawn
from surgeon.numeric.dtypes import DTYPES, SPARE, Array, downcast, upcast

Make = Callable[[int, int, Stream, Scratch], Array]


@dataclass(frozen=True)
class NewPart:
    """The part of a tensor that has to be made: all that an initialisation may look at.

    `spec` is the whole tensor as it will be. `old` is what there is of it, None where nothing is;
    along `dim`, `places` says where what is missing comes, by default behind it. `weight` is the
    final weight of the module that the tensor is in.
    """

    leaf: str
    spec: TensorSpec
    stream: Stream
    weight: TensorSpec | None
    old: LazyTensor | None = None
    dim: int = 0
    places: Places | None = None

    @property
    def old_size(self) -> int:
        return self.old.spec.shape[self.dim] if self.old else 0

    @property
    def missing(self) -> TensorSpec:
        """The spec of the part that has to be made."""
        if self.old is None:
            return self.spec
        return self.spec.resized(self.dim, self.spec.shape[self.dim] - self.old_size)

    def error(self, problem: str) -> PlanError:
        """Return the error that says whose part this is and what is wrong with it."""
        return PlanError(f"'{self.stream.name}' is {self.spec}: {problem}")


@dataclass(frozen=True)
class Initialisation:
    """One declared initialisation; `make` raises PlanError where it cannot make a part."""

    name: str
    about: str
    make: Callable[..., LazyTensor]
    kinds: tuple[str, ...]
    looks_at_rows: bool
    least_rank: int

    @cached_property
    def schema(self) -> Schema:
        """The JSON Schema of the parameters, as an object."""
        return of_parameters(self.make, leave_out=("part", "old"))


INITIALISERS: dict[str, Initialisation] = {}

Declared = Callable[..., LazyTensor]


def initialisation(
    *kinds: str, looks_at_rows: bool = False, least_rank: int = 0
) -> Callable[[Declared], Declared]:
    """Register a function of a new part (and the old tensor) and parameters under its own name.

    `kinds` are the kinds of dtype that it has values for, `least_rank` the fewest dimensions of a
    tensor that it can make: 2 where it needs fans.
    """

    def register(make: Declared) -> Declared:
        name, about = make.__name__, (make.__doc__ or "").partition("\n")[0]
        INITIALISERS[name] = Initialisation(name, about, make, kinds, looks_at_rows, least_rank)
        return make

    return register


@dataclass(frozen=True)
class Bound:
    """An initialisation of one part: what `Fresh` holds."""

    name: str
    make: Make
    operands: tuple[LazyTensor, ...] = ()
    # Not zero where all values are made at once; see lazy.Initialiser.
    at_once_bytes: tuple[int, int] = (0, 0)

    def values(
        self, spec: TensorSpec, start: int, stop: int, stream: Stream, scratch: Scratch
    ) -> Array:
        return self.make(start, stop, stream, scratch)


def sampled(part: NewPart, name: str, sample: Sample) -> LazyTensor:
    """Return a missing part whose elements are independent draws."""
    count = part.missing.count

    def make(start: int, stop: int, stream: Stream, scratch: Scratch) -> Array:
        return drawn(stream, count, start, stop, sample)

    return Fresh(part.missing, Bound(name, make), part.stream)


def positioned(
    part: NewPart, name: str, make: Make, at_once_bytes: tuple[int, int] = (0, 0)
) -> LazyTensor:
    """Return the missing part of a tensor whose elements depend on where in it they are."""
    bound = Bound(name, make, at_once_bytes=at_once_bytes)
    all_of_it = Fresh(part.spec, bound, part.stream)
    if part.old is None:
        return all_of_it
    behind = ((part.old_size, part.spec.shape[part.dim]),)
    return Selected(all_of_it, part.dim, part.places.new if part.places else behind)


def filled(part: NewPart, name: str, value: float) -> LazyTensor:
    """Return a missing part that is one value everywhere."""
    dtype = DTYPES[part.spec.dtype]
    if dtype.kind == "float":
        check_fits(part, value)
        filling = np.dtype(np.float64)
    else:
        largest = 1 if dtype.kind == "bool" else np.iinfo(dtype.storage).max
        smallest = 0 if dtype.kind == "bool" else np.iinfo(dtype.storage).min
        if value != int(value) or not smallest <= value <= largest:
            raise part.error(f"{value:g} is not a value of {dtype.name}")
        value, filling = int(value), dtype.storage

    def make(start: int, stop: int, stream: Stream, scratch: Scratch) -> Array:
        return np.full(stop - start, value, filling)

    return Fresh(part.missing, Bound(name, make), part.stream)


def check_fits(part: NewPart, *values: float) -> None:
    """Raise where one of the values would be rounded to infinity or NaN."""
    dtype = DTYPES[part.spec.dtype]
    block, spare = np.array(values, np.float64), np.empty(SPARE * len(values), np.uint32)
    stored = downcast(block, dtype.name, np.empty(len(values), dtype.storage), spare)
    fits = np.isfinite(upcast(stored, dtype.name, np.empty(len(values), np.float64)))
    if not fits.all():
        raise part.error(f"values up to {block[~fits][0]:g} do not fit into {dtype.name}")


# A standard normal exceeds this once in 10^15 draws.
FAR = 8


def normal_values(part: NewPart, name: str, mean: float, std: float) -> LazyTensor:
    """Return a missing part of independent normal values."""
    check_fits(part, mean - FAR * std, mean + FAR * std)
    return sampled(part, name, lambda generator, count: generator.normal(mean, std, count))


def uniform_values(part: NewPart, name: str, low: float, high: float) -> LazyTensor:
    """Return a missing part of independent uniform values."""
    check_fits(part, low, high)
    return sampled(part, name, lambda generator, count: generator.uniform(low, high, count))
