"""task_arithmetic: against naive loops in float64, and what all merges of task vectors share."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.merges.oracles import (
    FLOAT8,
    FLOATS,
    add_up,
    added,
    assert_all_rounded,
    fine_tuned,
    given,
    merged,
    merged_all,
    of_dtypes,
    task_vectors,
)
from tests.network import assert_identical

# Every merge of task vectors, with parameters.
EVERY = {
    "task_arithmetic": {},
    "ties": {"density": 0.3},
    "dare": {"density": 0.5},
    "dare_ties": {"density": 0.5, "rescale": "l1"},
    "della": {"density": 0.5},
    "della_ties": {"density": 0.5, "rescale": "l1"},
    "breadcrumbs": {"density": 0.5},
    "breadcrumbs_ties": {"density": 0.5},
    "sce": {"select_topk": 0.5},
    "consensus": {"at_least": 1},
    "ram": {},
    "ram_plus": {},
}
EACH = pytest.mark.parametrize(("op", "parameters"), EVERY.items(), ids=EVERY)


# Each pair of two parameters' values is there.
@pytest.mark.parametrize(
    ("weights", "normalize", "scale"),
    [
        ([1.0], False, 1.0), ([1.0], True, 0.3), ([1.0], False, -0.5), ([1.0], True, 0.0),
        ([1.0, 1.0], True, 1.0), ([1.0, 1.0], False, 0.3), ([1.0, 1.0], True, -0.5),
        ([1.0, 1.0], False, 0.0), ([0.3, 0.5], False, 1.0), ([0.3, 0.5], True, 0.3),
        ([0.3, 0.5], False, -0.5), ([0.3, 0.5], True, 0.0), ([2.0, -0.7, 0.1], True, 1.0),
        ([2.0, -0.7, 0.1], False, 0.3), ([2.0, -0.7, 0.1], True, -0.5),
        ([2.0, -0.7, 0.1], False, 0.0),
    ],
)  # fmt: skip
def test_sum_of_weighted_task_vectors(bench, weights, normalize, scale):
    families = of_dtypes(len(weights), [*FLOATS, *FLOAT8])
    step = {"weights": weights, "normalize": normalize, "lambda": scale}
    made = merged_all(bench, families, "task_arithmetic", **step)
    assert_all_rounded(
        made, families,
        lambda t: added(t, task_vectors(t), add_up, weights, scale, normalize),
    )  # fmt: skip


def test_weights_lambda_and_normalize_have_defaults(bench):
    tensors = fine_tuned(3, torch.float64)
    made = merged(bench, tensors, "task_arithmetic")
    expected = tensors[1] + tensors[2] + tensors[3] - 2 * tensors[0]
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", [[1, -1], [0, 0]])
def test_weights_that_add_up_to_zero_are_divided_by_no_one(bench, weights):
    models = given(bench, fine_tuned(2, torch.float32))
    step = {"op": "task_arithmetic", "models": models, "weights": weights}
    bench.plan(step)
    with pytest.raises(PlanError, match="add up to zero"):
        bench.plan({**step, "normalize": True})


def test_learning_is_taken_away_by_a_negative_weight(bench):
    base, tuned = fine_tuned(1, torch.float64)
    made = merged(bench, [base, tuned], "task_arithmetic", weights=-1)
    torch.testing.assert_close(made, 2 * base - tuned, rtol=1e-12, atol=1e-12)


# --- What all merges of task vectors share --------------------------------------------------------


@EACH
def test_models_that_are_the_state_change_nothing(bench, op, parameters):
    zeros = torch.tensor([-0.0, 0.0, 1.0, -2.0, 1e-4, -1e-4, 60000.0, -0.0])
    for models in (1, 2, 3):
        families = {str(dtype): [zeros.to(dtype)] * (models + 1) for dtype in FLOATS}
        made = merged_all(bench, families, op, **parameters)
        assert_identical(made, {name: tensors[0] for name, tensors in families.items()})


@EACH
def test_shapes_of_any_rank_are_merged(bench, op, parameters):
    shapes = [(), (1,), (0,), (0, 3), (3, 0), (1, 1), (5, 1), (2, 3, 4)]
    families = {str(shape): fine_tuned(2, torch.float32, shape) for shape in shapes}
    made = merged_all(bench, families, op, **parameters)
    assert {name: str(tuple(t.shape)) for name, t in made.items()} == {n: n for n in families}
    assert all(tensor.isfinite().all() for tensor in made.values())


@EACH
def test_nonfinite_operand_is_an_error_even_if_it_is_dropped(bench, op, parameters):
    """Whatever is dropped: in half of the elements every model has such a value once."""
    values = (float("nan"), float("inf"), -float("inf"))
    for value, model in [(value, model) for value in values for model in range(3)]:
        tensors = fine_tuned(2, torch.float32, (4, 5))
        tensors[model].view(-1)[::2] = value
        names = given(bench, tensors)
        where = f"'w' in model '{names[model - 1]}'" if model else "'w'"
        with pytest.raises(PlanError, match=f"{where} holds NaN or Inf"):
            bench.operate({"op": op, "models": names, **parameters})


@EACH
def test_one_nonfinite_value_is_never_hidden(bench, op, parameters):
    for place, value in [(i, value) for i in range(6) for value in (float("nan"), -float("inf"))]:
        tensors = fine_tuned(2, torch.bfloat16, (6,))
        tensors[2][place] = value
        names = given(bench, tensors)
        with pytest.raises(PlanError, match="'w' in model 'c' holds NaN or Inf"):
            bench.operate({"op": op, "models": names, **parameters})


@EACH
def test_nonfinite_values_are_let_through_on_demand(bench, op, parameters):
    tensors = fine_tuned(2, torch.float32, (8,))
    tensors[2][3] = float("nan")
    made = merged(bench, tensors, op, nonfinite="allow", **parameters)
    # A sum over the tensor takes it everywhere.
    everywhere = op == "sce" or parameters.get("rescale") == "l1"
    assert made.isnan().tolist() == [everywhere or i == 3 for i in range(8)]


@EACH
def test_thresholds_are_relative(bench, op, parameters):
    """Changes of any size are merged alike: what is found is in proportion to them."""
    zero = torch.zeros(6, 7, dtype=torch.float64)
    tensors = [zero, *(t for t in fine_tuned(3, torch.float64, (6, 7))[1:])]
    expected = merged(bench, tensors, op, **parameters)
    assert expected.abs().max() > 0
    # Powers of two, so that not even the rounding differs: about 1e-30, 1e-9 and 1e3.
    for scale in (2.0**-100, 2.0**-30, 2.0**10):
        made = merged(bench, [t * scale for t in tensors], op, **parameters)
        assert_identical({"w": made}, {"w": expected * scale})


SYMMETRIC = {name: p for name, p in EVERY.items() if not name.startswith(("dare", "della"))}


@pytest.mark.parametrize(("op", "parameters"), SYMMETRIC.items(), ids=SYMMETRIC)
def test_order_of_models_does_not_matter(bench, op, parameters):
    base, *models = fine_tuned(3, torch.float32)
    first = merged(bench, [base, *models], op, **parameters)
    again = merged(bench, [base, *reversed(models)], op, **parameters)
    torch.testing.assert_close(again, first, rtol=1e-6, atol=1e-6)


@EACH
def test_bytes_do_not_depend_on_blocks_of_other_tensors(bench, op, parameters):
    """A tensor of several blocks and many rows, merged alone and beside another."""
    tensors = fine_tuned(2, torch.bfloat16, (300, 500))
    alone = merged(bench, tensors, op, **parameters)
    models = {name: {"w": t, "b": t[0].clone()} for name, t in zip("ac", tensors[1:], strict=True)}
    bench.given({"w": tensors[0], "b": tensors[0][0].clone()}, **models)
    made = bench.operate({"op": op, "models": ["a", "c"], **parameters})["w"]
    assert_identical({"w": made}, {"w": alone})
