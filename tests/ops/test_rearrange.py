"""rearrange: dimensions taken apart, reordered and put together."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

TENSOR = torch.randn(12, 6, 2)


def step(pattern, target="w", **sizes):
    return {"op": "rearrange", "target": target, "pattern": pattern, "sizes": sizes}


@pytest.mark.parametrize(
    ("pattern", "sizes", "wanted"),
    [
        ("a b c -> c a b", {}, TENSOR.permute(2, 0, 1)),
        ("a ... -> ... a", {}, TENSOR.permute(1, 2, 0)),
        ("(h k) ... -> (k h) ...", {"h": 3},
         TENSOR.reshape(3, 4, 6, 2).transpose(0, 1).reshape(12, 6, 2)),
        ("(h k) b c -> h (b k) 1 c", {"k": 2},
         TENSOR.reshape(6, 2, 6, 2).transpose(1, 2).reshape(6, 12, 1, 2)),
        ("(h k l) (m n) c -> (l h) (n c m k)", {"h": 2, "k": 3, "m": 3},
         TENSOR.reshape(2, 3, 2, 3, 2, 2).permute(2, 0, 4, 5, 3, 1).reshape(4, 36)),
        ("a b c -> (a b c)", {}, TENSOR.flatten()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pattern_does_what_views_and_transpositions_do(bench, dtype, pattern, sizes, wanted):
    made = bench.given({"w": TENSOR.to(dtype)}).operate(step(pattern, **sizes)).tensors
    assert_identical(made, {"w": wanted.to(dtype).contiguous()})


def test_the_other_way_round_is_the_way_back(bench):
    bench.given({"m.weight": TENSOR, "m.bias": torch.randn(12)})
    there = step("(h two k) ... -> (h k two) ...", "m", h=3, two=2)
    back = step("(h k two) ... -> (h two k) ...", "m", h=3, two=2)
    assert_identical(bench.operate(there, back).tensors, bench.operate().tensors)


def test_ones_are_dimensions_of_that_size(bench):
    made = bench.given({"w": torch.randn(3, 4, 1, 1)}).operate(step("o i 1 1 -> o i"))
    assert made["w"].shape == (3, 4)
    with pytest.raises(PlanError, match=r"a dimension of 4 is not 1 \('o 1 ... -> o ...'\)"):
        bench.plan(step("o 1 ... -> o ..."))


@pytest.mark.parametrize(
    ("pattern", "sizes", "problem"),
    [
        ("a b c", {}, "must have one '->'"),
        ("a b -> b a", {}, r"'w' is F32 \(12, 6, 2\), and has other dimensions than the"),
        ("a b c -> a b", {}, "has 'c' on one side alone"),
        ("a a c -> a c", {}, "has 'a' twice on one side"),
        ("(a ... c -> a ... c", {}, "'...' stands for whole dimensions"),
        ("(a b c -> a b c", {}, "parentheses must be in pairs"),
        ("a b 2 -> a b 2", {}, "'2' is no name, '1', '...' or parenthesis"),
        ("(a b) c d -> a b c d", {}, "give the size of 'a'"),
        ("(a b) c d -> a b c d", {"a": 5}, r"a dimension of 12 is not \(a b\) with a 5"),
        ("a b c -> c b a", {"a": 6}, "a dimension of 12 is not a with a 6"),
        ("a b c -> c b a", {"h": 6}, "sizes has 'h', which .* does not name"),
    ],
)
def test_what_does_not_fit_is_said(bench, pattern, sizes, problem):
    bench.given({"w": TENSOR})
    with pytest.raises(PlanError, match=problem):
        bench.plan(step(pattern, **sizes))
