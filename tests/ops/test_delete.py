"""delete: leave tensors out."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

OLD = {"a.weight": torch.ones(2), "a.bias": torch.ones(1), "b.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    ("target", "left"),
    [
        ("a", ["b.weight"]),
        ("a.bias", ["a.weight", "b.weight"]),
        (["a", "!a.bias"], ["a.bias", "b.weight"]),
        ("**.weight", ["a.bias"]),
    ],
)
def test_delete_leaves_tensors_out(bench, target, left):
    made = bench.given(OLD).operate({"op": "delete", "target": target})
    assert_identical(made.tensors, {name: OLD[name] for name in left})


def test_deleting_the_owner_of_a_tie_keeps_the_values(bench):
    bench.given(OLD, {"c.weight": "b.weight"})
    made = bench.operate({"op": "delete", "target": "b"})
    expected = {"a.weight": OLD["a.weight"], "a.bias": OLD["a.bias"], "c.weight": OLD["b.weight"]}
    assert_identical(made.tensors, expected)
    assert made.manifest["ties"] == {}


def test_deleted_names_are_reported(bench):
    plan = bench.given(OLD).plan({"op": "delete", "target": "a"})
    assert set(plan.dropped) == {"a.bias", "a.weight"}
    assert set(plan.steps[0].removed) == {"a.bias", "a.weight"}


def test_deleting_everything_is_an_error(bench):
    bench.given(OLD)
    with pytest.raises(PlanError, match="no tensor is left to write"):
        bench.plan({"op": "delete", "target": "**"})
