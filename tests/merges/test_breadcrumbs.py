"""breadcrumbs: against naive loops in float64."""

import pytest
import torch

from surgeon.base.errors import UsageError
from tests.merges.oracles import (
    FLOAT8,
    FLOATS,
    add_up,
    added,
    assert_all_rounded,
    assert_rounded,
    fine_tuned,
    given,
    merged,
    merged_all,
    middle,
    of_dtypes,
    task_vectors,
)


@pytest.mark.parametrize("density", [0.0001, 0.3, 0.95, 1])
@pytest.mark.parametrize("gamma", [0, 0.01, 0.2])
def test_middle_of_the_changes_is_added(bench, density, gamma):
    families = of_dtypes(2, [*FLOATS, *FLOAT8])
    step = {"density": density, "gamma": gamma, "weights": [0.5, 2]}
    made = merged_all(bench, families, "breadcrumbs", **step)

    def expected(tensors):
        changes = [middle(change, density, gamma) for change in task_vectors(tensors)]
        return added(tensors, changes, add_up, [0.5, 2.0])

    assert_all_rounded(made, families, expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_parameters_vary_by_model(bench, normalize):
    tensors = fine_tuned(3, torch.bfloat16)
    densities, gammas = [0.2, 0.5, 0.9], [0.1, 0, 0.05]
    made = merged(
        bench, tensors, "breadcrumbs", density=densities, gamma=gammas, normalize=normalize,
        **{"lambda": 0.6},
    )  # fmt: skip
    parameters = zip(task_vectors(tensors), densities, gammas, strict=True)
    changes = [middle(*given) for given in parameters]
    assert_rounded(made, added(tensors, changes, add_up, scale=0.6, normalize=normalize))


def test_worked_example(bench):
    change = torch.tensor([5.0, -1, 4, 4, 2, -9, 1, 3, 0, 4])
    made = merged(bench, [torch.zeros(10), change], "breadcrumbs", density=0.4, gamma=0.2)
    # -9 and 5 are outliers; of the three 4 and the 3 all are next.
    assert made.tolist() == [0, 0, 4, 4, 0, 0, 0, 3, 0, 4]


def test_first_of_equal_magnitudes_is_the_larger(bench):
    made = merged(bench, [torch.zeros(8), torch.ones(8)], "breadcrumbs", density=0.5, gamma=0.25)
    assert made.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_outliers_are_dropped_at_any_density(bench):
    """mergekit drops fewer of them where the density would not be reached, at density 1 none."""
    change = torch.arange(1.0, 11.0)
    made = merged(bench, [torch.zeros(10), change], "breadcrumbs", density=1, gamma=0.2)
    assert made.tolist() == [*range(1, 9), 0, 0]


def test_nothing_is_kept_of_a_tensor_too_small(bench):
    made = merged(bench, [torch.zeros(3), torch.ones(3)], "breadcrumbs", density=0.3)
    assert made.tolist() == [0.0] * 3


def test_gamma_has_a_default(bench):
    change = torch.arange(1.0, 201.0)
    made = merged(bench, [torch.zeros(200), change], "breadcrumbs", density=0.5)
    assert made.tolist() == [0.0] * 98 + list(range(99, 199)) + [0.0] * 2


@pytest.mark.parametrize("gamma", [-0.1, 1])
def test_gamma_outside_of_its_range_is_an_error(bench, gamma):
    models = given(bench, fine_tuned(1, torch.float32))
    with pytest.raises(UsageError, match="gamma"):
        bench.plan({"op": "breadcrumbs", "models": models, "density": 0.5, "gamma": gamma})


@pytest.mark.slow
def test_tensor_of_many_blocks(bench):
    tensors = fine_tuned(1, torch.bfloat16, (600, 500))
    made = merged(bench, tensors, "breadcrumbs", density=0.5, gamma=0.1)
    changes = [middle(d, 0.5, 0.1) for d in task_vectors(tensors)]
    assert_rounded(made, added(tensors, changes, add_up))
