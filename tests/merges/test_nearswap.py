"""nearswap: against naive loops in float64."""

import pytest
import torch

from surgeon.base.errors import PlanError, UsageError
from tests.merges.compare import assert_all_rounded, families, given, numbers, relatives, tensor_of
from tests.network import assert_identical


def step(t, **parameters):
    return {"op": "nearswap", "models": ["b"], "t": t, **parameters}


def naive(tensors, t):
    found = []
    for b, x in zip(*map(numbers, tensors), strict=True):
        share = 1.0 if b == x else max(0.0, min(1.0, t / abs(b - x)))
        found.append(share * x + (1 - share) * b)
    return tensor_of(found, tensors[0])


@pytest.mark.parametrize("t", [0, 1e-4, 0.1, 0.77, 100])
@pytest.mark.parametrize("apart", [0.001, 0.3])
def test_near_values_are_swapped_and_others_approach(bench, t, apart):
    tensors = families(2, apart=apart)
    given(bench, tensors)
    assert_all_rounded(bench.operate(step(t)).tensors, lambda pair: naive(pair, t), tensors)


def test_ends_are_the_models_themselves(bench):
    tensors = relatives(2, torch.float64)
    given(bench, tensors)
    assert_identical(bench.operate(step(0)).tensors, {"w": tensors[0]})
    assert_identical(bench.operate(step(1e6)).tensors, {"w": tensors[1]})


def test_very_near_values_are_swapped_too(bench):
    """Unlike in mergekit 0.1.5, which takes differences below 1e-6 for 1e-6."""
    tensors = [torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-9, dtype=torch.float64)]
    given(bench, tensors)
    assert bench.operate(step(2e-9))["w"].item() == 1e-9


def test_merging_with_itself_returns_it_to_the_bit(bench):
    state = torch.cat([torch.randn(500, dtype=torch.float64), torch.tensor([-0.0, 0.0])])
    given(bench, [state, state])
    assert_identical(bench.operate(step(0.3)).tensors, {"w": state})


def test_t_varies_by_name(bench):
    zeros, ones = ({n: torch.full((1,), v) for n in ("a", "b")} for v in (0.0, 1.0))
    bench.given(zeros, b=ones)
    made = bench.operate(step([{"target": "a", "value": 0.25}, {"value": 0.5}]))
    assert [made["a"].item(), made["b"].item()] == [0.25, 0.5]


def test_negative_t_is_an_error(bench):
    given(bench, relatives(2, torch.float32, size=3))
    with pytest.raises(UsageError, match="t"):
        bench.plan(step(-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", ["w", "'w' in model 'b'"])
def test_nonfinite_operand_is_an_error(bench, value, broken):
    tensors = [torch.ones(2), torch.tensor([1.0, value])]
    given(bench, tensors[::-1] if broken == "w" else tensors)
    with pytest.raises(PlanError, match=f"{broken}.* holds NaN or Inf"):
        bench.operate(step(0.5))
