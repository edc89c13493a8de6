"""upcycle: experts are copies, routers are new, and the function stays; see also acceptance."""

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import assert_identical

NAMES = {"gate": "w1", "down": "w2", "up": "w3"}


def step(experts=3, **parameters):
    return {
        "op": "upcycle",
        "target": [f"layers.{{i}}.mlp.{name}_proj" for name in NAMES],
        "experts": experts,
        "into": [f"layers.{{i}}.moe.experts.{{expert}}.{name}" for name in NAMES.values()],
        "router": "layers.{i}.moe.gate.weight",
        "columns": 4,
        **parameters,
    }


def dense(layers=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"gate": (6, 4), "up": (6, 4), "down": (4, 6)}
    tensors = {
        f"layers.{layer}.mlp.{name}_proj.weight": torch.randn(shape, generator=generator).to(dtype)
        for layer in range(layers)
        for name, shape in shapes.items()
    }
    return tensors | {"norm.weight": torch.ones(4)}


def problems(bench, *steps):
    with pytest.raises(PlanError) as raised:
        bench.plan(*steps)
    return [line.split(": ", 2)[2] for line in raised.value.problems]


def silu_layer(x, w1, w2, w3):
    return (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T


def mixture(x, tensors, layer, experts, chosen):
    """A Mixtral block: the softmax over the chosen experts' logits weighs their outputs."""
    logits = x @ tensors[f"layers.{layer}.moe.gate.weight"].T
    values, numbers = logits.topk(chosen)
    out = torch.zeros_like(x)
    for row in range(len(x)):
        for share, number in zip(values[row].softmax(0), numbers[row], strict=True):
            place = f"layers.{layer}.moe.experts.{number}"
            weights = (tensors[f"{place}.{name}.weight"] for name in ("w1", "w2", "w3"))
            out[row] += share * silu_layer(x[row], *weights)
    return out


def test_experts_are_copies_and_the_rest_stays(bench):
    old = dense()
    made = bench.given(old).operate(step()).tensors
    expected = {"norm.weight": old["norm.weight"]}
    for layer in range(2):
        expected[f"layers.{layer}.moe.gate.weight"] = made[f"layers.{layer}.moe.gate.weight"]
        for expert in range(3):
            for name, new in NAMES.items():
                source = old[f"layers.{layer}.mlp.{name}_proj.weight"]
                expected[f"layers.{layer}.moe.experts.{expert}.{new}.weight"] = source
    assert_identical(made, expected)


@pytest.mark.parametrize("chosen", [1, 2, 3])
def test_function_is_the_dense_layers(bench, chosen):
    old = {name: tensor.double() for name, tensor in dense().items()}
    made = bench.given(old).operate(step()).tensors
    x = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for layer in range(2):
        before = (old[f"layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "down", "up"))
        after = mixture(x, made, layer, 3, chosen)
        torch.testing.assert_close(after, silu_layer(x, *before), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_routers_are_drawn_for_each_layer_in_the_dense_dtype(bench, dtype):
    made = bench.given(dense(dtype=dtype)).operate(step(experts=400)).tensors
    gates = [made[f"layers.{layer}.moe.gate.weight"] for layer in range(2)]
    assert all(gate.shape == (400, 4) and gate.dtype == dtype for gate in gates)
    assert not torch.equal(*gates)
    assert gates[0].float().std().item() == pytest.approx(0.02, rel=0.1)


def test_router_gets_another_init(bench):
    made = bench.given(dense()).operate(step(init="zeros"))
    assert made["layers.1.moe.gate.weight"].tolist() == [[0.0] * 4] * 3


def test_experts_and_routers_count_as_new(bench):
    made = bench.given(dense()).operate(step())
    new = made.lineage("layers.0.moe.experts.2.w1.weight")
    assert new[0]["from"] == ["layers.0.mlp.gate_proj.weight"]
    assert new[0]["new"] == ["layers.0.moe.experts.2.w1.weight"]
    assert made.lineage("layers.0.moe.gate.weight")[0]["init"] == "normal"


def test_tied_layers_become_tied_experts(bench):
    old = {name: tensor for name, tensor in dense(1).items() if "layers" in name}
    ties = {name.replace("layers.0", "layers.1"): name for name in old}
    made = bench.given(old, ties).operate(step())
    places = [f"moe.experts.{e}.{name}.weight" for e in range(3) for name in NAMES.values()]
    assert made.manifest["ties"] == {f"layers.1.{p}": f"layers.0.{p}" for p in places}


def test_whole_module_becomes_experts(bench):
    old = {"fc.weight": torch.randn(3, 4), "fc.bias": torch.randn(3)}
    made = bench.given(old).operate(
        step(2, target="fc", into="experts.{expert}", router="gate.weight")
    )
    expected = {f"experts.{e}.{leaf}": old[f"fc.{leaf}"] for e in (0, 1)
                for leaf in ("weight", "bias")}  # fmt: skip
    assert_identical(made.tensors, {**expected, "gate.weight": made["gate.weight"]})


# --- What is wrong --------------------------------------------------------------------------------


def test_columns_that_no_weight_has_are_an_error_for_each_layer(bench):
    found = problems(bench.given(dense()), step(columns=5))
    assert len(found) == 2
    assert found[0].startswith("'layers.0.moe.gate.weight' would have 5 columns, but ")


def test_experts_that_would_share_names_are_an_error(bench):
    found = problems(bench.given(dense()), step(target="layers", into="layers.moe", router="gate"))
    assert found == ["'layers.moe' does not say {expert}, by which the experts' names differ"]


def test_names_that_are_taken_are_an_error(bench):
    old = {**dense(1), "layers.0.moe.gate.weight": torch.ones(2)}
    assert problems(bench.given(old), step()) == [
        "'layers.0.moe.gate.weight' and 'layers.{i}.moe.gate.weight' would both be "
        "'layers.0.moe.gate.weight'"
    ]


def test_one_router_for_two_layers_is_what_the_captures_say(bench):
    made = bench.given(dense()).operate(step(router="gate.weight"))
    assert made["gate.weight"].shape == (3, 4)


def test_capture_called_expert_is_an_error(bench):
    parameters = {"target": "layers.{expert}.mlp.up_proj", "into": "x.{expert}"}
    (found,) = problems(bench.given(dense()), step(**parameters, router="gate"))
    assert found.startswith("{expert} is the expert's number")
