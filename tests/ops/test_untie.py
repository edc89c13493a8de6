"""untie: give a name a tensor of its own again."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

W = torch.randn(3, 2)


@pytest.fixture
def tied(bench):
    return bench.given({"a.w": W, "z": torch.ones(1)}, {"b.w": "a.w", "c.w": "a.w"})


@pytest.mark.parametrize(
    ("target", "ties"),
    [("a", {"c.w": "b.w"}), ("c", {"b.w": "a.w"}), (["a", "b", "c"], {}), (["a", "b"], {})],
)
def test_untied_name_has_a_tensor_of_its_own(tied, target, ties):
    made = tied.operate({"op": "untie", "target": target})
    assert made.manifest["ties"] == ties
    assert_identical(made.tensors, {"a.w": W, "b.w": W, "c.w": W, "z": torch.ones(1)})


def test_untied_names_change_alone(tied):
    steps = [{"op": "untie", "target": "c"}, {"op": "reinit", "target": "c.w", "init": "zeros"}]
    made = tied.operate(*steps).tensors
    assert_identical(made, {"a.w": W, "b.w": W, "c.w": torch.zeros(3, 2), "z": torch.ones(1)})


def test_what_is_not_tied_is_an_error(tied):
    with pytest.raises(PlanError, match="'z' is not tied to another tensor"):
        tied.plan({"op": "untie", "target": "z"})


def test_what_is_not_tied_is_left_alone_when_optional(tied):
    made = tied.operate({"op": "untie", "target": "**", "optional": True})
    assert made.manifest["ties"] == {}


def test_untied_copy_is_in_the_lineage(tied):
    made = tied.operate({"op": "untie", "target": "c"})
    assert [change["op"] for change in made.lineage("c.w")] == ["untie"]
