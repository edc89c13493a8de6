"""The residual stream turned, and weights searched: checked by transformers' own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import surgeon

TOKENS = torch.arange(24).reshape(2, 12)
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Llama", "Mistral"])
def test_a_turned_model_gives_the_same_logits_in_transformers(family: str, tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}ForCausalLM")
    model = kind(getattr(transformers, f"{family}Config")(**SIZES)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # which begin as ones
            torch.nn.init.normal_(parameter, mean=1, std=0.3)
    model.save_pretrained(tmp_path / "in")
    surgeon.apply(
        "rotate-residual-stream", tmp_path / "in", tmp_path / "out", vars={"hidden_size": 16}
    )
    turned = kind.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(turned(TOKENS).logits, model(TOKENS).logits)
        generated = turned.generate(TOKENS, max_new_tokens=8, do_sample=False)
        assert torch.equal(generated, model.generate(TOKENS, max_new_tokens=8, do_sample=False))
    before, after = (m.model.embed_tokens.weight for m in (model, turned))
    assert not torch.allclose(before, after)


@pytest.mark.slow
def test_a_search_over_a_model_folder_runs_what_transformers_loads(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**SIZES)
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        folders.append(tmp_path / str(seed))
        transformers.LlamaForCausalLM(config).save_pretrained(folders[-1])
    wanted = transformers.LlamaForCausalLM.from_pretrained(folders[1])(TOKENS).logits

    def near(state_dict: dict[str, torch.Tensor]) -> float:
        model = transformers.LlamaForCausalLM(config)
        model.load_state_dict(state_dict)
        return -(model(TOKENS).logits - wanted).square().mean().item()

    found = surgeon.search(
        "interpolate-two-models", folders[0], models=[folders[1]], vary={"t": (0, 1)},
        evaluate=near, trials=15,
    )  # fmt: skip
    assert found.variables["t"] > 0.9
    surgeon.apply(found.recipe, folders[0], tmp_path / "best", models=[folders[1]])
    best = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "best")
    assert -(best(TOKENS).logits - wanted).square().mean().item() == pytest.approx(found.value)
