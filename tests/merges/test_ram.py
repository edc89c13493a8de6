"""ram: against naive loops in float64."""

import math

import pytest
import torch

from tests.merges.oracles import FLOATS, assert_rounded, fine_tuned, merged, numbers, task_vectors


def acts(tensors, epsilon):
    """For each model, where it acts."""
    found = []
    for change in task_vectors(tensors):
        root = math.sqrt(math.fsum(d * d for d in change) / len(change))
        found.append([abs(d) > epsilon * root for d in change])
    return found


def naive_ram(tensors, epsilon, boosts):
    made = []
    changes = zip(*task_vectors(tensors), strict=True)
    masks = zip(*acts(tensors, epsilon), strict=True)
    for b, row, mask in zip(numbers(tensors[0]), changes, masks, strict=True):
        chosen = [i for i, act in enumerate(mask) if act]
        total = sum(row[i] for i in chosen)
        if len(chosen) == 1:
            total = row[chosen[0]] * boosts[chosen[0]]
        made.append(b + total / max(1, len(chosen)))
    return torch.tensor(made, dtype=torch.float64).view(tensors[0].shape)


def sparse(count, dtype):
    """Models of which each changed half of the elements."""
    base, *models = fine_tuned(count, dtype)
    generator = torch.Generator().manual_seed(1)
    masks = [torch.rand(base.shape, generator=generator) < 0.5 for _ in models]
    return [base, *(torch.where(m, x, base) for m, x in zip(masks, models, strict=True))]


@pytest.mark.parametrize("models", [1, 2, 3])
@pytest.mark.parametrize("epsilon", [0, 0.7, 10])
def test_own_changes_are_kept_and_shared_ones_averaged(bench, models, epsilon):
    for dtype in FLOATS:
        tensors = sparse(models, dtype)
        made = merged(bench, tensors, "ram", epsilon=epsilon)
        assert_rounded(made, naive_ram(tensors, epsilon, [1.0] * models))


def test_worked_example(bench):
    models = [torch.tensor([2.0, 4, 0, 0]), torch.tensor([0.0, 2, -6, 0])]
    made = merged(bench, [torch.ones(4) * 0, *models], "ram")
    assert made.tolist() == [2.0, 3.0, -6.0, 0.0]


def test_default_epsilon_is_relative(bench):
    """An absolute 1e-5, as in the paper and in mergekit, would leave nothing of these."""
    change = torch.tensor([1.0, 1e-4, 1e-6, 0.0]) * 2.0**-40
    made = merged(bench, [torch.zeros(4), change], "ram")
    assert made.tolist() == [change[0].item(), change[1].item(), 0.0, 0.0]
