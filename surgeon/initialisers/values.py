"""What each named initialisation does, declared once each.

An initialisation is a function of the `NewPart` where values are missing. Its recipe word, its JSON
Schema and its checks come from that declaration. Meaning and parameters are those of
torch.nn.init, and scales come from the final size of the whole tensor. Use them through
this package's front.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np

from surgeon.base.indices import SCHEMA, Indices, runs, within
from surgeon.initialisers.parts import (
    FAR,
    Bound,
    NewPart,
    check_fits,
    filled,
    initialisation,
    normal_values,
    positioned,
    sampled,
    uniform_values,
)
from surgeon.lazy import Copied, Fresh, LazyTensor, Scratch, Selected, Stream, TensorSpec
from surgeon.lazy.random import (
    drawn,
    mean_of_rows,
    rows_like,
    standard_normal,
    truncated_normal,
)
from surgeon.numeric.dtypes import DTYPES, Array

Mode = Literal["fan_in", "fan_out"]
_LINEAR = (
    "linear",
    *(f"conv{way}{n}d" for way in ("", "_transpose") for n in (1, 2, 3)),
    "sigmoid",
)
# Besides leaky_relu, whose gain depends on its slope; torch.nn.init.calculate_gain
_GAINS = dict.fromkeys(_LINEAR, 1.0) | {"tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}
Nonlinearity = Annotated[
    str, "what follows the layer; gives the gain", {"enum": [*_GAINS, "leaky_relu"]}
]


def _fans(part: NewPart, spec: TensorSpec) -> tuple[int, int]:
    """Return fan_in and fan_out, counted as torch does: dimension 0 is the output."""
    if len(spec.shape) < 2:
        raise part.error("a fan needs at least 2 dimensions; name another init, such as zeros")
    field = math.prod(spec.shape[2:])
    return max(1, spec.shape[1] * field), max(1, spec.shape[0] * field)


def _xavier_std(part: NewPart, gain: float) -> float:
    return gain * math.sqrt(2 / sum(_fans(part, part.spec)))


def _kaiming_std(part: NewPart, a: float, mode: Mode, nonlinearity: str) -> float:
    fan_in, fan_out = _fans(part, part.spec)
    gain = _GAINS.get(nonlinearity, math.sqrt(2 / (1 + a**2)))
    return gain / math.sqrt(fan_in if mode == "fan_in" else fan_out)


_ONES = ("weight", "gamma", "scale", "running_var")


@initialisation("float", "int", "bool")
def default(part: NewPart) -> LazyTensor:
    """What torch's own layer constructor does for a layer of this size.

    Rank 2 counts as linear and rank 3 to 5 as convolution: uniform within 1 / sqrt(fan_in), for
    the bias too. Rank 1 counts as normalisation: ones, for the bias zeros. Integers become zeros.
    """
    leaf, rank = part.leaf, len(part.spec.shape)
    if DTYPES[part.spec.dtype].kind != "float" or leaf == "running_mean":
        return filled(part, "default", 0)
    if 2 <= rank <= 5:
        bound = 1 / math.sqrt(_fans(part, part.spec)[0])
        return uniform_values(part, "default", -bound, bound)
    if rank <= 1 and (leaf == "beta" or "bias" in leaf):
        if part.weight is None or len(part.weight.shape) < 2:
            return filled(part, "default", 0)
        bound = 1 / math.sqrt(_fans(part, part.weight)[0])
        return uniform_values(part, "default", -bound, bound)
    if rank <= 1 and leaf in _ONES:
        return filled(part, "default", 1)
    raise part.error(f"'{leaf}' of rank {rank} has no default; name an init")


@initialisation("float", "int", "bool")
def zeros(part: NewPart) -> LazyTensor:
    """All zeros."""
    return filled(part, "zeros", 0)


@initialisation("float", "int", "bool")
def ones(part: NewPart) -> LazyTensor:
    """All ones."""
    return filled(part, "ones", 1)


@initialisation("float", "int", "bool")
def constant(part: NewPart, *, val: Annotated[float, "every value"]) -> LazyTensor:
    """One value everywhere."""
    return filled(part, "constant", val)


# That takes 10 GB, and is larger than the largest layers: 16,384 x 16,384.
_LARGEST_MATRIX = 1 << 28


@initialisation("float")
def normal(
    part: NewPart,
    *,
    mean: Annotated[float, "the mean"] = 0.0,
    std: Annotated[float, "the standard deviation", {"minimum": 0}] = 1.0,
) -> LazyTensor:
    """Normal with a mean and a standard deviation."""
    return normal_values(part, "normal", mean, std)


@initialisation("float")
def trunc_normal(
    part: NewPart,
    *,
    mean: Annotated[float, "the mean before truncation"] = 0.0,
    std: Annotated[float, "the deviation before truncation", {"exclusiveMinimum": 0}] = 1.0,
    a: Annotated[float, "the smallest value"] = -2.0,
    b: Annotated[float, "the largest value"] = 2.0,
) -> LazyTensor:
    """Normal without what lies below a or above b (values, not multiples of std)."""
    if not a < b:
        raise part.error(f"'trunc_normal' needs a < b, not {a:g} and {b:g}")
    check_fits(part, max(a, mean - FAR * std), min(b, mean + FAR * std))
    standard = truncated_normal((a - mean) / std, (b - mean) / std)

    def sample(generator: np.random.Generator, count: int) -> Array:
        return np.clip(mean + std * standard(generator, count), a, b)

    return sampled(part, "trunc_normal", sample)


@initialisation("float")
def uniform(
    part: NewPart,
    *,
    a: Annotated[float, "the lower bound"] = 0.0,
    b: Annotated[float, "the upper bound"] = 1.0,
) -> LazyTensor:
    """Uniform between two bounds."""
    if a > b:
        raise part.error(f"'uniform' needs a <= b, not {a:g} and {b:g}")
    return uniform_values(part, "uniform", a, b)


Gain = Annotated[float, "what the values are multiplied by"]
Slope = Annotated[float, "negative slope of the leaky_relu that follows"]


@initialisation("float", least_rank=2)
def xavier_uniform(part: NewPart, *, gain: Gain = 1.0) -> LazyTensor:
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010)."""
    bound = math.sqrt(3) * abs(_xavier_std(part, gain))
    return uniform_values(part, "xavier_uniform", -bound, bound)


@initialisation("float", least_rank=2)
def xavier_normal(part: NewPart, *, gain: Gain = 1.0) -> LazyTensor:
    """Normal with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010)."""
    return normal_values(part, "xavier_normal", 0, abs(_xavier_std(part, gain)))


@initialisation("float", least_rank=2)
def kaiming_uniform(
    part: NewPart,
    *,
    a: Slope = 0.0,
    mode: Annotated[Mode, "which fan"] = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
) -> LazyTensor:
    """Uniform with deviation gain / sqrt(fan) (He et al. 2015)."""
    bound = math.sqrt(3) * _kaiming_std(part, a, mode, nonlinearity)
    return uniform_values(part, "kaiming_uniform", -bound, bound)


@initialisation("float", least_rank=2)
def kaiming_normal(
    part: NewPart,
    *,
    a: Slope = 0.0,
    mode: Annotated[Mode, "which fan"] = "fan_in",
    nonlinearity: Nonlinearity = "leaky_relu",
) -> LazyTensor:
    """Normal with deviation gain / sqrt(fan) (He et al. 2015)."""
    return normal_values(part, "kaiming_normal", 0, _kaiming_std(part, a, mode, nonlinearity))


@initialisation("float", least_rank=2)
def orthogonal(part: NewPart, *, gain: Gain = 1.0) -> LazyTensor:
    """Orthonormal rows or columns, whichever are fewer (Saxe et al. 2013).

    Dimensions after the first are flattened. The matrix of the whole tensor is made at once, in
    float64: 8 bytes per element stay until it is written, some 32 are used meanwhile.
    """
    if len(part.spec.shape) < 2:
        raise part.error("'orthogonal' needs at least 2 dimensions")
    check_fits(part, gain)
    size, rows = part.spec.count, part.spec.shape[0]
    if size > _LARGEST_MATRIX:
        raise part.error(
            f"'orthogonal' makes a matrix at once, and {part.spec.shape} is more than "
            f"{_LARGEST_MATRIX:,} elements"
        )

    def matrix(scratch: Scratch) -> Array:
        if not size:
            return np.empty(0)
        flat = drawn(part.stream, size, 0, size, standard_normal).reshape(rows, -1)
        wide = rows < flat.shape[1]
        q, r = np.linalg.qr(flat.T if wide else flat)
        # Signs as in torch, so that Q is uniform: https://arxiv.org/abs/math-ph/0609050
        q = q * (gain * np.where(np.diagonal(r) < 0, -1.0, 1.0))
        return np.ascontiguousarray(q.T if wide else q).reshape(-1)

    def make(start: int, stop: int, stream: Stream, scratch: Scratch) -> Array:
        values: Array = scratch.known(make, matrix)[start:stop]
        return values

    return positioned(part, "orthogonal", make, at_once_bytes=(8, 32))


@initialisation("float", least_rank=2)
def eye(part: NewPart) -> LazyTensor:
    """The identity matrix, cut or filled up with zeros; rank 2."""
    if len(part.spec.shape) != 2:
        raise part.error("'eye' needs 2 dimensions")
    columns = part.spec.shape[1]

    def make(start: int, stop: int, stream: Stream, scratch: Scratch) -> Array:
        row, column = np.divmod(np.arange(start, stop), columns)
        values: Array = np.equal(row, column).astype(np.float32)
        return values

    return positioned(part, "eye", make)


@initialisation("float", least_rank=3)
def dirac(
    part: NewPart, *, groups: Annotated[int, "of the convolution", {"minimum": 1}] = 1
) -> LazyTensor:
    """A convolution that passes its input channels through; rank 3 to 5."""
    shape = part.spec.shape
    if not 3 <= len(shape) <= 5:
        raise part.error("'dirac' needs 3 to 5 dimensions")
    if shape[0] % groups:
        raise part.error(f"dimension 0 is not divisible by groups {groups}")
    per_group = shape[0] // groups
    field = math.prod(shape[2:])
    centre = sum(
        size // 2 * math.prod(shape[dim + 1 :]) for dim, size in enumerate(shape) if dim > 1
    )

    def make(start: int, stop: int, stream: Stream, scratch: Scratch) -> Array:
        channel, inside = np.divmod(np.arange(start, stop), shape[1] * field)
        values: Array = np.equal(inside, channel % per_group * field + centre).astype(np.float32)
        return values

    return positioned(part, "dirac", make)


def _from_rows(
    part: NewPart,
    name: str,
    old: LazyTensor,
    compute: Callable[[Scratch], Array],
    at_once_bytes: tuple[int, int] = (0, 0),
) -> LazyTensor:
    """Return a missing part made of a few computed rows: float64 (before, 1 or count, after)."""
    count, after = part.missing.shape[part.dim], math.prod(part.spec.shape[part.dim + 1 :])

    def make(start: int, stop: int, stream: Stream, scratch: Scratch) -> Array:
        rows, index = scratch.known(make, compute), np.arange(start, stop)
        if rows.shape[1] != count:  # the one row again and again
            index = index // (count * after) * after + index % after
        return np.take(rows, index)

    return Fresh(part.missing, Bound(name, make, (old,), at_once_bytes), part.stream)


@initialisation("float", looks_at_rows=True)
def mean(part: NewPart, *, old: LazyTensor) -> LazyTensor:
    """The mean of the old rows, in every new one."""
    return _from_rows(part, "mean", old, lambda scratch: mean_of_rows(old, part.dim, scratch))


@initialisation("float", looks_at_rows=True)
def rows_normal(part: NewPart, *, old: LazyTensor) -> LazyTensor:
    """Normal with the mean and the covariance of the old rows; of one old row, that row.

    Sampled as mean + (n - 1)^-1/2 Z (X - mean) with X the n old rows and Z standard normal, which
    has exactly their sample covariance and needs no d x d matrix; see `sampling.rows_like`. All new
    rows are made at once: 8 bytes per new element stay until they are written. Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html
    """
    count = part.missing.shape[part.dim]
    return _from_rows(
        part,
        "rows_normal",
        old,
        lambda scratch: rows_like(old, part.dim, count, part.stream, scratch),
        at_once_bytes=(8, 8),
    )


@initialisation("float", "int", "bool", "complex", "opaque", looks_at_rows=True)
def copy(
    part: NewPart,
    *,
    old: LazyTensor,
    rows: Annotated[
        Indices,
        'the old row that each new one is a copy of, or one for all of them: 3, "0:5", [1, 1, -1]',
        SCHEMA,
    ],
) -> LazyTensor:
    """Copies of old rows, by index and range."""
    if DTYPES[part.spec.dtype].bits < 8:
        raise part.error("values of less than a byte cannot be copied")
    count = part.missing.shape[part.dim]
    chosen = _old_rows(part, rows)
    if len(chosen) not in (1, count):
        raise part.error(f"'copy' names {len(chosen)} rows for {count} new ones; name one or each")
    return Copied(Selected(old, part.dim, runs(chosen * (count // len(chosen)))))


def _old_rows(part: NewPart, given: Indices) -> list[int]:
    """Return the old rows that indices and ranges mean, in their order."""
    found: list[int] = []
    for item in given if isinstance(given, list) else [given]:
        # JSON Schema lets 3.0 be an integer.
        chosen = within(item if isinstance(item, str) else int(item), part.old_size)
        if not chosen:
            last = part.old_size - 1
            raise part.error(f"row {item} cannot be copied; the old rows are 0 to {last}")
        found += chosen
    return found
