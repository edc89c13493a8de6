"""Upcycling against transformers: a Mixtral made of a Mistral computes what that did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from surgeon import recipe, surgery
from surgeon.output.execute import Options

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None,
    # The two models have other defaults for these.
    "rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}  # fmt: skip


@pytest.mark.parametrize("chosen", [1, 2, 4])
def test_mixtral_of_equal_experts_computes_what_the_dense_model_did(
    chosen: int, tmp_path: Path
) -> None:
    from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    dense = MistralForCausalLM(MistralConfig(**SIZES)).double().eval()
    dense.save_pretrained(tmp_path / "dense")
    plan = recipe.load("upcycle-to-experts", {"experts": 4, "hidden_size": 16})
    with surgery.opened(plan, str(tmp_path / "dense"), {}) as opened:
        surgery.write(opened, tmp_path / "experts", Options(), force=False)
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=chosen)
    (tmp_path / "experts/config.json").write_text(json.dumps(config.to_dict()))
    sparse, loading = MixtralForCausalLM.from_pretrained(
        tmp_path / "experts",
        output_loading_info=True,
        dtype=torch.float64,
        experts_implementation="eager",
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(30).view(2, 15)
    with torch.no_grad():
        expected, found = dense(ids).logits, sparse.eval()(ids).logits
    # The routers' softmax is in float32, whatever the model's dtype.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
