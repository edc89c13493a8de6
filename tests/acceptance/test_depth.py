"""Layers dropped, repeated and inserted: the network computes what it should."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.network import Bench, Json

PRUNE = {"op": "layers", "container": "h", "take": ["0:2", "3:5", "6:8", "9:12"]}
UP_SCALE = {"op": "layers", "container": "model.layers", "take": ["0:24", "8:32"]}
IDENTITY = {
    "op": "layers",
    "container": "model.layers",
    "take": [{"range": ":", "every": 4, "zero": ["o_proj", "down_proj"]}],
}
TOKENS = torch.arange(24).reshape(2, 12)


def gpt2_small() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file, with its causal masks."""
    block = {
        "ln_1.weight": (768,), "ln_1.bias": (768,), "attn.bias": (1, 1, 1024, 1024),
        "attn.c_attn.weight": (768, 2304), "attn.c_attn.bias": (2304,),
        "attn.c_proj.weight": (768, 768), "attn.c_proj.bias": (768,),
        "ln_2.weight": (768,), "ln_2.bias": (768,),
        "mlp.c_fc.weight": (768, 3072), "mlp.c_fc.bias": (3072,),
        "mlp.c_proj.weight": (3072, 768), "mlp.c_proj.bias": (768,),
    }  # fmt: skip
    around = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768)}
    ends = {"ln_f.weight": (768,), "ln_f.bias": (768,)}
    blocks = {f"h.{i}.{name}": shape for i in range(12) for name, shape in block.items()}
    return {**around, **blocks, **ends}


def write_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A float32 checkpoint of which the values are holes in the file."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def test_pruned_gpt2_small_has_121_of_160_tensors(bench: Bench) -> None:
    shapes = gpt2_small()
    assert len(shapes) == 160
    write_header(bench.input, shapes)
    found = {name: t.spec.shape for name, t in bench.plan(PRUNE).tensors.items()}
    kept = [0, 1, 3, 4, 6, 7, 9, 10, 11]
    assert len(found) == 121
    assert found == {
        name: shape for name, shape in shapes.items() if name.split(".")[0] != "h"
    } | {
        f"h.{new}.{name.split('.', 2)[2]}": shape
        for new, old in enumerate(kept)
        for name, shape in shapes.items()
        if name.startswith(f"h.{old}.")
    }  # fmt: skip


def randomised(model: nn.Module) -> nn.Module:
    """Biases and norms too, so that every tensor has a say in the logits."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def llama(transformers: Any, layers: int) -> nn.Module:
    config = transformers.LlamaConfig(
        num_hidden_layers=layers, hidden_size=16, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, vocab_size=32, bos_token_id=0, eos_token_id=1, use_cache=False,
    )  # fmt: skip
    return randomised(transformers.LlamaForCausalLM(config))


def gpt2(transformers: Any, layers: int) -> nn.Module:
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=24, n_head=12, n_positions=16, vocab_size=32, bos_token_id=0,
        eos_token_id=1, use_cache=False,
    )  # fmt: skip
    return randomised(transformers.GPT2LMHeadModel(config))


def after(bench: Bench, model: nn.Module, target: nn.Module, step: Json, prefix: str) -> nn.Module:
    """Operate on a model's tensors and load the result, strictly, into another."""
    tensors = {name.removeprefix(prefix): t for name, t in model.state_dict().items()
               if name != "lm_head.weight" or not prefix}  # fmt: skip
    made = bench.given(tensors).operate(step).tensors
    if prefix:
        made = {f"{prefix}{name}": tensor for name, tensor in made.items()}
        made["lm_head.weight"] = made[f"{prefix}wte.weight"]
    target.load_state_dict(made, strict=True)
    return target


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.fixture(scope="module")
def transformers() -> Any:
    """Imported for these tests alone: it takes seconds."""
    return pytest.importorskip("transformers")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pruned_gpt2_is_the_model_without_the_modules(bench: Bench, transformers: Any) -> None:
    model = gpt2(transformers, 12)
    found = logits(after(bench, model, gpt2(transformers, 9), PRUNE, "transformer."))
    full = logits(model)
    for index in (8, 5, 2):
        del model.transformer.h[index]
    assert torch.equal(found, logits(model))
    assert not torch.allclose(found, full)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_up_scaled_llama_runs_its_middle_twice(bench: Bench, transformers: Any) -> None:
    model = llama(transformers, 32)
    found = logits(after(bench, model, llama(transformers, 48), UP_SCALE, ""))
    blocks = [*model.model.layers[:24], *(copy.deepcopy(b) for b in model.model.layers[8:])]
    model.model.layers = nn.ModuleList(blocks)
    model.config.num_hidden_layers = 48
    assert torch.equal(found, logits(model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inserted_identity_blocks_leave_the_logits_unchanged(
    bench: Bench, transformers: Any
) -> None:
    model = llama(transformers, 8)
    grown = after(bench, model, llama(transformers, 10), IDENTITY, "")
    assert torch.equal(logits(grown), logits(model))
    # New blocks learn: only their last projections are zeros.
    assert grown.model.layers[4].self_attn.q_proj.weight.any()
    assert not grown.model.layers[4].self_attn.o_proj.weight.any()
