"""Learning without Forgetting on digits: the teacher's term has to reach the student's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from torch import Tensor

from surgeon.training import Distillation
from tests.examples import training_of

pytestmark = pytest.mark.slow  # it trains

MARGIN = 0.3


@pytest.fixture(scope="module")
def lwf() -> Iterator[ModuleType]:
    with training_of("lwf_digits") as module:
        yield module


@pytest.fixture(scope="module")
def old_accuracy(lwf: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """Return a function that trains in given stages and returns the accuracy on old digits."""
    folder: Path = tmp_path_factory.mktemp("lwf")
    lwf.first_stage(0, folder)

    def trained(*stages: str, distils: bool) -> float:
        found: float = lwf.second_stage(lwf.Method(stages, distils=distils), 0, folder)[0]
        return found

    return trained


@pytest.fixture(scope="module")
def fine_tuned(old_accuracy: Callable[..., float]) -> float:
    return old_accuracy("everything", distils=False)


def test_distillation_keeps_old_digits(
    old_accuracy: Callable[..., float], fine_tuned: float
) -> None:
    assert old_accuracy("everything", distils=True) > fine_tuned + MARGIN


def test_without_its_gradient_it_keeps_none(
    old_accuracy: Callable[..., float], fine_tuned: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Distillation.__call__

    def cut(self: Distillation, logits: Tensor, images: Tensor) -> Tensor:
        return whole(self, logits, images).detach()

    monkeypatch.setattr(Distillation, "__call__", cut)
    assert old_accuracy("everything", distils=True) < fine_tuned + MARGIN / 4


def test_lwf_keeps_more_than_a_warm_up_alone(old_accuracy: Callable[..., float]) -> None:
    stages = ("warm-up", "everything")
    assert old_accuracy(*stages, distils=True) > old_accuracy(*stages, distils=False)
    assert old_accuracy(*stages, distils=True) > 0.95
