"""multiply: products against naive float64 ones, element by element and along a dimension."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical, correctly_rounded

INF = float("inf")


def step(target, from_, **parameters):
    return {"op": "multiply", "target": target, "from": from_, **parameters}


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16])
def test_products_are_correctly_rounded(bench, dtype, other):
    ours, theirs = normal(2, 999).to(dtype), normal(2, 999).flip(1).to(other)
    made = bench.given({"x": ours, "y": theirs}).operate(step("x", "y"))
    expected = correctly_rounded(ours.double() * theirs.double(), dtype)
    assert_identical(made.tensors, {"x": expected, "y": theirs})


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((5,), 0), ((5, 7), 0), ((5, 7), 1), ((4, 5, 3), 1), ((2, 3, 4, 5), -1), ((2, 3, 4, 5), 1),
     ((1, 6), 1), ((3, 0), 0), ((70_001, 2), 0)],
)  # fmt: skip
def test_a_vector_has_a_factor_for_each_entry_of_a_dimension(bench, shape, dim):
    ours, vector = normal(*shape).bfloat16(), normal(shape[dim])
    made = bench.given({"x": ours, "v": vector}).operate(step("x", "v", dim=dim))
    by_torch = torch.movedim(torch.movedim(ours.double(), dim, -1) * vector.double(), -1, dim)
    assert_identical(made.tensors, {"x": correctly_rounded(by_torch, ours.dtype), "v": vector})


def test_folding_norms_into_what_reads_them_leaves_the_network_as_it_was(bench):
    norm, layer = torch.nn.RMSNorm(6), torch.nn.Linear(6, 3)
    torch.nn.init.normal_(norm.weight)
    names = {
        "h.0.norm.weight": norm.weight,
        "h.0.fc.weight": layer.weight,
        "h.0.fc.bias": layer.bias,
    }
    old = {name: tensor.detach() for name, tensor in names.items()}
    steps = [step("h.{i}.fc.weight", "h.{i}.norm.weight", dim=1),
             {"op": "fill", "target": "h.*.norm.weight", "value": 1}]  # fmt: skip
    made = bench.given(old).operate(*steps)
    inputs = normal(10, 6)
    with torch.no_grad():
        before = layer(norm(inputs))
        norm.weight.copy_(made["h.0.norm.weight"])
        layer.weight.copy_(made["h.0.fc.weight"])
        torch.testing.assert_close(layer(norm(inputs)), before)


def test_tied_names_are_multiplied_once(bench):
    bench.given({"a": torch.full((2,), 3.0)}, {"b": "a"})
    made = bench.operate(step("(a|b)", "a"))
    assert_identical(made.tensors, {"a": torch.full((2,), 9.0), "b": torch.full((2,), 9.0)})


def test_what_is_not_finite_and_what_overflows_is_told(bench):
    bench.given(
        {"x": torch.ones(2), "y": torch.tensor([1.0, INF]), "z": torch.tensor([6e4]).half()}
    )
    with pytest.raises(PlanError, match="'x' holds NaN or Inf"):
        bench.operate(step("x", "y"))
    assert bench.operate(step("x", "y", nonfinite="allow"))["x"].tolist() == [1, INF]
    with pytest.raises(PlanError, match="'z': the result is beyond F16's largest"):
        bench.operate(step("z", "z"))


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"from_": "v"}, "'x' is F32 (2, 3) but 'v' in the state is F32 (3,); 'dim' says"),
        ({"from_": "v", "dim": 0}, "is F32 (3,); 'dim' is 0"),
        ({"from_": "v", "dim": 2}, "there is no dimension 2"),
        ({"from_": "n"}, "'n' in the state is I64 (2, 3)"),
        ({"from_": "w"}, "there is no 'w' in the state for 'x'"),
    ],
)
def test_what_does_not_fit_is_an_error(bench, parameters, problem):
    bench.given({"x": normal(2, 3), "v": normal(3), "n": torch.ones(2, 3).long()})
    with pytest.raises(PlanError) as raised:
        bench.plan(step("x", **parameters))
    assert problem in str(raised.value)
