"""create: tensors that were not there, of a shape or like others."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

OLD = {
    "h.0.norm.weight": torch.randn(3),
    "h.1.norm.weight": torch.randn(3).half(),
    "n": torch.tensor(2),
}


def step(name, **parameters):
    return {"op": "create", "name": name, **parameters}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"shape": [2, 3], "dtype": "F32", "init": "zeros"}, torch.zeros(2, 3)),
        ({"shape": [], "dtype": "I64", "init": "ones"}, torch.tensor(1)),
        ({"shape": [0, 2], "dtype": "bfloat16", "init": "ones"}, torch.zeros(0, 2).bfloat16()),
        (
            {"shape": [4], "dtype": "F16", "init": {"name": "constant", "val": 0.1}},
            torch.full((4,), 0.1).half(),
        ),
        ({"shape": [2], "dtype": "BOOL", "init": "ones"}, torch.tensor([True, True])),
        ({"like": "n", "init": "zeros"}, torch.tensor(0)),
        ({"like": "h.1.norm.weight", "dtype": "F64", "init": "ones"}, torch.ones(3).double()),
        ({"shape": [3, 3], "dtype": "F32", "init": "eye"}, torch.eye(3)),
    ],
)
def test_tensor_is_what_torch_makes(bench, parameters, expected):
    made = bench.given(OLD).operate(step("x.weight", **parameters))
    assert_identical(made.tensors, {**OLD, "x.weight": expected})


def test_one_step_serves_all_layers_and_its_tensors_are_new(bench):
    training = {"stages": [{"name": "gates", "train": ["@new"]}]}
    steps = [step("h.{i}.gate", like="h.{i}.norm.weight", init="ones"),
             {"op": "expect", "target": "@new", "count": 2}]  # fmt: skip
    made = bench.given(OLD).operate(*steps, training=training)
    gates = {"h.0.gate": torch.ones(3), "h.1.gate": torch.ones(3).half()}
    assert_identical(made.tensors, {**OLD, **gates})
    assert made.lineage("h.1.gate")[0]["op"] == "create"


def test_a_module_is_made_like_another_and_a_bias_like_torchs(bench):
    layer = torch.nn.Linear(8, 4)
    old = {f"fc.{name}": tensor for name, tensor in layer.state_dict().items()}
    made = bench.given(old).operate(step("head", like="fc"))
    assert made["head.weight"].shape == (4, 8)
    bound = 8**-0.5  # of the bias too, by the weight's fan
    assert 0 < made["head.bias"].abs().max() <= bound
    assert made["head.weight"].unique().numel() == 32


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"name": "n", "shape": [1], "dtype": "F32"}, "there is a tensor 'n' already"),
        ({"name": "x", "shape": [1]}, "'dtype' must be given with 'shape'"),
        ({"name": "h.{i}.x", "shape": [1], "dtype": "F32"}, "nothing is captured as {i}"),
        ({"name": "x", "like": "h.{i}.norm.weight"}, "would both be 'x'"),
        ({"name": "x", "like": "m"}, "no tensor matches 'm'"),
        ({"name": "x", "shape": [2], "dtype": "I64", "init": "normal"}, "normal"),
    ],
)
def test_what_cannot_be_made_is_an_error(bench, parameters, problem):
    with pytest.raises(PlanError, match=r"steps\[0\] \(create\)") as raised:
        bench.given(OLD).plan({"op": "create", **parameters})
    assert problem in str(raised.value)
