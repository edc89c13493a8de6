"""keep_experts: what is left, under which numbers, and what the router has of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import Bench, assert_identical, example_mixture, write

BLOCKS = {"layers.0": "layers.0.moe", "layers.1": "layers.1.moe"}


def routing(bench: Bench, **layers: Any) -> str:
    (bench.folder / "routing.json").write_text(json.dumps({"surgeon": "routing", "layers": layers}))
    return "routing.json"


def kept(old: dict[str, torch.Tensor], first: list[int], second: list[int]) -> Any:
    """The mixture of the example with these experts."""
    made = {f"layers.0.moe.experts.{new}.{w}.weight": old[f"layers.0.moe.experts.{n}.{w}.weight"]
            for new, n in enumerate(first) for w in "ab"}  # fmt: skip
    made["layers.0.moe.gate.weight"] = old["layers.0.moe.gate.weight"][first]
    for name in ("experts.up", "router.weight", "router.bias"):
        made[f"layers.1.moe.{name}"] = old[f"layers.1.moe.{name}"][second]
    return made


@pytest.mark.parametrize("by", [[2, 0], ["1:3"], [-1]])
def test_listed_experts_stay_in_their_order_in_every_layer(bench: Bench, by: Any) -> None:
    old = example_mixture()
    found = bench.given(old).operate({"op": "keep_experts", "by": by}).tensors
    wanted = {"1:3": [1, 2], -1: [2]}.get(by[0], by)
    assert_identical(found, kept(old, wanted, wanted))


@pytest.mark.parametrize(("score", "first", "second"), [
    ("frequency", [0, 2], [0, 1]),  # of equal ones, the first
    ("weight", [1, 2], [1, 2]),
])  # fmt: skip
def test_by_a_file_each_layer_keeps_its_own(
    bench: Bench, score: str, first: list[int], second: list[int]
) -> None:
    old = example_mixture()
    layers = {"layers.0": {"frequency": [0.5, 0.1, 0.4], "weight": [0.1, 0.5, 0.4]},
              "model.layers.1": {"frequency": [1, 1, 1], "weight": [0, 1e-9, 1]}}  # fmt: skip
    step = {"op": "keep_experts", "by": routing(bench, **layers), "keep": 2, "score": score}
    assert_identical(bench.given(old).operate(step).tensors, kept(old, first, second))


LAYER = {"frequency": [1, 2, 3], "weight": [1, 2, 3]}


@pytest.mark.parametrize(("layers", "more", "problem"), [
    ({}, {"keep": 2}, "routing.json: says nothing of 'layers.0'"),
    ({"layers.0": LAYER, "layers.1": LAYER}, {}, "'keep' says how many"),
    ({"layers.0": LAYER, "layers.1": LAYER}, {"keep": 4}, "has 3 experts, and no 4 to keep"),
    ({"layers.0": LAYER, "layers.1": {"frequency": [1, 2]}}, {"keep": 2},
     "layers.layers.1.frequency: has 2 scores, but there are 3 here"),
    ({"layers.0": LAYER, "layers.1": {"frequency": ["a", 2, 3]}}, {"keep": 2},
     "is no list of finite numbers"),
])  # fmt: skip
def test_files_that_do_not_fit_are_refused(
    bench: Bench, layers: Any, more: Any, problem: str
) -> None:
    step = {"op": "keep_experts", "by": routing(bench, **layers), **more}
    with pytest.raises(PlanError, match=problem):
        bench.given(example_mixture()).plan(step)


@pytest.mark.parametrize(("change", "by", "problem"), [
    ({}, [3], "'layers.0.moe': 3 is not among the entries, which are 0 to 2"),
    ({"layers.0.moe.gate.weight": torch.zeros(4, 8)}, [0], "beside 3 experts: no dimension counts"),
    ({"layers.0.moe.experts.4.a.weight": torch.zeros(6, 8)}, [0], "has no expert 3, but an expert"),
    ({"layers.0.moe.experts.1.a.weight": torch.zeros(6, 9)}, [0], "expert 1 has other tensors"),
    ({"layers.1.moe.experts.down": torch.zeros(4, 6, 8)}, [0], "dimension 0 does not count"),
    ({"layers.2.moe.experts.up": torch.zeros(3, 6, 8)}, [0], "no router beside them"),
])  # fmt: skip
def test_what_is_not_understood_is_refused(
    bench: Bench, change: Any, by: Any, problem: str
) -> None:
    with pytest.raises(PlanError, match=problem):
        bench.given(example_mixture() | change).plan({"op": "keep_experts", "by": by})


@pytest.mark.parametrize(("config", "by", "said"), [
    ({"num_experts_per_tok": 2}, [0, 1], {}),
    ({"text_config": {"moe_topk": 2, "hidden_size": 8}}, [0], {"text_config": {"moe_topk": 1}}),
])  # fmt: skip
def test_config_says_how_many_are_chosen_where_that_is_more_than_are_left(
    bench: Bench, config: Any, by: list[int], said: Any
) -> None:
    bench.input = bench.folder / "model"
    bench.input.mkdir()
    write(bench.input / "model.safetensors", example_mixture())
    (bench.input / "config.json").write_text(json.dumps(config))
    assert bench.plan({"op": "keep_experts", "by": by}).config == said


def test_of_groups_of_experts_as_many_are_kept_of_each(bench: Bench) -> None:
    bench.input = bench.folder / "model"
    bench.input.mkdir()
    tensors = {f"layers.0.moe.experts.{n}.a": torch.full((2,), float(n)) for n in range(6)}
    gate = torch.arange(6.0).view(6, 1)
    write(bench.input / "model.safetensors", {**tensors, "layers.0.moe.gate.weight": gate})
    (bench.input / "config.json").write_text(json.dumps({"n_group": 2}))
    by = routing(bench, **{"layers.0": {"frequency": [9, 8, 7, 1, 3, 2]}})
    found = bench.operate({"op": "keep_experts", "by": by, "keep": 4})
    assert found["layers.0.moe.gate.weight"].reshape(-1).tolist() == [0, 1, 4, 5]
    with pytest.raises(PlanError, match="3 experts cannot be as many of each of 2 groups"):
        bench.plan({"op": "keep_experts", "by": by, "keep": 3})
