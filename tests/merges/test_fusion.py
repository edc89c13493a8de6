"""fusion: against naive loops in float64."""

import math

import numpy as np
import pytest
import torch

from surgeon.base.errors import PlanError
from surgeon.output.execute import Options
from tests.merges.compare import FLOATS, given, relatives
from tests.network import assert_identical

STEP = {"op": "fusion", "models": ["b"]}


def softmax(row):
    largest = max(row)
    exponentials = [math.exp(x - largest) for x in row]
    total = math.fsum(exponentials)
    return [e / total for e in exponentials]


def divergence(x, b):
    return math.fsum(p * math.log(p / q) for p, q in zip(softmax(x), softmax(b), strict=True))


def naive(state, model):
    """The definition, row by row; which values are the model's."""
    width = state.shape[-1] if state.dim() else 1
    rows = [t.double().reshape(-1, width).tolist() for t in (state, model)]
    importance = [
        [abs(q - p) * far for p, q in zip(b, x, strict=True)]
        for b, x in zip(*rows, strict=True)
        for far in [divergence(x, b)]
    ]
    first, middle, third = np.quantile(np.array(importance), [0.25, 0.5, 0.75])
    threshold = middle + 1.5 * (third - first)
    taken = torch.tensor([[i >= threshold for i in row] for row in importance])
    return torch.where(taken.reshape(state.shape), model, state), taken


def pair(dtype, shape, apart=0.5):
    return [t.view(shape) for t in relatives(2, dtype, size=math.prod(shape), apart=apart)]


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_matters_most_is_the_models(bench, dtype):
    state, model = pair(dtype, (30, 17))
    given(bench, [state, model])
    expected, taken = naive(state.float() if dtype.itemsize == 1 else state,
                            model.float() if dtype.itemsize == 1 else model)  # fmt: skip
    assert 0.02 < taken.double().mean() < 0.4
    assert_identical(bench.operate(STEP).tensors, {"w": expected.to(dtype)})


@pytest.mark.parametrize("shape", [(40,), (3, 4, 5, 6), (200, 400)])
def test_softmax_is_over_the_last_dimension(bench, shape):
    state, model = pair(torch.bfloat16, shape)
    given(bench, [state, model])
    assert_identical(bench.operate(STEP).tensors, {"w": naive(state, model)[0]})


def test_large_values_do_not_overflow(bench):
    state, model = (t * 1000 for t in pair(torch.float64, (20, 30), apart=0.01))
    given(bench, [state, model])
    made = bench.operate(STEP)["w"]
    assert made.isfinite().all()
    assert 0 < (made == model).double().mean() < 0.5


@pytest.mark.parametrize("shape", [(), (0,), (1,), (4, 1), (0, 3), (3, 0)])
def test_rows_of_one_element_are_the_models(bench, shape):
    """A softmax of one is 1, whatever it is of: all is as important as the threshold, zero."""
    state, model = torch.zeros(shape), torch.ones(shape)
    given(bench, [state, model])
    assert_identical(bench.operate(STEP).tensors, {"w": model})


def test_merging_with_itself_returns_it(bench):
    state = pair(torch.bfloat16, (30, 17))[0]
    given(bench, [state, state])
    assert_identical(bench.operate(STEP).tensors, {"w": state})


def test_result_does_not_depend_on_workers(bench):
    given(bench, pair(torch.bfloat16, (500, 300)))
    results = [bench.operate(STEP, options=Options(workers=n)) for n in (1, 2)]
    assert results[0].path.read_bytes() == results[1].path.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", ["w", "'w' in model 'b'"])
def test_nonfinite_operand_is_an_error(bench, value, broken):
    tensors = [torch.ones(3, 4), torch.ones(3, 4)]
    tensors[broken != "w"][1, 1] = value
    given(bench, tensors)
    with pytest.raises(PlanError, match=f"{broken}.* holds NaN or Inf"):
        bench.operate(STEP)
