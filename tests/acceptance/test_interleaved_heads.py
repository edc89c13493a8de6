"""Fused projections that are interleaved by head, as in GPT-NeoX."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.network import Bench, Json, assert_identical

LAYERS, HEADS, HEAD, GONE = 2, 4, 6, 1
WIDTH = HEADS * HEAD
TOKENS = torch.arange(24).reshape(2, 12)
AT = "gpt_neox.layers.{i}.attention"
PARTS = [f"{AT}.query", f"{AT}.key", f"{AT}.value"]
FUSED = f"{AT}.query_key_value"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of imports; none of them is ours
]


@pytest.fixture
def model() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        num_hidden_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS,
        intermediate_size=32, vocab_size=32, bos_token_id=0, eos_token_id=1, use_cache=False,
    )  # fmt: skip
    model = transformers.GPTNeoXForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def split(target: str, into: list[str], dim: int = 0, **rest: Any) -> Json:
    return {"op": "split", "target": target, "dim": dim, "into": into, **rest}


def concat(parts: list[str], into: str, dim: int = 0, **rest: Any) -> Json:
    return {"op": "concat", "from": parts, "dim": dim, "into": into, **rest}


def without(name: str, dim: int, slice_size: int, heads: int = HEADS) -> list[Json]:
    """Cut one head's slice out of every layer's tensor."""
    sizes = [GONE * slice_size, slice_size, (heads - GONE - 1) * slice_size]
    parts = [f"{AT}.{part}" for part in ("before", "gone", "after")]
    leaf = name.partition(".")[2]
    named = [f"{part}.{leaf}" if leaf else part for part in parts]
    return [
        split(f"{AT}.{name}", named, dim, sizes=sizes),
        {"op": "delete", "target": "gpt_neox.layers.*.attention.gone"},
        concat([named[0], named[2]], f"{AT}.{name}", dim),
    ]


def test_heads_are_separated_and_fused_again(bench: Bench, model: Any) -> None:
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bench.given(old)
    separate = split(FUSED, PARTS, parts=3, groups=HEADS)
    made = bench.operate(separate).tensors
    for layer in range(LAYERS):
        at = AT.format(i=layer)
        by_head = old[f"{at}.query_key_value.weight"].view(HEADS, 3, HEAD, WIDTH)
        biases = old[f"{at}.query_key_value.bias"].view(HEADS, 3, HEAD)
        for number, part in enumerate(("query", "key", "value")):
            assert torch.equal(made[f"{at}.{part}.weight"], by_head[:, number].reshape(-1, WIDTH))
            assert torch.equal(made[f"{at}.{part}.bias"], biases[:, number].reshape(-1))
    again = bench.operate(separate, concat(PARTS, FUSED, groups=HEADS)).tensors
    assert_identical(again, old)


FROM_FUSED = [*without("query_key_value", 0, 3 * HEAD), *without("dense.weight", 1, HEAD)]
FROM_SEPARATE = [
    split(FUSED, PARTS, parts=3, groups=HEADS),
    *without("query", 0, HEAD),
    *without("key", 0, HEAD),
    *without("value", 0, HEAD),
    concat(PARTS, FUSED, groups=HEADS - 1),
    *without("dense.weight", 1, HEAD),
]


@pytest.mark.parametrize("steps", [FROM_FUSED, FROM_SEPARATE], ids=["fused", "separate"])
def test_a_removed_head_is_a_head_that_says_nothing(
    bench: Bench, model: Any, steps: list[Json]
) -> None:
    bench.given({name: tensor.clone() for name, tensor in model.state_dict().items()})
    made = bench.operate(*steps).tensors
    with torch.no_grad():
        for layer in model.gpt_neox.layers:
            layer.attention.dense.weight[:, GONE * HEAD : (GONE + 1) * HEAD] = 0
        expected = model(TOKENS).logits
        for layer in model.gpt_neox.layers:
            layer.attention.query_key_value = nn.Linear(WIDTH, 3 * (HEADS - 1) * HEAD)
            layer.attention.dense = nn.Linear((HEADS - 1) * HEAD, WIDTH)
        model.load_state_dict(made, strict=True)
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
