"""keep: leave everything else out."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

OLD = {"a.weight": torch.ones(2), "a.bias": torch.ones(1), "b.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    ("target", "left"),
    [("a", ["a.weight", "a.bias"]), ("**.weight", ["a.weight", "b.weight"]), ("**", list(OLD))],
)
def test_keep_leaves_everything_else_out(bench, target, left):
    made = bench.given(OLD).operate({"op": "keep", "target": target})
    assert_identical(made.tensors, {name: OLD[name] for name in left})


def test_keeping_nothing_is_an_error(bench):
    bench.given(OLD)
    with pytest.raises(PlanError, match="no tensor matches 'c'"):
        bench.plan({"op": "keep", "target": "c"})


def test_keeping_nothing_is_an_error_even_when_optional(bench):
    bench.given(OLD)
    with pytest.raises(PlanError, match="no tensor is left to write"):
        bench.plan({"op": "keep", "target": "c", "optional": True})
