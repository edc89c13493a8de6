"""Quantised weights: found by names and dtypes, moved whole, and never calculated with."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from surgeon import surgery
from surgeon.base.errors import PlanError
from surgeon.draft import quantised
from tests.network import opened_tensors, write_adapter

FP8, ONES = torch.float8_e4m3fn, torch.ones


def integers(*shape: int) -> torch.Tensor:
    return torch.arange(int(torch.tensor(shape).prod()), dtype=torch.int32).reshape(shape)


def bytes_of(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


PLAIN = {"k.weight": torch.randn(4, 8), "q.bias": torch.randn(4)}
GROUPS = {
    "fp8 blocks": {"q.weight": ONES(4, 8).to(FP8), "q.weight_scale_inv": ONES(1, 1)},
    "fp8 rows": {"q.weight": ONES(4, 8).to(FP8), "q.weight_scale": ONES(4, 1),
                 "q.input_scale": ONES(1)},
    "fused experts": {"q": ONES(2, 4, 8).to(FP8), "q_scale_inv": ONES(2, 1, 1)},
    "int8": {"q.weight": ONES(4, 8).to(torch.int8), "q.weight_scale": ONES(4, 1)},
    "gptq": {"q.qweight": integers(1, 4), "q.qzeros": integers(1, 1),
             "q.scales": ONES(1, 4).half(), "q.g_idx": integers(8)},
    "awq": {"q.qweight": integers(8, 1), "q.qzeros": integers(1, 1), "q.scales": ONES(1, 8).half()},
    "bitsandbytes 4": {"q.weight": bytes_of(16, 1), "q.weight.absmax": ONES(1),
                       "q.weight.quant_map": ONES(16),
                       "q.weight.quant_state.bitsandbytes__nf4": bytes_of(9)},
    "bitsandbytes 8": {"q.weight": ONES(4, 8).to(torch.int8), "q.SCB": ONES(4),
                       "q.weight_format": torch.tensor(0, dtype=torch.uint8)},
    "mxfp4": {"q_blocks": bytes_of(4, 1, 16), "q_scales": bytes_of(4, 1)},
    "packed": {"q.weight_packed": integers(4, 1), "q.weight_scale": ONES(4, 1),
               "q.weight_shape": torch.tensor([4, 8])},
}  # fmt: skip
EACH = [pytest.param(tensors, id=name) for name, tensors in GROUPS.items()]


def problems(bench, *steps, **rest):
    with pytest.raises(PlanError) as raised:
        bench.plan(*steps, **rest)
    return raised.value.problems


@pytest.mark.parametrize("tensors", EACH)
def test_group_is_found_by_names_and_dtypes(tensors, bench):
    bench.given({**PLAIN, **tensors})
    (group,) = quantised.groups(opened_tensors(bench.input).tensors)
    assert sorted(group.parts.values()) == sorted(tensors)
    assert group.codes == next(iter(tensors))


@pytest.mark.parametrize(
    "tensors",
    [{"q.weight": ONES(4, 8), "q.weight_scale": ONES(4)}, {"q.weight": ONES(4, 8).to(FP8)},
     {"q.scale": ONES(4)}, {"res_blocks": ONES(3), "res_scales": ONES(3)}],
)  # fmt: skip
def test_what_only_looks_like_codes_is_left_alone(tensors, bench):
    bench.given(tensors)
    assert quantised.groups(opened_tensors(bench.input).tensors) == []


CALCULATING = [
    {"op": "cast", "target": "**", "dtype": "bfloat16", "integers": "cast", "overflow": "saturate"},
    {"op": "scale", "target": "q*", "by": 2.0},
    {"op": "average", "models": ["other"], "missing": "keep"},
    {"op": "average", "models": ["other"], "into": "mean"},
]


@pytest.mark.parametrize("step", CALCULATING, ids=lambda step: step["op"])
@pytest.mark.parametrize("tensors", [EACH[0], EACH[1], EACH[4], EACH[7]])
def test_codes_are_never_numbers(tensors, step, bench):
    models = {"other": {**PLAIN, **tensors}} if "models" in step else {}
    bench.given({**PLAIN, **tensors}, **models)
    found = problems(bench, step)
    assert any('"op": "dequantize", "target": "q"' in line for line in found), found


@pytest.mark.parametrize(
    "step",
    [{"op": "widen", "target": "q", "rows": 1}, {"op": "narrow", "target": "q", "keep": "0:2"},
     {"op": "reinit", "target": "q.weight"}, {"op": "clamp", "target": "q.weight", "max": 0.5},
     {"op": "transpose", "target": "q.weight"}, {"op": "replace", "target": "q", "rows": 4}],
    ids=lambda step: step["op"],
)  # fmt: skip
def test_size_and_values_of_codes_stay(step, bench):
    bench.given({**PLAIN, **GROUPS["fp8 blocks"]})
    assert "dequantize" in problems(bench, step)[0]


def test_adapter_is_not_added_to_codes(bench):
    bench.given({**PLAIN, **GROUPS["fp8 blocks"]})
    write_adapter(
        bench.folder / "adapter",
        {"q.lora_A.weight": torch.randn(2, 8), "q.lora_B.weight": torch.randn(4, 2)},
    )
    (problem,) = problems(bench, {"op": "lora_merge", "adapter": "adapter"})
    assert '"dequantize": true' in problem


def test_codes_of_another_model_are_no_numbers_either(bench):
    bench.given({"q.weight": torch.randn(4, 8)}, other=GROUPS["fp8 blocks"])
    step = {"op": "average", "models": ["other"], "missing": "keep"}
    assert "'q.weight' (FP8 codes" in problems(bench, step)[0]


@pytest.mark.parametrize("tensors", EACH)
def test_weight_moves_whole(tensors, bench):
    moved = {f"layers.0.{name}": tensor for name, tensor in {**PLAIN, **tensors}.items()}
    bench.given(moved)
    made = bench.operate(
        {"op": "rename", "from": "layers.{i}.{rest**}", "to": "h.{i}.{rest}"},
        {"op": "layers", "container": "h", "take": [0, 0]},
        {"op": "copy", "from": "h.0.{rest**}", "to": "kept.{rest}"},
        {"op": "delete", "target": "h.0"},
    )
    names = [name.removeprefix("layers.0.") for name in moved]
    assert sorted(made.tensors) == sorted(f"{p}.{n}" for p in ("h.1", "kept") for n in names)


@pytest.mark.parametrize(
    "step",
    [{"op": "rename", "from": "q.weight", "to": "p.weight"},
     {"op": "copy", "from": "q.weight", "to": "p.weight"},
     {"op": "delete", "target": "q.weight_scale"}, {"op": "keep", "target": ["k", "q.weight"]},
     {"op": "delete", "target": "q.weight"}],
    ids=lambda step: step["op"],
)  # fmt: skip
def test_part_of_a_weight_does_not_move_alone(step, bench):
    bench.given({**PLAIN, **GROUPS["fp8 rows"]})
    (problem,) = {line.partition("; ")[2] for line in problems(bench, step)}
    assert problem == "select it whole: 'q'"


def test_codes_and_scales_of_two_weights_do_not_mix(bench):
    bench.given({**GROUPS["fp8 rows"], **{n.replace("q", "p"): t.clone() for n, t in
                                          GROUPS["fp8 rows"].items()}})  # fmt: skip
    swap = {"op": "rename", "from": ["q.weight", "p.weight"], "to": ["p.weight", "q.weight"]}
    assert "would come from elsewhere" in problems(bench, swap)[0]


def test_layers_that_become_zeros_are_no_codes(bench):
    bench.given({f"h.0.{name}": t for name, t in GROUPS["fp8 rows"].items()})
    take = [0, {"range": "0", "zero": ["q"]}]
    assert problems(bench, {"op": "layers", "container": "h", "take": take})


def test_format_that_is_not_known_is_left_alone(bench):
    folder = bench.folder / "model"
    folder.mkdir()
    save_file({"q.codes": integers(4, 8), "q.book": ONES(4), **PLAIN}, folder / "model.safetensors")
    config = {"model_type": "x", "quantization_config": {"quant_method": "aqlm"}}
    (folder / "config.json").write_text(json.dumps(config))
    recipe = bench.recipe({"op": "scale", "target": "**", "by": 2.0})
    with (
        pytest.raises(PlanError, match="load it with aqlm's own code"),
        surgery.opened(recipe, str(folder), {}),
    ):
        pass


def test_placeholders_of_zero_3_are_not_operated_on(bench):
    bench.given({"q.weight": torch.empty(0), "k.weight": torch.ones(2)})
    (problem,) = problems(bench, {"op": "scale", "target": "**", "by": 2.0})
    assert "'q.weight' is of shape (0,), as DeepSpeed's ZeRO-3 leaves" in problem
    bench.plan({"op": "delete", "target": "q.weight"})
