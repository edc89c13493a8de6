"""One sign for each element, by what models say together, and the mean of those that agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, reduce

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.merges.shared import TensorContext
from surgeon.numeric.dtypes import Array

_SIGN = np.uint64(1 << 63)
# Above so many models, what is divided by is added up element by element, not looked up.
_LOOKED_UP = 8

# Contributions (which are overwritten) and the array for the result, which is returned.
Election = Callable[[Sequence[Array], Array], Array]


def election(
    at: TensorContext, weights: Sequence[float], *, normalize: bool, shares: bool = False
) -> Election:
    """Return what makes one array of the models' contributions to a sum.

    Of each element the sign of the sum is elected, zero being positive; contributions of that sign
    are added. With `normalize`, that is divided by the weights of the models that agree. With
    `shares`, contributions are multiplied by the weights once the sign is elected. Where none
    agrees the result is zero.
    """
    divisors = _divisors(at, weights, normalize)

    def elect(contributions: Sequence[Array], out: Array) -> Array:
        signs = out.view(np.uint64)
        np.copyto(out, contributions[0])
        for contribution in contributions[1:]:
            out += contribution
        np.bitwise_and(signs, _SIGN, out=signs)
        agreeing = []
        for contribution, weight in zip(contributions, weights, strict=True):
            bits = contribution.view(np.uint64)
            np.bitwise_xor(bits, signs, out=bits)
            agreeing.append(np.greater(contribution, 0))
            np.maximum(contribution, 0, out=contribution)
            if shares:
                contribution *= weight
        total = reduce(lambda a, b: np.add(a, b, out=a), contributions)
        total += 0.0  # which zero a maximum is depends on the processor
        total /= divisors(agreeing)
        np.bitwise_xor(signs, total.view(np.uint64), out=signs)
        return out

    return elect


def _divisors(
    at: TensorContext, weights: Sequence[float], normalize: bool
) -> Callable[[Sequence[Array]], Array]:
    """Return what to divide by, from which models agree: nonzero, and -1 where none does."""
    look_up = _looked_up if len(weights) <= _LOOKED_UP else _added_up
    add = look_up([weight if normalize else 1.0 for weight in weights], normalize)
    mixed = normalize and min(weights) < 0 < max(weights)

    def divisors(agreeing: Sequence[Array]) -> Array:
        found = add(agreeing)
        if mixed and np.isnan(found).any():
            raise undefined(at, weights)
        return found

    return divisors


def undefined(context: TensorContext, weights: Sequence[float]) -> PlanError:
    """Return the error of weights to divide by that add up to zero."""
    return PlanError(
        f"'{context.name}': weights of models that agree add up to zero, of {list(weights)}; "
        '"normalize": false divides by none'
    )


def divisor_table(weights: Sequence[float], normalize: bool) -> Array | None:
    """Return what to divide by for each set of models that agree, the first model being bit 0.

    None where there are too many models to look it up.
    """
    return None if len(weights) > _LOOKED_UP else _table(tuple(weights), normalize)


@lru_cache(maxsize=16)  # made anew for each tensor it would take as long as a small one's merge
def _table(weights: tuple[float, ...], normalize: bool) -> Array:
    used = [weight if normalize else 1.0 for weight in weights]
    sets = ([w for i, w in enumerate(used) if code >> i & 1] for code in range(1 << len(used)))
    table = np.array([_divisor(agreeing, normalize) for agreeing in sets])
    table.flags.writeable = False
    return table


def _looked_up(weights: Sequence[float], normalize: bool) -> Callable[[Sequence[Array]], Array]:
    table = divisor_table(weights, normalize)
    assert table is not None

    def look_up(agreeing: Sequence[Array]) -> Array:
        code = agreeing[0].view(np.uint8).copy()
        for number, agrees in enumerate(agreeing[1:], 1):
            # NumPy multiplies bytes many times faster than it shifts them.
            code |= np.multiply(agrees.view(np.uint8), np.uint8(1 << number))
        found: Array = np.take(table, code, mode="clip")
        return found

    return look_up


def _divisor(weights: Sequence[float], normalize: bool) -> float:
    if not weights:
        return 1.0
    if not normalize:
        return 1.0
    total = float(sum(weights))
    return total if abs(total) > _negligible(weights) else float("nan")


def _negligible(weights: Sequence[float]) -> float:
    return 1e-12 * sum(abs(weight) for weight in weights)


def _added_up(weights: Sequence[float], normalize: bool) -> Callable[[Sequence[Array]], Array]:
    def add_up(agreeing: Sequence[Array]) -> Array:
        total, size = np.zeros(len(agreeing[0])), np.zeros(len(agreeing[0]))
        for weight, agrees in zip(weights, agreeing, strict=True):
            total += agrees * weight
            size += agrees * abs(weight)
        if not normalize:
            np.copyto(total, 1.0)
        total[np.abs(total) <= 1e-12 * size] = np.nan
        total[size == 0] = 1.0
        return total

    return add_up
