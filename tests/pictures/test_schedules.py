"""The courses that are drawn of learning rates are those of torch's own schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from surgeon.pictures.schedules import rates

MODULE = "torch.optim.lr_scheduler"
LENGTH = 30
COURSES: list[tuple[str, dict[str, Any]]] = [
    ("StepLR", {"step_size": 7}),
    ("MultiStepLR", {"milestones": [3, 3, 11], "gamma": 0.3}),
    ("ConstantLR", {}),
    ("LinearLR", {"start_factor": 0.1, "total_iters": 9}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("PolynomialLR", {"total_iters": 12, "power": 2.0}),
    ("CosineAnnealingLR", {"T_max": 8, "eta_min": 0.001}),
    ("CosineAnnealingWarmRestarts", {"T_0": 4, "T_mult": 2}),
    ("CosineAnnealingWarmRestarts", {"T_0": 7}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": LENGTH}),
    ("OneCycleLR", {"max_lr": 0.5, "epochs": 6, "steps_per_epoch": 5, "three_phase": True,
                    "anneal_strategy": "linear"}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:To get the last learning rate")
@pytest.mark.parametrize(("name", "given"), COURSES)
def test_a_course_is_that_of_torch(name: str, given: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **given)
    wanted = []
    for _ in range(LENGTH - 1):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    wanted.append(optimizer.param_groups[0]["lr"])
    found = rates(f"{MODULE}.{name}", given, 0.1, LENGTH)
    assert found
    assert [time for time, _ in found] == [*range(LENGTH + 1)]
    torch.testing.assert_close([rate for _, rate in found[:-1]], wanted, rtol=1e-12, atol=1e-15)


def test_without_a_scheduler_the_rate_stays() -> None:
    assert rates("", {}, 0.1, 2) == [(0, 0.1), (1, 0.1), (2, 0.1)]


@pytest.mark.parametrize(
    ("path", "given"),
    [
        (f"{MODULE}.LambdaLR", {}),
        ("mine.StepLR", {"step_size": 2}),
        (f"{MODULE}.StepLR", {"stride": 2}),
        (f"{MODULE}.StepLR", {"step_size": 0}),
        (f"{MODULE}.StepLR", {"step_size": {}}),
        (f"{MODULE}.ExponentialLR", {"gamma": 1e300}),
        (f"{MODULE}.CosineAnnealingWarmRestarts", {"T_0": 1, "T_mult": 0}),
    ],
)
def test_a_course_that_is_not_known_is_not_drawn(path: str, given: dict[str, Any]) -> None:
    assert rates(path, given, 0.1, 9) is None


@pytest.mark.parametrize("length", [400, 401, 10**15])
def test_long_stages_take_few_points(length: int) -> None:
    found = rates(f"{MODULE}.CosineAnnealingWarmRestarts", {"T_0": 3}, 0.1, length)
    assert found
    assert len(found) <= 401
    assert (found[0][0], found[-1][0]) == (0, length)
