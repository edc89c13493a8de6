"""The shapes that are measured: a Llama of 300 tensors, and folders of many small ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
TENSORS_PER_SHARD = 100
_LAYERS = 33
_SHARDS = 8


@dataclass(frozen=True)
class Llama:
    """A Llama with 33 layers; at size 1 it has 1.0e9 parameters: 2 GB of bfloat16."""

    size: float

    @property
    def hidden(self) -> int:
        return self._width(1536)

    @property
    def intermediate(self) -> int:
        return self._width(4096)

    @property
    def vocabulary(self) -> int:
        return self._width(21504)

    def _width(self, at_size_one: int) -> int:
        """Scale one side of the matrices; the number of tensors stays."""
        return max(64, round(at_size_one * math.sqrt(self.size) / 64) * 64)

    def shapes(self) -> dict[str, Shape]:
        """Return each tensor's shape, by name."""
        hidden, wide = self.hidden, self.intermediate
        shapes: dict[str, Shape] = {
            "lm_head.weight": (self.vocabulary, hidden),
            "model.embed_tokens.weight": (self.vocabulary, hidden),
            "model.norm.weight": (hidden,),
        }
        for layer in range(_LAYERS):
            prefix = f"model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{prefix}.{norm}.weight"] = (hidden,)
            for projection in "qkvo":
                shapes[f"{prefix}.self_attn.{projection}_proj.weight"] = (hidden, hidden)
            shapes[f"{prefix}.mlp.gate_proj.weight"] = (wide, hidden)
            shapes[f"{prefix}.mlp.up_proj.weight"] = (wide, hidden)
            shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, wide)
        return dict(sorted(shapes.items()))

    def sharded(self) -> Iterator[tuple[str, dict[str, Shape]]]:
        """Give the file name and the shapes of each of eight shards, the head in the first."""
        shapes = list(self.shapes().items())
        each = -(-len(shapes) // _SHARDS)
        for shard in range(_SHARDS):
            part = dict(shapes[shard * each : (shard + 1) * each])
            yield f"model-{shard + 1:05}-of-{_SHARDS:05}.safetensors", part

    def config(self) -> dict[str, Any]:
        """Return what transformers wants to know of it, as in config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.hidden // 64,
            "num_hidden_layers": _LAYERS,
            "num_key_value_heads": self.hidden // 64,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        }


def shards(tensors: int) -> Iterator[tuple[str, dict[str, Shape]]]:
    """Give the file name and the shapes of each shard of a mixture of many tiny experts."""
    count = -(-tensors // TENSORS_PER_SHARD)
    for shard in range(count):
        numbers = range(shard * TENSORS_PER_SHARD, min(tensors, (shard + 1) * TENSORS_PER_SHARD))
        shapes: dict[str, Shape] = {
            f"model.layers.{n // 300}.mlp.experts.{n // 3 % 100}.w{n % 3 + 1}.weight": (4, 4)
            for n in numbers
        }
        yield f"model-{shard + 1:05}-of-{count:05}.safetensors", shapes
