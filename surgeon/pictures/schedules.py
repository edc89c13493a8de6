"""The course of a learning rate under the schedulers of torch that follow a formula.

Without torch, which takes longer to import than a report to write. Formulas are those of the
documentation of torch.optim.lr_scheduler; tests hold them against the classes themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import cos, isfinite, pi
from typing import Any

# Given the rate to begin with and how often the scheduler was stepped: the rate now.
Course = Callable[[float, int], float]
_NUMBER = int | float
# Stages that take longer are drawn at so many points.
_MOST_POINTS = 400


def rates(
    scheduler: str, arguments: Mapping[str, Any], first: float, length: int
) -> list[tuple[int, float]] | None:
    """Return (time, rate) from the start of a stage to its end; None for an unknown course.

    `scheduler` is the import path of a class, or empty for none; time is counted in its steps.
    """
    course = _constant if not scheduler else _course(scheduler, arguments)
    if course is None:
        return None
    every = max(1, -(-length // _MOST_POINTS))
    times = [*range(0, length, every), length]
    try:
        # What was reached with the last step holds to the end of the stage.
        found = [(time, float(course(first, min(time, length - 1)))) for time in times]
        return found if all(isfinite(rate) for _, rate in found) else None
    except (ArithmeticError, ValueError, TypeError):
        return None  # arguments that the class would refuse, too


def _constant(first: float, time: int) -> float:
    return first


def _course(scheduler: str, arguments: Mapping[str, Any]) -> Course | None:
    module, _, name = scheduler.rpartition(".")
    if module != "torch.optim.lr_scheduler" or name not in _COURSES:
        return None
    if not all(map(_is_plain, arguments.values())):
        return None
    try:
        return _COURSES[name](**arguments)
    except (TypeError, ArithmeticError):  # as the class would refuse them
        return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    return isinstance(value, bool | str | _NUMBER)


def _step(step_size: int, gamma: float = 0.1) -> Course:
    return lambda first, time: first * float(gamma) ** (time // step_size)


def _multi_step(milestones: Sequence[int], gamma: float = 0.1) -> Course:
    return lambda first, time: first * float(gamma) ** sum(time >= one for one in milestones)


def _constant_factor(factor: float = 1 / 3, total_iters: int = 5) -> Course:
    return lambda first, time: first * (factor if time < total_iters else 1)


def _linear(start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5) -> Course:
    def course(first: float, time: int) -> float:
        share = min(time, total_iters) / total_iters
        return first * (start_factor + (end_factor - start_factor) * share)

    return course


def _exponential(gamma: float) -> Course:
    return lambda first, time: first * float(gamma) ** time


def _polynomial(total_iters: int = 5, power: float = 1.0) -> Course:
    return lambda first, time: first * (1 - min(time, total_iters) / total_iters) ** power


def _cosine(T_max: int, eta_min: float = 0.0) -> Course:  # noqa: N803 (torch's word)
    return lambda first, time: eta_min + (first - eta_min) * (1 + cos(pi * time / T_max)) / 2


def _cosine_restarts(T_0: int, T_mult: int = 1, eta_min: float = 0.0) -> Course:  # noqa: N803
    if T_0 < 1 or T_mult < 1:
        raise ArithmeticError

    def course(first: float, time: int) -> float:
        period = T_0
        if T_mult == 1:
            time %= period
        while time >= period:
            time, period = time - period, period * T_mult
        return eta_min + (first - eta_min) * (1 + cos(pi * time / period)) / 2

    return course


def _one_cycle(
    max_lr: float, total_steps: int = 0, epochs: int = 0, steps_per_epoch: int = 0,
    pct_start: float = 0.3, anneal_strategy: str = "cos", cycle_momentum: bool = True,
    base_momentum: float = 0.85, max_momentum: float = 0.95, div_factor: float = 25.0,
    final_div_factor: float = 1e4, three_phase: bool = False,
) -> Course:  # fmt: skip
    total = total_steps or epochs * steps_per_epoch
    low, up = max_lr / div_factor, float(pct_start * total) - 1
    lowest = low / final_div_factor
    ends = [(up, low, max_lr)]
    if three_phase:
        ends += [(float(2 * pct_start * total) - 2, max_lr, low), (total - 1, low, lowest)]
    else:
        ends.append((total - 1, max_lr, lowest))

    def course(first: float, time: int) -> float:
        begin = 0.0
        for end, start, stop in ends:
            if time <= end or end == ends[-1][0]:
                share = (time - begin) / (end - begin)
                bent = (1 - cos(pi * share)) / 2 if anneal_strategy == "cos" else share
                return start + (stop - start) * bent
            begin = end
        raise ValueError(time)

    return course


_COURSES: dict[str, Callable[..., Course]] = {
    "StepLR": _step,
    "MultiStepLR": _multi_step,
    "ConstantLR": _constant_factor,
    "LinearLR": _linear,
    "ExponentialLR": _exponential,
    "PolynomialLR": _polynomial,
    "CosineAnnealingLR": _cosine,
    "CosineAnnealingWarmRestarts": _cosine_restarts,
    "OneCycleLR": _one_cycle,
}
