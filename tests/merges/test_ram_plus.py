"""ram_plus: against naive loops in float64."""

import pytest
import torch

from tests.merges.oracles import FLOATS, assert_all_rounded, merged, merged_all, of_dtypes
from tests.merges.test_ram import acts, naive_ram, sparse


def naive_boosts(tensors, epsilon, r, alpha):
    masks = acts(tensors, epsilon)
    counts = [sum(row) for row in zip(*masks, strict=True)]
    boosts = []
    for mask in masks:
        own = sum(act and count == 1 for act, count in zip(mask, counts, strict=True))
        shared = sum(mask) - own
        boosts.append(1 + r * min(shared / own, alpha) if own else 1.0)
    return boosts


@pytest.mark.parametrize("models", [1, 2, 3])
@pytest.mark.parametrize(("r", "alpha"), [(0.1, 0.2), (0.5, 3.0), (0, 1)])
@pytest.mark.parametrize("epsilon", [0, 0.7])
def test_own_changes_are_enlarged(bench, models, r, alpha, epsilon):
    families = of_dtypes(models, FLOATS, make=sparse)
    made = merged_all(bench, families, "ram_plus", epsilon=epsilon, r=r, alpha=alpha)
    assert_all_rounded(
        made, families, lambda t: naive_ram(t, epsilon, naive_boosts(t, epsilon, r, alpha))
    )


def test_worked_example(bench):
    models = [torch.tensor([2.0, 4, 0, 0]), torch.tensor([0.0, 2, -6, 8])]
    tensors = [torch.zeros(4), *models]
    made = merged(bench, tensors, "ram_plus", r=0.5, alpha=0.75)
    # The first has one shared and one of its own, clipped; the second one shared and two.
    assert made.tolist() == [2 * 1.375, 3.0, -6 * 1.25, 8 * 1.25]


def test_defaults_are_a_tenth_and_a_fifth(bench):
    models = [torch.tensor([2.0, 4, 0]), torch.tensor([0.0, 2, -6])]
    made = merged(bench, [torch.zeros(3), *models], "ram_plus")
    torch.testing.assert_close(made, torch.tensor([2 * 1.02, 3.0, -6 * 1.02]))
