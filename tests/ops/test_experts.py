"""experts: which layers become experts, under which names, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import Bench, assert_identical, example_dense, write

MLP, MOE = "model.layers.0.mlp", "model.layers.0.block_sparse_moe"
PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def of(tensors: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    return {f"{MOE}.experts.{number}.{ours}.weight": tensors[f"{MLP}.{theirs}.weight"]
            for theirs, ours in PARTS.items()}  # fmt: skip


@pytest.mark.parametrize(("models", "order"), [
    ("*", [0, 1, 2]),
    (["b", {"model": "a"}, {"model": "b", "name": "again"}], [2, 1, 2]),
])  # fmt: skip
def test_feed_forward_layers_become_experts_in_the_order_given(
    bench: Bench, models: Any, order: list[int]
) -> None:
    dense = [example_dense(seed) for seed in range(3)]
    bench.given(dense[0] | {"norm": torch.ones(8)}, a=dense[1], b=dense[2])
    made = bench.operate({"op": "experts", "models": models, "layout": "mixtral"}).tensors
    router = made.pop(f"{MOE}.gate.weight")
    expected = {"norm": torch.ones(8)}
    for number, which in enumerate(order):
        expected |= of(dense[which], number)
    assert_identical(made, expected)
    assert router.shape == (3, 8)
    assert 0.005 < router.std() < 0.05


def test_rows_of_a_file_are_the_experts_by_their_names(bench: Bench) -> None:
    rows = {f"{MLP}.{name}": torch.randn(8, dtype=torch.float64) for name in ("a", "@input")}
    write(bench.folder / "rows.safetensors", rows)
    step = {"op": "experts", "models": "*", "layout": "qwen3_moe",
            "router": {"rows": "rows.safetensors"}}  # fmt: skip
    made = bench.given(example_dense(0), a=example_dense(1)).operate(step)
    expected = torch.stack([rows[f"{MLP}.@input"], rows[f"{MLP}.a"]]).float()
    torch.testing.assert_close(made[f"{MLP}.gate.weight"], expected, rtol=0, atol=0)


def test_a_scale_is_the_last_projection_s(bench: Bench) -> None:
    models = ["@input", {"model": "a", "scale": 0.3}]
    dense = [example_dense(0), example_dense(1)]
    made = bench.given(dense[0], a=dense[1]).operate(
        {"op": "experts", "models": models, "layout": "mixtral"}
    )
    expected = (dense[1][f"{MLP}.down_proj.weight"].double() * 0.3).float()
    torch.testing.assert_close(made[f"{MOE}.experts.1.w2.weight"], expected, rtol=0, atol=0)
    same = dense[1][f"{MLP}.up_proj.weight"]
    torch.testing.assert_close(made[f"{MOE}.experts.1.w3.weight"], same, rtol=0, atol=0)


@pytest.mark.parametrize(("step", "problem"), [
    ({}, "there is no config.json beside the input: say as what"),
    ({"per_token": 3, "layout": "mixtral"}, "per_token is 3, but there are 2 experts"),
    ({"models": ["a", "a"], "layout": "mixtral"}, "there are several experts 'a'; give each"),
    ({"models": ["a", "c"], "layout": "mixtral"}, "there is no model 'c'"),
    ({"models": ["a", "odd"], "layout": "mixtral"}, r"up_proj.weight' is F32 \(6, 8\) here but F32 "
     r"\(7, 8\) in model 'odd'; experts are of one size"),
    ({"shared": "a", "layout": "mixtral"}, "mixtral has no shared expert"),
    ({"layout": "qwen2_moe"}, "has an expert that all tokens go through: say which"),
    ({"layout": "mixtral", "router": {"prompts": {"a": ["x"], "c": ["y"]}}},
     "router.prompts: there is no expert 'c'"),
    ({"layout": "mixtral", "router": {"prompts": {"a": ["x"]}}}, "none for expert '@input'"),
    ({"layout": "mixtral", "router": {"prompts": {"a": ["x"], "@input": ["y"]}}},
     "there is no one 'embed_tokens.weight'"),
])  # fmt: skip
def test_what_cannot_be_known_is_refused(bench: Bench, step: Any, problem: str) -> None:
    odd = example_dense(2) | {f"{MLP}.up_proj.weight": torch.zeros(7, 8)}
    bench.given(example_dense(0), a=example_dense(1), odd=odd)
    with pytest.raises(PlanError, match=problem):
        bench.plan({"op": "experts", "models": ["@input", "a"], "about": "odd", **step})


@pytest.mark.parametrize(("change", "more", "problem"), [
    ({"model_type": "gpt2"}, {}, "no mixture is known for model_type 'gpt2', but for deepseek_v3"),
    ({"model_type": "qwen3"}, {"layout": "mixtral"}, "a qwen3 becomes no mixtral"),
    ({"hidden_act": "gelu"}, {}, "hidden_act is 'gelu', which is not made a mixtral"),
    ({"text_config": {}}, {}, "it has a text_config"),
])  # fmt: skip
def test_configs_that_no_mixture_is_like_are_refused(
    bench: Bench, change: Any, more: Any, problem: str
) -> None:
    folder = bench.folder / "input"
    folder.mkdir()
    write(folder / "model.safetensors", example_dense(0))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **change}))
    bench.input = folder
    bench.models["a"] = str(write(bench.folder / "a.safetensors", example_dense(1)))
    with pytest.raises(PlanError, match=problem):
        bench.plan({"op": "experts", "models": "*", **more})


def test_prompts_need_the_tokenizer_of_the_input(bench: Bench) -> None:
    router = {"prompts": {"a": ["x"], "@input": ["y"]}}
    step = {"op": "experts", "models": "*", "layout": "mixtral", "router": router}
    embedding = {"model.embed_tokens.weight": torch.zeros(5, 8)}
    bench.given(example_dense(0) | embedding, a=example_dense(1))
    with pytest.raises(PlanError, match=r"there is no tokenizer\.json, which is what"):
        bench.plan(step)
    tensors, folder = bench.input, bench.folder / "model"
    folder.mkdir()
    bench.input = tensors.rename(folder / "model.safetensors").parent
    with pytest.raises(PlanError, match=r"model: there is no tokenizer\.json"):
        bench.plan(step)
