"""Layers that are what they are by their number stay so, or are refused, wherever one goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

WINDOW = {"use_sliding_window": True, "sliding_window": 4}
NO_LIST = ("layer_types",)
# Model type, settings, keys that config.json leaves to the class.
CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("gemma2", {}, NO_LIST),
    ("gemma3_text", {"sliding_window_pattern": 2, "layer_types": None}, ()),
    ("gemma3_text", {"sliding_window_pattern": 2, "layer_types": None}, NO_LIST),
    ("cohere2", {"sliding_window_pattern": 2, "layer_types": None}, NO_LIST),
    ("exaone4", {"sliding_window_pattern": 2, "layer_types": None}, NO_LIST),
    ("qwen2", WINDOW | {"layer_types": None, "max_window_layers": 2}, NO_LIST),
    ("qwen2", WINDOW | {"layer_types": None, "max_window_layers": 2}, ()),
    ("qwen3", WINDOW | {"layer_types": None, "max_window_layers": 1}, NO_LIST),
    ("qwen2_moe", {"decoder_sparse_step": 2}, ()),
    ("qwen2_moe", WINDOW | {"layer_types": None, "max_window_layers": 2}, NO_LIST),
    ("qwen3_moe", {"decoder_sparse_step": 2}, ()),
    ("qwen3_moe", {"mlp_only_layers": [0, 2]}, ()),
    ("smollm3", {"no_rope_layer_interval": 2, "no_rope_layers": None, "layer_types": None},
     ("no_rope_layers", "layer_types")),
    ("smollm3", {"no_rope_layer_interval": 2, "no_rope_layers": None, "layer_types": None}, ()),
    ("llama4_text", {"interleave_moe_layer_step": 2, "moe_layers": None}, ("moe_layers",)),
    ("llama4_text", {"interleave_moe_layer_step": 2, "moe_layers": None}, ()),
    ("llama4_text", {"no_rope_layers": [1, 0, 1, 0], "layer_types": None}, NO_LIST),
    ("deepseek_v3", {"first_k_dense_replace": 2}, ()),
    ("glm4_moe", {"first_k_dense_replace": 2}, ()),
    ("gpt_oss", {}, NO_LIST),
    ("olmo3", {}, NO_LIST),
    ("gpt_neo", {}, ()),
    ("lfm2", {}, NO_LIST),
    ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}, ()),
    ("minimax", {}, NO_LIST),
    ("led", {}, ()),
    ("switch_transformers", {}, ()),
    ("ernie4_5_moe", {}, ()),
    ("diffllama", {}, ()),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "settings", "without"), CASES)
def test_layers_stay_what_they_are(
    tmp_path: Path, model_type: str, settings: dict[str, Any], without: tuple[str, ...]
) -> None:
    pytest.importorskip("transformers")
    from tests.folders.jobs import DONE, REFUSED, outcomes

    for dropped in range(4):
        (made,) = outcomes(
            model_type, tmp_path / str(dropped), settings=settings, without=without,
            dropped=dropped, jobs=["drop"],
        )  # fmt: skip
        assert made[0] == "drop"
        assert made[1] in (DONE, REFUSED), made
