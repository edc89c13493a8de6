"""ties: against naive loops in float64."""

import pytest
import torch

from surgeon.base.errors import PlanError, UsageError
from surgeon.output.execute import Options
from tests.merges.oracles import (
    FLOAT8,
    FLOATS,
    added,
    agree,
    assert_all_rounded,
    assert_rounded,
    fine_tuned,
    given,
    largest,
    merged,
    merged_all,
    of_dtypes,
    task_vectors,
)


def expected(tensors, densities, weights=None, scale=1.0, normalize=True):
    changes = [largest(d, p) for d, p in zip(task_vectors(tensors), densities, strict=True)]
    return added(tensors, changes, agree, weights, scale, normalize)


@pytest.mark.parametrize("density", [0.0001, 0.2, 0.7, 1])
@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [0.3, 0.7], [2.0, 0.5, 0.1]])
def test_largest_changes_that_agree(bench, density, weights):
    families = of_dtypes(len(weights), [*FLOATS, *FLOAT8])
    made = merged_all(bench, families, "ties", density=density, weights=weights)
    assert_all_rounded(made, families, lambda t: expected(t, [density] * len(weights), weights))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", [0.4, -1.0])
def test_density_varies_by_model(bench, normalize, scale):
    families, densities = of_dtypes(3, FLOATS), [0.1, 1, 0.5]
    step = {"density": densities, "normalize": normalize, "lambda": scale}
    made = merged_all(bench, families, "ties", **step)
    assert_all_rounded(
        made, families, lambda t: expected(t, densities, scale=scale, normalize=normalize)
    )


def test_worked_example(bench):
    base = torch.zeros(6)
    models = [torch.tensor([3.0, 2, 1, -4, 0, 1]), torch.tensor([-1.0, 2, -5, 4, 0, 3])]
    made = merged(bench, [base, *models], "ties", density=0.7)
    # Kept of the first: 3, 2, -4, 1; of the second: 2, -5, 4, 3. -4 + 4 is zero, which is positive.
    assert made.tolist() == [3.0, 2.0, -5.0, 4.0, 0.0, 3.0]


def test_equal_magnitudes_are_resolved_by_position(bench):
    change = torch.tensor([1.0, -2, 1, 2, -1, 1, 1, 0])
    made = merged(bench, [torch.zeros(8), change], "ties", density=0.5)
    assert made.tolist() == [1, -2, 1, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(("size", "levels"), [(100_000, 2), (100_000, 5), (300_000, 40)])
def test_many_equal_magnitudes_are_resolved_by_position(bench, size, levels):
    """As in fine-tuned bfloat16 models, whose changes are few multiples of a power of two."""
    generator = torch.Generator().manual_seed(0)
    changes = torch.randint(-levels, levels + 1, (2, size), generator=generator).bfloat16()
    tensors = [torch.zeros(size).bfloat16(), *changes]
    made = merged(bench, tensors, "ties", density=0.3)
    assert_rounded(made, expected(tensors, [0.3, 0.3]))


def test_differences_below_float32_decide(bench):
    """Magnitudes that are equal in float32 and not in float64."""
    change = 1 + torch.arange(8, dtype=torch.float64) * 1e-12
    made = merged(bench, [torch.zeros(8).double(), change], "ties", density=0.25)
    assert made.tolist() == [0.0] * 6 + change[6:].tolist()


def test_weight_of_a_model_counts_in_the_election(bench):
    base, up, down = torch.zeros(2), torch.tensor([1.0, 1]), torch.tensor([-1.0, -1])
    made = merged(bench, [base, up, down], "ties", density=1, weights=[1, 2])
    assert made.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("weights", [[1.0] * 4, [0.1, 0.2, 0.3, 0.4]])
@pytest.mark.parametrize("normalize", [True, False])
def test_more_models_than_are_looked_up(bench, weights, normalize, monkeypatch):
    tensors = fine_tuned(4, torch.float64)
    found = merged(bench, tensors, "ties", density=0.5, weights=weights, normalize=normalize)
    monkeypatch.setattr("surgeon.merges.shared.election._LOOKED_UP", 3)
    again = merged(bench, tensors, "ties", density=0.5, weights=weights, normalize=normalize)
    reference = expected(tensors, [0.5] * 4, weights, normalize=normalize)
    for made in (found, again):
        assert_rounded(made, reference)


@pytest.mark.parametrize("looked_up", [0, 8])
def test_weights_of_agreeing_models_that_add_up_to_zero_are_an_error(bench, looked_up, monkeypatch):
    monkeypatch.setattr("surgeon.merges.shared.election._LOOKED_UP", looked_up)
    tensors = [torch.zeros(2), torch.ones(2), torch.tensor([2.0, -1.0])]
    step = {"op": "ties", "models": given(bench, tensors), "density": 1, "weights": [1, -1]}
    with pytest.raises(PlanError, match="'w': weights of models that agree add up to zero"):
        bench.operate(step)
    assert bench.operate({**step, "normalize": False})["w"].tolist() == [-2.0, 2.0]


def test_weights_of_both_signs_may_agree(bench):
    tensors = [torch.zeros(2), torch.ones(2), torch.tensor([2.0, 3.0])]
    made = merged(bench, tensors, "ties", density=1, weights=[1, -1])
    assert made.tolist() == [2.0, 3.0]


@pytest.mark.parametrize("density", [0, -0.1, 1.1])
def test_density_outside_of_its_range_is_an_error(bench, density):
    models = given(bench, fine_tuned(1, torch.float32))
    with pytest.raises(UsageError, match="density"):
        bench.plan({"op": "ties", "models": models, "density": density})


def test_density_must_be_given(bench):
    models = given(bench, fine_tuned(1, torch.float32))
    with pytest.raises(UsageError, match="'density' is missing"):
        bench.plan({"op": "ties", "models": models})


@pytest.mark.slow
def test_tensor_of_many_blocks(bench):
    tensors = fine_tuned(2, torch.bfloat16, (600, 500))
    made = merged(bench, tensors, "ties", density=0.2)
    assert_rounded(made, expected(tensors, [0.2, 0.2]))


def test_result_does_not_depend_on_workers(bench, monkeypatch):
    monkeypatch.setattr("surgeon.output.workers._SHARED_FROM", 0)
    models = given(bench, fine_tuned(2, torch.bfloat16, (700, 500)))
    step = {"op": "ties", "models": models, "density": 0.2}
    first, *others = (
        bench.operate(step, options=Options(workers=n)).path.read_bytes() for n in (1, 2, 8)
    )
    assert others == [first, first]


@pytest.mark.slow  # for what it imports
@pytest.mark.parametrize(("weights", "is_same"), [([1.0, 1.0], True), ([1.0, 3.0], False)])
def test_pefts_definition_is_the_same_for_equal_weights_alone(bench, weights, is_same):
    peft = pytest.importorskip("peft.utils.merge_utils")
    base, *models = fine_tuned(2, torch.float64)
    made = merged(bench, [base, *models], "ties", density=0.5, weights=weights) - base
    deltas = [model - base for model in models]
    theirs = peft.ties(deltas, torch.tensor(weights, dtype=torch.float64), 0.5)
    assert torch.allclose(made, theirs, rtol=0, atol=1e-12) == is_same
