"""Head 5 leaves every layer: of GPT-2's fused projection, and of GPT-NeoX's interleaved one.

The networks are transformers' own. A pruned one must say what the whole one says once nothing reads
the head any more.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.network import Bench, assert_identical

GPT2_STEP = {
    "op": "narrow", "target": "transformer.h.*.attn.c_attn", "drop": 5, "parts": 3, "dim": 1,
    "consumers": [{"target": "transformer.h.*.attn.c_proj", "dim": 0}],
}  # fmt: skip
NEOX_STEP = {
    "op": "narrow", "target": "gpt_neox.layers.*.attention.query_key_value", "drop": 5,
    "block": 3 * 8, "consumers": [{"target": "gpt_neox.layers.*.attention.dense", "block": 8}],
}  # fmt: skip


def attention_of_gpt2(width: int, layers: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"c_attn.weight": (width, 3 * width), "c_attn.bias": (3 * width,),
              "c_proj.weight": (width, width), "c_proj.bias": (width,)}  # fmt: skip
    return {
        f"transformer.h.{layer}.attn.{name}": torch.randn(shape, generator=generator)
        for layer in range(layers)
        for name, shape in shapes.items()
    }


def without_head(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Cut a dimension into 12 heads of 64, and leave out the sixth."""
    heads = tensor.unflatten(dim, (12, 64)).unbind(dim)
    return torch.cat([head for number, head in enumerate(heads) if number != 5], dim)


def test_shapes_and_values_at_the_geometry_of_gpt2_small(bench: Bench) -> None:
    old = attention_of_gpt2(768, layers=2)
    made = bench.given(old).operate({**GPT2_STEP, "block": 64}).tensors
    assert made["transformer.h.0.attn.c_attn.weight"].shape == (768, 2112)
    assert made["transformer.h.0.attn.c_proj.weight"].shape == (704, 768)
    expected = {}
    for name, tensor in old.items():
        parts = tensor.split(768, dim=-1)
        fused = torch.cat([without_head(part, part.ndim - 1) for part in parts], -1)
        narrow = without_head(tensor, 0) if name.endswith("c_proj.weight") else tensor
        expected[name] = fused if "c_attn" in name else narrow
    assert_identical(made, expected)


def pruned(bench: Bench, model: nn.Module, step: dict[str, Any]) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return bench.given(tensors).operate(step).tensors


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of imports; none of them is ours
def test_gpt2_without_a_head_says_what_it_says_when_nothing_reads_it(bench: Bench) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=31, n_embd=48, n_layer=2, n_head=6, n_positions=16)
    whole = GPT2LMHeadModel(config).double().eval()
    narrow = GPT2LMHeadModel(config).double().eval()
    for block in narrow.transformer.h:
        block.attn.c_attn, block.attn.c_proj = Conv1D(3 * 40, 48), Conv1D(48, 40)
        block.attn.split_size, block.attn.num_heads = 40, 5
    narrow.double().load_state_dict(pruned(bench, whole, {**GPT2_STEP, "block": 8}))
    tokens = torch.randint(31, (3, 16))
    before = whole(tokens).logits
    with torch.no_grad():
        for block in whole.transformer.h:
            block.attn.c_proj.weight[40:48] = 0
    assert not torch.allclose(before, whole(tokens).logits)
    torch.testing.assert_close(narrow(tokens).logits, whole(tokens).logits, rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of imports; none of them is ours
def test_gpt_neox_without_a_head_says_what_it_says_when_nothing_reads_it(bench: Bench) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=31, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    whole = GPTNeoXForCausalLM(config).double().eval()
    narrow = GPTNeoXForCausalLM(config).double().eval()
    for layer in narrow.gpt_neox.layers:
        layer.attention.query_key_value = nn.Linear(48, 3 * 40)
        layer.attention.dense = nn.Linear(40, 48)
    narrow.double().load_state_dict(pruned(bench, whole, NEOX_STEP))
    tokens = torch.randint(31, (3, 16))
    before = whole(tokens).logits
    with torch.no_grad():
        for layer in whole.gpt_neox.layers:
            layer.attention.dense.weight[:, 40:48] = 0
    assert not torch.allclose(before, whole(tokens).logits)
    torch.testing.assert_close(narrow(tokens).logits, whole(tokens).logits, rtol=0, atol=1e-14)
