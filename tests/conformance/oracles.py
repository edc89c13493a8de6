"""What each method makes of one tensor's operands, in plain float64: those of the merges' tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal, localcontext

import numpy as np
import torch

from tests.merges import (
    oracles,
    test_karcher,
    test_model_stock,
    test_multislerp,
    test_nearswap,
    test_nuslerp,
)
from tests.merges.test_average import naive_average
from tests.merges.test_ram import naive_ram
from tests.merges.test_ram_plus import naive_boosts
from tests.merges.test_sce import naive_sce
from tests.merges.test_slerp import naive_slerp

Operands = Sequence[torch.Tensor]
Oracle = Callable[[Operands], torch.Tensor]


def average(weights: list[float]) -> Oracle:
    return lambda tensors: naive_average([t.flatten() for t in tensors], weights)


def slerp(t: float) -> Oracle:
    return lambda tensors: naive_slerp(*tensors, t)


def task_arithmetic(weights: list[float], scale: float, *, normalize: bool) -> Oracle:
    return lambda tensors: oracles.added(
        tensors, oracles.task_vectors(tensors), oracles.add_up, weights, scale, normalize
    )


def ties(density: float, weights: list[float], scale: float) -> Oracle:
    def expected(tensors: Operands) -> torch.Tensor:
        changes = [oracles.largest(d, density) for d in oracles.task_vectors(tensors)]
        return oracles.added(tensors, changes, oracles.agree, weights, scale, True)

    return expected


def breadcrumbs(density: float, gamma: float, combine: oracles.Combine) -> Oracle:
    def expected(tensors: Operands) -> torch.Tensor:
        changes = [oracles.middle(d, density, gamma) for d in oracles.task_vectors(tensors)]
        return oracles.added(tensors, changes, combine)

    return expected


def sce(topk: float) -> Oracle:
    return lambda tensors: naive_sce(tensors, topk)


def ram(epsilon: float) -> Oracle:
    return lambda tensors: naive_ram(tensors, epsilon, [1.0] * (len(tensors) - 1))


def ram_plus(epsilon: float, r: float, alpha: float) -> Oracle:
    return lambda tensors: naive_ram(tensors, epsilon, naive_boosts(tensors, epsilon, r, alpha))


def nuslerp(weights: list[float], granularity: str, *, relative: bool) -> Oracle:
    return by(granularity, lambda tensors: test_nuslerp.naive(tensors, weights, relative))


def multislerp(weights: list[float], *, relative: bool, normalize: bool = True) -> Oracle:
    def expected(tensors: Operands) -> torch.Tensor:
        points = [t - tensors[0] for t in tensors[1:]] if relative else tensors
        if not any(point.any() for point in points):  # what has no direction stays what it is
            return tensors[0]
        return test_multislerp.naive(tensors, weights, relative, normalize)

    return expected


def karcher(tolerance: float, max_iterations: int) -> Oracle:
    def expected(tensors: Operands) -> torch.Tensor:
        if not any(tensor.any() for tensor in tensors):
            return tensors[0]
        return test_karcher.naive(tensors, None, tolerance, max_iterations)

    return expected


def model_stock(granularity: str) -> Oracle:
    return by(granularity, test_model_stock.naive)


def nearswap(t: float) -> Oracle:
    return lambda tensors: test_nearswap.naive(tensors, t)


def fusion(tensors: Operands) -> torch.Tensor:
    """Fuse with divergences of 50 digits: those of models that are near cancel to nothing."""
    state, model = tensors
    rows = [tensor.double().reshape(-1, tensor.shape[-1]).tolist() for tensor in tensors]
    with localcontext() as context:
        context.prec = 50
        importance = [
            [float(abs(Decimal(q) - Decimal(p)) * far) for p, q in zip(b, x, strict=True)]
            for b, x in zip(*rows, strict=True)
            for far in [_divergence(x, b)]
        ]
    first, middle, third = np.quantile(np.array(importance), [0.25, 0.5, 0.75])
    taken = torch.tensor(importance, dtype=torch.float64) >= middle + 1.5 * (third - first)
    return torch.where(taken.reshape(state.shape), model, state)


def _divergence(x: list[float], b: list[float]) -> Decimal:
    logs, others = _log_softmax(x), _log_softmax(b)
    return sum((p.exp() * (p - q) for p, q in zip(logs, others, strict=True)), Decimal(0))


def _log_softmax(row: list[float]) -> list[Decimal]:
    values = [Decimal(value) for value in row]
    total = sum((value.exp() for value in values), Decimal(0)).ln()
    return [value - total for value in values]


def by(granularity: str, oracle: Oracle) -> Oracle:
    """Return an oracle of each row or column by itself; vectors are one."""
    if granularity == "tensor":
        return oracle
    dimension = {"row": 0, "column": 1}[granularity]

    def expected(tensors: Operands) -> torch.Tensor:
        if tensors[0].dim() < 2:
            return oracle(tensors)
        parts = zip(*(tensor.unbind(dimension) for tensor in tensors), strict=True)
        return torch.stack([oracle(part) for part in parts], dimension)

    return expected
