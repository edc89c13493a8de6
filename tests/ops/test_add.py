"""add: sums against naive float64 ones, from the state and from models."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical, correctly_rounded


def step(target, from_, **parameters):
    return {"op": "add", "target": target, "from": from_, **parameters}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("other", [torch.float64, torch.float32, torch.bfloat16])
def test_sums_are_correctly_rounded(bench, dtype, other):
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(2, 999, generator=generator).to(dtype)
    theirs = torch.randn(2, 999, generator=generator).to(other)
    made = bench.given({"x": ours, "y": theirs}).operate(step("x", "y", by=-0.3))
    expected = correctly_rounded(ours.double() + theirs.double() * -0.3, dtype)
    assert_identical(made.tensors, {"x": expected, "y": theirs})


def test_whole_model_is_added(bench):
    old = {"a.weight": torch.randn(2, 2), "a.bias": torch.randn(2)}
    delta = {name: torch.randn_like(tensor) for name, tensor in old.items()}
    made = bench.given(old, delta=delta).operate(step("{name**}", "{name}", model="delta"))
    assert_identical(made.tensors, {name: old[name] + delta[name] for name in old})
    assert made.lineage("a.bias") == [{"step": "0", "op": "add", "from": ["delta:a.bias"]}]


def test_captures_find_what_is_added_to_each(bench):
    old = {f"{kind}.{i}.weight": torch.randn(3) for kind in ("layer", "delta") for i in range(2)}
    made = bench.given(old).operate(step("layer.{i}", "delta.{1-i}"))
    expected = {f"layer.{i}.weight": old[f"layer.{i}.weight"] + old[f"delta.{1 - i}.weight"]
                for i in range(2)}  # fmt: skip
    assert_identical(made.tensors, {**old, **expected})


def test_tensor_can_be_added_to_itself(bench):
    made = bench.given({"x": torch.ones(3)}).operate(step("x", "x"))
    assert made["x"].tolist() == [2, 2, 2]


def test_tied_names_are_added_to_once(bench):
    bench.given({"a": torch.ones(2)}, {"b": "a"})
    made = bench.operate(step("(a|b)", "a"))
    assert_identical(made.tensors, {"a": torch.full((2,), 2.0), "b": torch.full((2,), 2.0)})


def test_tied_names_with_different_additions_are_an_error(bench):
    bench.given({"a": torch.ones(2), "x": torch.ones(2), "y": torch.ones(2)}, {"b": "a"})
    with pytest.raises(PlanError, match="'b' is tied to 'a', and both would be added to; untie it"):
        bench.plan(step(["a", "b"], ["x", "y"]))


def test_every_difference_is_listed(bench):
    bench.given(
        {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)},
        m={"a": torch.ones(3), "b": torch.ones(2).long()},
    )
    with pytest.raises(PlanError) as raised:
        bench.plan(step("{name}", "{name}", model="m"))
    assert [line.split(": ", 2)[2] for line in raised.value.problems] == [
        "'a' is F32 (2,) but 'a' in model 'm' is F32 (3,)",
        "'b' is F32 (2,) but 'b' in model 'm' is I64 (2,)",
        "there is no 'c' in model 'm' for 'c'",
    ]


def test_integers_are_kept_or_an_error(bench):
    old = {"n": torch.tensor([1, 2])}
    assert_identical(bench.given(old).operate(step("n", "n")).tensors, old)
    with pytest.raises(PlanError, match="'n' is I64"):
        bench.plan(step("n", "n", integers="error"))


def test_nan_in_what_is_added_is_an_error(bench):
    bench.given({"x": torch.ones(2), "y": torch.tensor([1.0, float("nan")])})
    with pytest.raises(PlanError, match="what is added to 'x' holds NaN or Inf"):
        bench.operate(step("x", "y"))


def test_overflow_is_an_error(bench):
    bench.given({"x": torch.tensor([60000.0]).half()})
    with pytest.raises(PlanError, match="'x': the result is beyond F16's largest value"):
        bench.operate(step("x", "x"))
