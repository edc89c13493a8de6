"""Tiny Llama-shaped models: a base and three fine-tuned from it, ordinary or degenerate."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

MODELS = ("base", "first", "second", "third")
LAYERS = 4
# All are 1 more than a multiple of 4, and so are the tensors' sizes: quartiles are elements.
_HIDDEN, _WIDE, _VOCABULARY = 29, 61, 101

_LAYER = {
    "input_layernorm": (_HIDDEN,),
    "self_attn.q_proj": (_HIDDEN, _HIDDEN),
    "self_attn.k_proj": (_HIDDEN, _HIDDEN),
    "self_attn.v_proj": (_HIDDEN, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "post_attention_layernorm": (_HIDDEN,),
    "mlp.up_proj": (_WIDE, _HIDDEN),
    "mlp.gate_proj": (_WIDE, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _WIDE),
}


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors' shapes, by name."""
    return {
        "model.embed_tokens.weight": (_VOCABULARY, _HIDDEN),
        **{
            f"model.layers.{layer}.{module}.weight": shape
            for layer in range(layers)
            for module, shape in _LAYER.items()
        },
        "model.norm.weight": (_HIDDEN,),
        "lm_head.weight": (_VOCABULARY, _HIDDEN),
    }


def config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        # Nothing is ever run, but an odd size needs one that can be rotated.
        "head_dim": 2,
        "hidden_size": _HIDDEN,
        "intermediate_size": _WIDE,
        "model_type": "llama",
        "num_attention_heads": 1,
        "num_hidden_layers": layers,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "vocab_size": _VOCABULARY,
    }


def ordinary(layers: int = LAYERS, size: float = 1.0) -> dict[str, Tensors]:
    """Models whose changes have a part in common; two leave a fifth of the elements as it is.

    Changes are about half of the base's values, times `size`.
    """
    generator = torch.Generator().manual_seed(0)
    models: dict[str, Tensors] = {name: {} for name in MODELS}
    for name, shape in shapes(layers).items():
        base, common, *own = (
            torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(5)
        )
        models["base"][name] = base
        for number, (model, noise) in enumerate(zip(MODELS[1:], own, strict=True)):
            change = 0.4 * common + 0.3 * noise
            # Changes are zero or far above every threshold that is absolute.
            change += 1e-3 * change.sign()
            if number < 2:
                change *= torch.rand(shape, generator=generator) < 0.8
            models[model][name] = base + size * change
    return models


def degenerate() -> dict[str, Tensors]:
    """Models of one layer, every tensor of which is a special case."""
    models = ordinary(1)
    base, first, second, third = models.values()

    def place(name: str, *tensors: torch.Tensor) -> None:
        for model, tensor in zip(models.values(), tensors, strict=True):
            model[name] = tensor.clone()

    for name, shape in shapes(1).items():
        b = base[name]
        changes = [first[name] - b, second[name] - b, third[name] - b]
        one = torch.zeros(shape, dtype=torch.float64)
        one.view(-1)[7] = 1.0
        match SPECIAL.get(name):
            case "unchanged":
                place(name, b, b, b, b)
            case "base is zero":
                place(name, 0 * b, *changes)
            case "all zero":
                place(name, 0 * b, 0 * b, 0 * b, 0 * b)
            case "one unchanged":
                place(name, b, first[name], b, third[name])
            case "parallel changes":
                place(name, b, b + changes[2], b + 2 * changes[2], b + changes[2] / 2)
            case "constant":
                place(name, *(torch.full(shape, value).double() for value in (1, 1.25, 0.5, 2)))
            case "opposite changes":
                place(name, b, b + changes[2], b - changes[2], third[name] + changes[0])
            case "tiny changes":
                place(name, 0 * b, *(1e-9 * change for change in changes))
            case "one element changed":
                place(name, b, b + one, b - 2 * one, b + 3 * one)
            case "large":
                place(name, *(100 * model[name] for model in models.values()))
            case "opposite models":
                place(name, b, -b, second[name], third[name])
    return models


SPECIAL = {
    "model.layers.0.input_layernorm.weight": "unchanged",
    "model.layers.0.self_attn.q_proj.weight": "base is zero",
    "model.layers.0.self_attn.k_proj.weight": "all zero",
    "model.layers.0.self_attn.v_proj.weight": "one unchanged",
    "model.layers.0.self_attn.o_proj.weight": "parallel changes",
    "model.layers.0.post_attention_layernorm.weight": "constant",
    "model.layers.0.mlp.up_proj.weight": "opposite changes",
    "model.layers.0.mlp.gate_proj.weight": "tiny changes",
    "model.layers.0.mlp.down_proj.weight": "one element changed",
    "model.norm.weight": "large",
    "lm_head.weight": "opposite models",
}


def write(folder: Path, models: dict[str, Tensors], dtype: torch.dtype = torch.float64) -> None:
    """Write each model as a folder that transformers reads."""
    for model, tensors in models.items():
        (folder / model).mkdir(parents=True)
        layers = len({name.split(".")[2] for name in tensors if ".layers." in name})
        (folder / model / "config.json").write_text(json.dumps(config(layers)))
        rounded = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
        save_file(rounded, folder / model / "model.safetensors", {"format": "pt"})
