"""dare: against naive loops in float64, given what chance keeps; and chance itself."""

import math

import pytest
import torch

from surgeon.output.execute import Options
from tests.merges.oracles import (
    FLOAT8,
    FLOATS,
    add_up,
    added,
    assert_rounded,
    fine_tuned,
    given,
    kept,
    masked,
    merged,
    numbers,
    rescaled,
    task_vectors,
)
from tests.network import assert_identical


def ones(bench, shape=(200, 500), name="w", model="a", **parameters):
    """What dare keeps of a model of ones and a state of zeros, as truths."""
    bench.given({name: torch.zeros(shape)}, **{model: {name: torch.ones(shape)}})
    step = {"op": "dare", "models": [model], "rescale": "none", "density": 0.5, **parameters}
    return bench.operate(step)[name].bool()


@pytest.mark.parametrize("rescale", ["paper", "l1", "none"])
@pytest.mark.parametrize("normalize", [False, True])
def test_kept_changes_are_added(bench, rescale, normalize):
    for dtype in [*FLOATS, *FLOAT8]:
        tensors, densities, weights = fine_tuned(2, dtype), [0.3, 0.8], [0.5, 2.0]
        masks = kept(bench, tensors[0].shape, "dare", density=densities)
        made = merged(
            bench, tensors, "dare", density=densities, weights=weights, rescale=rescale,
            normalize=normalize, **{"lambda": 0.7},
        )  # fmt: skip
        changes = task_vectors(tensors)
        pruned = rescaled(changes, masked(changes, masks), densities, rescale)
        reference = added(tensors, pruned, add_up, weights, 0.7, normalize)
        assert_rounded(made, reference)


def test_paper_rescale_is_the_default(bench):
    made = merged(bench, [torch.zeros(100), torch.ones(100)], "dare", density=0.25)
    assert set(made.tolist()) == {0.0, 4.0}


def test_density_of_one_keeps_everything(bench):
    base, tuned = fine_tuned(1, torch.float64)
    made = merged(bench, [base, tuned], "dare", density=1)
    torch.testing.assert_close(made, tuned, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("density", [0.0005, 0.003, 0.1, 0.3333, 0.5, 0.9, 0.999])
def test_fraction_that_is_kept(bench, density):
    mask = ones(bench, (1000, 1000), density=density)
    deviation = math.sqrt(density * (1 - density) / mask.numel())
    assert abs(mask.double().mean().item() - density) < 5 * deviation


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_expected_value_is_the_model(bench, density):
    """The mean over many elements of the same change, divided by the density."""
    made = merged(bench, [torch.zeros(400_000), torch.ones(400_000)], "dare", density=density)
    deviation = math.sqrt((1 - density) / density / 400_000)
    assert abs(made.double().mean().item() - 1) < 5 * deviation


def agreement(a, b):
    """Correlation of two masks in standard deviations of independent ones."""
    a, b = (mask.double().flatten() - mask.double().mean() for mask in (a, b))
    return abs((a * b).sum() / (a.norm() * b.norm())).item() * math.sqrt(len(a))


@pytest.mark.parametrize(
    "other",
    [{"model": "b"}, {"name": "v"}, {"id": "again"}],
    ids=["model", "tensor", "step"],
)
def test_masks_are_independent(bench, other):
    assert agreement(ones(bench), ones(bench, **other)) < 5


def test_seed_changes_the_mask(bench):
    bench.given({"w": torch.zeros(10_000)}, a={"w": torch.ones(10_000)})
    step = {"op": "dare", "models": ["a"], "density": 0.5}
    first, second = (bench.operate(step, seed=seed)["w"].bool() for seed in (0, 1))
    assert agreement(first, second) < 5


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 65536])
def test_elements_are_independent(bench, lag):
    mask = ones(bench).flatten()
    assert agreement(mask[lag:], mask[:-lag]) < 5


def test_mask_does_not_depend_on_values_or_dtype(bench):
    mask = ones(bench, (50, 50))
    for dtype in FLOATS:
        base, tuned = fine_tuned(1, dtype, (50, 50), change=1)
        made = merged(bench, [base, tuned], "dare", density=0.5)
        assert torch.equal((made != base) | (base == tuned), mask | (base == tuned))


def test_mask_of_a_model_does_not_depend_on_the_others(bench):
    alone = ones(bench, (50, 50))
    zero, one = torch.zeros(50, 50), torch.ones(50, 50)
    step = {"op": "dare", "density": 0.5, "rescale": "none"}
    for models in (["a", "c"], ["c", "a"]):
        bench.given({"w": zero, "x": zero.clone()}, a={"w": one, "x": one.clone()},
                    c={"w": zero, "x": one})  # fmt: skip
        made = bench.operate({**step, "models": models})["w"].bool()
        assert torch.equal(made, alone)


@pytest.mark.parametrize("rescale", ["paper", "l1"])
def test_bytes_do_not_depend_on_workers(bench, rescale, monkeypatch):
    monkeypatch.setattr("surgeon.output.workers._SHARED_FROM", 0)
    monkeypatch.setattr("surgeon.output.units.UNIT", 1 << 17)
    models = given(bench, fine_tuned(2, torch.bfloat16, (300, 500)))
    step = {"op": "dare", "models": models, "density": 0.3, "rescale": rescale}
    first, *others = (bench.operate(step, options=Options(workers=n)).tensors for n in (1, 2, 8))
    for other in others:
        assert_identical(other, first)


def test_l1_rescale_restores_the_sum_of_magnitudes(bench):
    base, tuned = fine_tuned(1, torch.float64, (100, 100))
    made = merged(bench, [base, tuned], "dare", density=0.1, rescale="l1")
    sums = [sum(map(abs, numbers(t - base))) for t in (made, tuned)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-12)
