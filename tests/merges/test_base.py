"""A model as the base of a merge: what the input would have been, had it been the model."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.merges.compare import relatives
from tests.network import assert_identical, read, write

NAMES = ("start", "a", "b")


@pytest.fixture
def family(bench):
    """Models of one start, and an input that is none of them."""
    models = {
        name: {"x.0.w": tensor.view(10, 20), "x.1.w": tensor[:50].clone(), "n": torch.tensor(3)}
        for name, tensor in zip(NAMES, relatives(3, torch.float32), strict=True)
    }
    other = {name: torch.full_like(tensor, 7) for name, tensor in models["a"].items()}
    return bench.given(other, **models)


@pytest.mark.parametrize(
    ("op", "parameters"),
    [
        ("average", {}),
        ("task_arithmetic", {}),
        ("ties", {"density": 0.5}),
        ("dare", {"density": 0.5}),
        ("model_stock", {}),
        ("slerp", {"models": ["a"], "t": 0.3}),
    ],
)
def test_it_is_the_merge_of_which_the_model_was_the_input(family, op, parameters):
    step = {"op": op, "models": ["a", "b"], **parameters}
    made = family.operate({**step, "base": "start"}).tensors
    family.input = family.folder / "start.safetensors"
    assert_identical(made, family.operate(step).tensors)


def test_everyone_else_is_a_model_of_it_and_the_rest_stays_the_inputs(family):
    step = {"op": "task_arithmetic", "base": "start", "models": "*", "target": "x.0"}
    made = family.operate(step)
    start, a, b = (read(family.folder / f"{name}.safetensors")["x.0.w"].double() for name in NAMES)
    torch.testing.assert_close(made["x.0.w"], (a + b - start).float())
    assert made["x.1.w"].eq(7).all()
    assert made.lineage("x.0.w")[0]["from"] == ["start:x.0.w", "a:x.0.w", "b:x.0.w"]


def test_the_result_may_be_kept_as_a_model(family):
    steps = [
        {"op": "average", "base": "a", "models": ["b"], "into": "mean"},
        {"op": "add", "target": "{name**}", "from": "{name}", "model": "mean", "by": 2},
    ]
    made = family.operate(*steps)
    a, b = (read(family.folder / f"{name}.safetensors")["x.1.w"].double() for name in "ab")
    torch.testing.assert_close(made["x.1.w"], (7 + a + b).float())


def test_an_adapter_is_folded_into_the_base(example):
    step = {"op": "task_arithmetic", "models": [{"adapter": "adapter"}], "target": "encoder"}
    made = example.operate({**step, "base": "other"}).tensors
    example.input = example.folder / "other.safetensors"
    expected = example.operate(step).tensors
    for name in ("encoder.0.weight", "encoder.0.bias", "encoder.1.weight"):
        assert torch.equal(made[name], expected[name])


def test_integers_are_the_bases_and_a_difference_is_told(family):
    models = {"n": torch.tensor(4)}
    write(family.folder / "a.safetensors", {**read(family.folder / "a.safetensors"), **models})
    made = family.operate({"op": "average", "base": "start", "models": ["a"]})
    assert made["n"] == 3
    assert any("'n' (I64) differs in model 'a'" in note for note in made.notes)


def test_what_a_base_lacks_or_has_otherwise_is_an_error(bench):
    bench.given({"x": torch.ones(2), "y": torch.ones(2)}, m={"x": torch.ones(2).half()})
    with pytest.raises(PlanError) as raised:
        bench.plan({"op": "average", "base": "m", "models": ["m"]})
    first, second = raised.value.problems
    assert "'x' is F32 (2,) here but F16 (2,) in model 'm', which is the base" in first
    assert "'y' is not in model 'm', which is the base" in second
    bench.given({"x": torch.ones(2)}, m={"x": torch.ones(2)})
    with pytest.raises(PlanError, match="no other model to merge with"):
        bench.plan({"op": "average", "base": "m", "models": "*"})
