"""Hidden states for routers, and what routers did, against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from surgeon.training import ManifestError, collect_router, collect_routing

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SIZES = {"vocab_size": 30, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip


def tokenizer(text: str) -> dict[str, list[int]]:
    return {"input_ids": [ord(letter) % 30 for letter in text]}


@pytest.fixture(scope="module")
def dense() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).train()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.3
    return model


def unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


@pytest.mark.parametrize("tokens", ["mean", "last"])
def test_rows_are_where_the_layers_inputs_point_to(dense: Any, tmp_path: Path, tokens: Any) -> None:
    prompts = {"a": ["one", "three"], "b": {"positive": ["two"], "negative": ["one"]}}
    collect_router(dense, tokenizer, prompts, tmp_path / "rows", inputs="layer", tokens=tokens)
    assert dense.training
    found = load_file(tmp_path / "rows")
    of = {}
    for text in ("one", "two", "three"):
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            states = dense(ids, output_hidden_states=True).hidden_states[:-1]
        of[text] = [state[0].mean(0) if tokens == "mean" else state[0, -1] for state in states]
    for layer in (0, 1):
        expected = {"a": unit((of["one"][layer] + of["three"][layer]) / 2),
                    "b": unit(of["two"][layer] - of["one"][layer])}  # fmt: skip
        for name, row in expected.items():
            torch.testing.assert_close(found[f"model.layers.{layer}.mlp.{name}"], row)


def test_by_default_rows_are_of_what_the_feed_forward_layers_get(
    dense: Any, tmp_path: Path
) -> None:
    collect_router(dense, tokenizer, {"a": ["some"]}, tmp_path / "rows")
    seen: list[torch.Tensor] = []
    norm = dense.model.layers[1].post_attention_layernorm
    hook = norm.register_forward_hook(lambda module, given, made: seen.append(made))
    with torch.no_grad():
        dense(torch.tensor([tokenizer("some")["input_ids"]]))
    hook.remove()
    found = load_file(tmp_path / "rows")["model.layers.1.mlp.a"]
    torch.testing.assert_close(found, unit(seen[0][0].mean(0)))


def test_what_cannot_be_collected_is_refused(dense: Any, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no layers 'layers"):
        collect_router(torch.nn.Linear(2, 2), tokenizer, {"a": ["x"]}, tmp_path / "rows")
    with pytest.raises(ManifestError, match="the prompt '' has no tokens"):
        collect_router(dense, tokenizer, {"a": [""]}, tmp_path / "rows")
    with pytest.raises(ManifestError, match="no module 'experts'"):
        collect_routing(dense, [torch.arange(4).view(1, 4)], tmp_path / "routing")


def test_routing_is_what_the_routers_chose_where_nothing_is_masked(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(1)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))
    model.model.layers[0].mlp.gate.weight.data[3] = 0
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    batch = {"input_ids": torch.randint(30, (2, 5)), "attention_mask": mask}
    with torch.no_grad():
        logits = model(**batch, output_router_logits=True).router_logits
    collect_routing(model, [batch, batch], tmp_path / "routing")
    found = json.loads((tmp_path / "routing").read_text())
    assert (found["surgeon"], found["tokens"]) == ("routing", 14)
    for layer in (0, 1):
        rows = logits[layer].double()[mask.reshape(-1).bool()].numpy()
        frequency, weight = np.zeros(4), np.zeros(4)
        for row in rows:
            chosen = np.argsort(-row)[:2]
            frequency[chosen] += 1 / len(rows)
            weight[chosen] += np.exp(row[chosen]) / np.exp(row[chosen]).sum() / len(rows)
        layers = found["layers"][f"model.layers.{layer}"]
        np.testing.assert_allclose(layers["frequency"], frequency, rtol=1e-6)
        np.testing.assert_allclose(layers["weight"], weight, rtol=1e-5)
        alike = np.eye(4)
        varied = slice(None) if layer else slice(3)  # a row of zeros is like none
        alike[varied, varied] = np.corrcoef(rows.T[varied])
        np.testing.assert_allclose(layers["similarity"], alike, atol=2e-4)
