"""consensus: against naive loops in float64."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.merges.oracles import (
    FLOATS,
    add_up,
    agree,
    assert_rounded,
    fine_tuned,
    given,
    largest,
    merged,
    numbers,
    task_vectors,
)


def naive_consensus(tensors, combine, normalize, *, weights, limits, at_least, density, scale):
    changes = task_vectors(tensors)
    mix = combine([largest(d, density) for d in changes], weights, normalize)
    made = []
    rows = zip(*changes, strict=True)
    for b, m, row in zip(numbers(tensors[0]), mix, rows, strict=True):
        votes = sum(abs(d) > limit * abs(m - d) for d, limit in zip(row, limits, strict=True))
        made.append(b + scale * m if votes >= at_least else b)
    return torch.tensor(made, dtype=torch.float64).view(tensors[0].shape)


@pytest.mark.parametrize("mix", ["task_arithmetic", "ties"])
@pytest.mark.parametrize("at_least", [1, 2, 3])
@pytest.mark.parametrize("density", [0.3, 1])
def test_what_several_models_need_is_kept(bench, mix, at_least, density):
    for dtype in FLOATS:
        tensors = fine_tuned(3, dtype)
        weights, limits = [1.0, 0.5, 0.7], [0.4, 1.0, 0.2]
        step = {"mix": mix, "at_least": at_least, "weights": weights, "density": density}
        made = merged(bench, tensors, "consensus", **step, scale=0.3, **{"lambda": limits})
        combine, normalize = (agree, True) if mix == "ties" else (add_up, False)
        expected = naive_consensus(
            tensors, combine, normalize, weights=weights, limits=limits, at_least=at_least,
            density=density, scale=0.3,
        )  # fmt: skip
        assert_rounded(made, expected)


def test_defaults_are_two_models_and_everything_merged(bench):
    tensors = fine_tuned(3, torch.float64)
    expected = naive_consensus(
        tensors, add_up, False, weights=[1.0] * 3, limits=[1.0] * 3, at_least=2, density=1, scale=1
    )
    assert_rounded(merged(bench, tensors, "consensus"), expected)


def test_worked_example(bench):
    models = [torch.tensor([1.0, 1, 4, 0]), torch.tensor([2.0, -1, 0, 0])]
    made = merged(bench, [torch.zeros(4), *models], "consensus", **{"lambda": 0.4})
    # Mixes 3, 0, 4, 0: both need the first; of the second |1| > 0.4 |0 - 1| holds for both, and
    # nothing is left of it; the third is needed by one.
    assert made.tolist() == [3.0, 0.0, 0.0, 0.0]


def test_more_models_than_there_are_is_an_error(bench):
    models = given(bench, fine_tuned(2, torch.float32))
    with pytest.raises(PlanError, match=r"'at_least' is 3 of 2 model\(s\)"):
        bench.plan({"op": "consensus", "models": models, "at_least": 3})
