"""Folders whose experts lie in one tensor, as transformers 5 saves them on request."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import Bench, write
from tests.tokens.made import transformers
from tests.tokens.operated import apply

MOE = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 10,
       "hidden_size": 8, "moe_intermediate_size": 6, "num_hidden_layers": 1, "num_experts": 4,
       "num_experts_per_tok": 3}  # fmt: skip
INSIDE = "model.layers.0.mlp"
# As transformers' Qwen3MoeExperts has them.
SHAPES = {f"{INSIDE}.gate.weight": (4, 8), f"{INSIDE}.experts.gate_up_proj": (4, 12, 8),
          f"{INSIDE}.experts.down_proj": (4, 8, 6), "model.norm.weight": (8,)}  # fmt: skip


def changed(bench: Bench, *steps: Any) -> Any:
    source = bench.folder / "input"
    source.mkdir()
    write(source / "model.safetensors", {name: torch.ones(s) for name, s in SHAPES.items()})
    (source / "config.json").write_text(json.dumps(MOE))
    notes = apply(source, bench.folder / "out", *steps)
    assert not [note for note in notes if "no class" in note]
    return json.loads((bench.folder / "out/config.json").read_text())


def test_numbers_follow_experts_in_one_tensor(bench: Bench) -> None:
    assert changed(bench, {"op": "keep_experts", "by": [0, 2]}) == MOE | {
        "num_experts": 2, "num_experts_per_tok": 2}  # fmt: skip


def test_experts_that_are_gone_are_missed_under_the_names_of_single_ones(bench: Bench) -> None:
    with pytest.raises(PlanError, match=r"experts\.\{\}\.down_proj\.weight' is missing"):
        changed(bench, {"op": "delete", "target": f"{INSIDE}.experts.down_proj"})


def test_another_layout_is_said_to_need_no_folder(bench: Bench) -> None:
    with pytest.raises(PlanError, match=r"give an OUTPUT that ends in \.safetensors"):
        changed(bench, {"op": "rename", "from": "model.{rest**}", "to": "decoder.{rest}"})


_SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}  # fmt: skip
_MANY = {"moe_intermediate_size": 8}
CLASSES = {
    "Mixtral": {"num_local_experts": 4},
    "MiniMax": {"num_local_experts": 4, "layer_types": ["full_attention"] * 2},
    "Olmoe": {"num_experts": 4},
    "Qwen2Moe": {"num_experts": 4, **_MANY},
    "Qwen3Moe": {"num_experts": 4, **_MANY},
    "Glm4Moe": {"n_routed_experts": 4, "first_k_dense_replace": 1, **_MANY},
    "DeepseekV3": {"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1, **_MANY,
                   "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
                   "qk_nope_head_dim": 4, "v_head_dim": 4, "num_key_value_heads": 4},
}  # fmt: skip

STEPS = [
    {"op": "keep_experts", "by": [0, 2]},
    {"op": "merge_experts", "by": [[0, 3], [1, 2]]},
    {"op": "layers", "container": "model.layers", "take": [0, 1, 1]},
]


def logits(folder: Any) -> torch.Tensor:
    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, experts_implementation="eager"
    )
    assert not said["missing_keys"], said
    assert not said["unexpected_keys"], said
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(12).reshape(2, 6)).logits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["op"])
def test_both_layouts_of_experts_become_the_same_model(tmp_path: Any, name: str, step: Any) -> None:
    config = getattr(transformers, f"{name}Config")(**_SIZES | CLASSES[name])
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for layout in (False, True):
        model.save_pretrained(tmp_path / f"in{layout}", save_original_format=layout)
        notes = apply(tmp_path / f"in{layout}", tmp_path / f"out{layout}", step)
        assert not [note for note in notes if "no class" in note]
    assert torch.equal(logits(tmp_path / "outFalse"), logits(tmp_path / "outTrue"))
