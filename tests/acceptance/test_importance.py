"""Pruned by importance, a model is the one in which nothing reads what is gone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon import recipe, surgery
from surgeon.output.execute import Options
from surgeon.training import collect_importance

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

TOKENS = torch.arange(30).view(2, 15)
LLAMA = {
    "vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4, "bos_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
ATTENTION, MLP = "model.layers.*.self_attn", "model.layers.*.mlp"
KEYS = {"target": f"{ATTENTION}.(k|v)_proj"}


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA)).double().eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.3
    return model


def pruned(folder: Path, model: Any, *steps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return what transformers loads after steps by the importances on TOKENS, and these."""
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder / "whole")
    collect_importance(model, [TOKENS], folder / "importance.json")
    by = {"by": str(folder / "importance.json")}
    plan = recipe.load({"surgeon": 1, "steps": [{**step, **by} for step in steps]}, {})
    with surgery.opened(plan, str(folder / "whole"), {}) as opened:
        surgery.write(opened, folder / "pruned", Options(), force=True)
    found, loading = AutoModelForCausalLM.from_pretrained(
        folder / "pruned", dtype=torch.float64, output_loading_info=True
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return found.eval(), json.loads((folder / "importance.json").read_text())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def lowest(scores: list[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: scores[index])[:count]


def test_each_layer_loses_its_own_least_important_neurons(tmp_path: Path) -> None:
    model = llama()
    found, said = pruned(tmp_path, model, {
        "op": "narrow", "target": f"{MLP}.(gate|up)_proj", "consumers": f"{MLP}.down_proj",
        "keep": 26})  # fmt: skip
    assert found.config.intermediate_size == 26
    for number, layer in enumerate(model.model.layers):
        gone = lowest(said["neurons"][f"model.layers.{number}.mlp.down_proj"], 14)
        layer.mlp.down_proj.weight.data[:, gone] = 0
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("keep", "heads", "keys"), [(4, 4, 2), (6, 6, 3)])
def test_heads_go_in_groups_with_their_keys(
    tmp_path: Path, keep: int, heads: int, keys: int
) -> None:
    model = llama()
    found, said = pruned(tmp_path, model, {
        "op": "narrow", "target": f"{ATTENTION}.q_proj", "consumers": f"{ATTENTION}.o_proj",
        "block": 4, "keep": keep, "shared": {**KEYS, "by": 2}})  # fmt: skip
    assert (found.config.num_attention_heads, found.config.num_key_value_heads) == (heads, keys)
    for number, layer in enumerate(model.model.layers):
        scores = said["heads"][f"model.layers.{number}.self_attn.o_proj"]
        groups = [a + b for a, b in zip(scores[::2], scores[1::2], strict=True)]
        for group in lowest(groups, 4 - keys):
            layer.self_attn.o_proj.weight.data[:, 8 * group : 8 * group + 8] = 0
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-9, atol=1e-9)


def test_or_as_many_of_each_group_and_all_keys_stay(tmp_path: Path) -> None:
    """Four of six heads are no whole groups of three."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2})
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).double().eval()
    found, said = pruned(tmp_path, model, {
        "op": "narrow", "target": f"{ATTENTION}.q_proj", "consumers": f"{ATTENTION}.o_proj",
        "block": 4, "keep": 4, "shared": {**KEYS, "by": 3}})  # fmt: skip
    assert (found.config.num_attention_heads, found.config.num_key_value_heads) == (4, 2)
    for number, layer in enumerate(model.model.layers):
        scores = said["heads"][f"model.layers.{number}.self_attn.o_proj"]
        for first in (0, 3):
            (gone,) = lowest(scores[first : first + 3], 1)
            at = 4 * (first + gone)
            layer.self_attn.o_proj.weight.data[:, at : at + 4] = 0
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-9, atol=1e-9)


def test_layers_that_change_least_go(tmp_path: Path) -> None:
    model = llama()
    step = {"op": "layers", "container": "model.layers", "keep": 3}
    found, said = pruned(tmp_path, model, step)
    assert found.config.num_hidden_layers == 3
    whole = copy.deepcopy(model)
    (gone,) = lowest(said["layers"]["model.layers"], 1)
    del model.model.layers[gone]
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(logits(found), logits(whole))


def test_channels_are_the_same_in_all_layers(tmp_path: Path) -> None:
    model = llama()
    writers = ["model.layers.*.(self_attn.o_proj|mlp.down_proj)", "**.*norm"]
    readers = ["model.layers.*.self_attn.(q|k|v)_proj", "model.layers.*.mlp.(gate|up)_proj",
               "lm_head"]  # fmt: skip
    found, said = pruned(
        tmp_path, model, {"op": "narrow", "target": writers, "keep": 16},
        {"op": "narrow", "target": "model.embed_tokens", "dim": 1, "keep": 16,
         "consumers": readers})  # fmt: skip
    kept = sorted(set(range(24)) - set(lowest(said["channels"], 8)))
    expected = {}
    for name, tensor in model.state_dict().items():
        expected[name] = tensor
        for dim, size in enumerate(tensor.shape):
            if size == 24:  # as nothing else is
                expected[name] = expected[name].index_select(dim, torch.tensor(kept))
    assert found.config.hidden_size == 16
    torch.testing.assert_close(found.state_dict(), expected, rtol=0, atol=0)
