"""Pruned heads of models whose class alone asks for the size of one, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from surgeon.cli.commands import commands

transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
IDS = {"input_ids": torch.arange(3, 12)[None]}
PIXELS = {"pixel_values": torch.arange(768.0).sin().view(1, 3, 16, 16)}
SOUND = {"input_values": torch.arange(4000.0).sin()[None], "decoder_input_ids": IDS["input_ids"]}
HEADS = {"hidden_size": 24, "num_attention_heads": 6}
VIT = HEADS | {"intermediate_size": 16, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
SHARED = HEADS | {"num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16,
                  "vocab_size": 32, "pad_token_id": 0}  # fmt: skip
VISION = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
          "intermediate_size": 16, "image_size": 28, "patch_size": 14}  # fmt: skip
BEFORE_SAVING = {"qkv": "**.attention.(query|key|value)", "out": "**.attention.output.dense"}

# Of each class: its config, what goes in, where its heads are on disk, and what reads them in
# memory. Six heads of four; where two of keys serve them, half of the queries go with one.
KINDS: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any], str]] = {
    "DeiTForImageClassification": (VIT, PIXELS, BEFORE_SAVING, "attention.o_proj"),
    "Dinov2ForImageClassification": (VIT, PIXELS, BEFORE_SAVING, "attention.o_proj"),
    "LlavaOnevisionForConditionalGeneration": (
        {"text_config": {"model_type": "qwen2", **SHARED}, "image_token_index": 31,
         "vision_config": {"model_type": "siglip_vision_model", **VISION}, "video_token_index": 30},
        IDS, {"qkv": "**.language_model.**.q_proj", "kv": "**.language_model.**.(k|v)_proj",
              "per_kv": 3, "out": "**.language_model.**.o_proj"}, "self_attn.o_proj"),
    "Lfm2VlForConditionalGeneration": (
        {"text_config": {"model_type": "lfm2", **SHARED, "layer_types": ["conv", "full_attention"]},
         "image_token_id": 31,
         "vision_config": {"model_type": "siglip2_vision_model", "num_patches": 4, **VISION}},
        IDS, {"qkv": "**.language_model.**.q_proj", "kv": "**.language_model.**.(k|v)_proj",
              "per_kv": 3, "out": "**.language_model.**.self_attn.out_proj"},
        "language_model.layers.1.self_attn.out_proj"),
    "MoonshineForConditionalGeneration": (
        {"hidden_size": 24, "intermediate_size": 16, "vocab_size": 32, "pad_token_id": 0,
         **{f"{part}_{name}": number for part in ("encoder", "decoder") for name, number in
            (("num_hidden_layers", 1), ("num_attention_heads", 6), ("num_key_value_heads", 6))}},
        SOUND, {"qkv": "**.(q|k|v)_proj", "out": "**.o_proj"}, "o_proj"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_model_without_heads_computes_what_it_did_without_their_outputs(
    kind: str, tmp_path: Path
) -> None:
    settings, inputs, places, reader = KINDS[kind]
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    model = cls(cls.config_class(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "in")
    given = {"head_size": 4, "heads": "0:3"} | places
    words = [f"--set={key}={json.dumps(value)}" for key, value in given.items()]
    words = ["apply", "prune-heads", str(tmp_path / "in"), str(tmp_path / "out"), *words]
    said = CliRunner().invoke(commands, words)
    assert said.exit_code == 0, said.output
    found, info = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(reader):
                module.weight[:, :12] = 0
        torch.testing.assert_close(found.eval()(**inputs).logits, model(**inputs).logits)
