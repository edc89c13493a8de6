"""della: against naive loops in float64, given what chance keeps; and its probabilities."""

import math

import pytest
import torch

from surgeon.base.errors import PlanError
from surgeon.merges.shared import pruning
from tests.merges.oracles import (
    FLOATS,
    add_up,
    added,
    assert_rounded,
    fine_tuned,
    given,
    merged,
    numbers,
    rescaled,
    task_vectors,
)


def probabilities(change, shape, density, epsilon):
    """Per row, by ascending rank of magnitude, equal ones in their order."""
    row = math.prod(shape[1:]) if len(shape) > 1 else len(change)
    found = [density] * len(change)
    for start in range(0, len(change), row) if row > 1 else ():
        ranked = sorted(range(start, start + row), key=lambda i: (abs(change[i]), i))
        for rank, i in enumerate(ranked):
            found[i] = density - epsilon + 2 * epsilon * rank / (row - 1)
    return found


def kept_of(bench, tensors, op="della", **parameters):
    """The task vectors, and what is kept of each: merged alone, other models being the state."""
    changes, pruned = task_vectors(tensors), []
    for model, change in enumerate(changes):
        alone = [torch.zeros(t.shape).double() for t in tensors]
        alone[model + 1] = torch.tensor(change, dtype=torch.float64).view(tensors[0].shape)
        pruned.append(numbers(merged(bench, alone, op, rescale="none", **parameters)))
    return changes, pruned


@pytest.mark.parametrize("shape", [(30, 21), (50,), (6, 1), (4, 3, 5)])
@pytest.mark.parametrize("rescale", ["paper", "l1", "none"])
def test_kept_changes_are_added(bench, shape, rescale):
    for dtype in FLOATS:
        tensors, weights = fine_tuned(2, dtype, shape), [0.5, 2.0]
        parameters = {"density": [0.5, 0.3], "epsilon": [0.4, 0.1]}
        changes, pruned = kept_of(bench, tensors, **parameters)
        made = merged(bench, tensors, "della", weights=weights, rescale=rescale, **parameters)
        if rescale == "paper":
            chances = [
                probabilities(change, shape, *given)
                for change, given in zip(changes, [(0.5, 0.4), (0.3, 0.1)], strict=True)
            ]
            pruned = [
                [s / p for s, p in zip(*pair, strict=True)]
                for pair in zip(pruned, chances, strict=True)
            ]
        else:
            pruned = rescaled(changes, pruned, None, rescale)
        assert_rounded(made, added(tensors, pruned, add_up, weights))


def test_what_is_kept_is_unchanged_or_zero(bench):
    changes, pruned = kept_of(bench, fine_tuned(2, torch.float32), density=0.5)
    for change, left in zip(changes, pruned, strict=True):
        assert all(s in (0.0, d) for d, s in zip(change, left, strict=True))
        assert 0 < sum(map(bool, left)) < len(left)


@pytest.mark.parametrize("tie", [False, True])
def test_probability_grows_with_the_rank_in_the_row(bench, tie):
    """Each of 8 ranks in 40 000 rows is kept as often as its probability says."""
    row = torch.tensor([3.0, -1, 1 if tie else 2, -8, 5, 7 if tie else -6, 7, -4])
    change = row.repeat(40_000, 1)
    made = merged(
        bench, [torch.zeros_like(change), change], "della", density=0.5, epsilon=0.4, rescale="none"
    )
    expected = probabilities(row.tolist(), (8,), 0.5, 0.4)
    for column, probability in enumerate(expected):
        found = made[:, column].bool().double().mean().item()
        assert abs(found - probability) < 5 * math.sqrt(probability * (1 - probability) / 40_000)


@pytest.mark.parametrize("epsilon", [0, 0.3])
def test_vector_is_one_row(bench, epsilon):
    size = 200_000
    change = torch.linspace(1, 2, size, dtype=torch.float64)
    made = merged(
        bench, [torch.zeros_like(change), change], "della", density=0.5, epsilon=epsilon,
        rescale="none",
    )  # fmt: skip
    quarters = made.bool().double().view(4, -1).mean(dim=1)
    expected = [0.5 + epsilon * (2 * q + 1 - 4) / 4 for q in range(4)]
    torch.testing.assert_close(quarters, torch.tensor(expected).double(), rtol=0, atol=0.012)


def test_magnitudes_equal_in_float32_alone_are_ranked_too(bench):
    """Paper rescale shows each element's probability, and so its rank."""
    change = 1 + torch.tensor([3.0, 0, 5, 1, 4, 2]).double().repeat(200, 1) * 1e-12
    made = merged(bench, [torch.zeros_like(change), change], "della", density=0.5, epsilon=0.4)
    for column, rank in enumerate([3, 0, 5, 1, 4, 2]):
        found = made[:, column][made[:, column] != 0]
        assert len(found) > 5
        torch.testing.assert_close(found, torch.ones_like(found) / (0.1 + 0.8 * rank / 5))


def test_expected_value_is_the_model(bench):
    base, tuned = torch.zeros(400, 500), torch.rand(400, 500) + 1
    made = merged(bench, [base, tuned], "della", density=0.5, epsilon=0.3)
    assert abs((made.double().mean() / tuned.double().mean()).item() - 1) < 0.01


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.9, 0.1), (1, 0), (0.2, 0.2)])
def test_probability_outside_of_its_range_is_an_error(bench, density, epsilon):
    models = given(bench, fine_tuned(1, torch.float32))
    with pytest.raises(PlanError, match=f"density {density} ± epsilon {epsilon} is not between"):
        bench.plan({"op": "della", "models": models, "density": density, "epsilon": epsilon})


@pytest.mark.parametrize("op", ["della", "dare"])
@pytest.mark.parametrize("held_bytes", [0, 20_000])
def test_result_does_not_depend_on_what_is_remembered(bench, op, held_bytes, monkeypatch):
    """Random numbers are drawn again where what they decided is too much to be held."""
    tensors = fine_tuned(2, torch.bfloat16, (150, 1000))
    expected = merged(bench, tensors, op, density=0.5, rescale="l1")
    monkeypatch.setattr(pruning, "_HELD_BYTES", held_bytes)
    found = merged(bench, tensors, op, density=0.5, rescale="l1")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_epsilon_has_a_default(bench):
    tensors = fine_tuned(1, torch.float32)
    found = merged(bench, tensors, "della", density=0.5)
    torch.testing.assert_close(found, merged(bench, tensors, "della", density=0.5, epsilon=0.15))
