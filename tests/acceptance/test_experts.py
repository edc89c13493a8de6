"""Mixtures of dense models against transformers: folders load, and compute what they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from surgeon import recipe, surgery
from surgeon.output.execute import Options

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SIZES = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 4, "num_key_value_heads": 4, "first_k_dense_replace": 2,
}  # fmt: skip
TOKENS = torch.arange(30).view(2, 15)


def dense_model(kind: str, seed: int) -> Any:
    import transformers

    more = {"Mistral": {"sliding_window": 8}, "DeepseekV3": LATENT, "Qwen3": {"head_dim": 8}}
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **more.get(kind, {})})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
    for parameter in model.parameters():  # norms and biases too, so that every tensor has a say
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.3
    return model


def mixed(folder: Path, others: dict[str, Path], **step: Any) -> Any:
    """Return the mixture that transformers loads, after a step on the model in `folder`."""
    import transformers

    plan = recipe.load({"surgeon": 1, "steps": [{"op": "experts", **step}]}, {})
    models = {name: str(path) for name, path in others.items()}
    with surgery.opened(plan, str(folder), models) as opened:
        surgery.write(opened, folder.parent / "mixture", Options(), force=True)
    return loaded(transformers, folder.parent / "mixture")


def loaded(transformers: Any, folder: Path) -> Any:
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float64, experts_implementation="eager"
    )
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


KINDS = [
    ("Llama", {}, "mixtral"),
    ("Mistral", {}, "mixtral"),
    ("Llama", {"shared": {"model": "@input", "scale": 0, "name": "all"}}, "qwen2_moe"),
    ("Qwen2", {"shared": {"model": "@input", "scale": 0, "name": "all"}}, "qwen2_moe"),
    ("Qwen3", {}, "qwen3_moe"),
    ("DeepseekV3", {"shared": {"model": "@input", "scale": 0, "name": "all"}}, "deepseek_v3"),
]


@pytest.mark.parametrize(("kind", "more", "model_type"), KINDS)
@pytest.mark.parametrize("per_token", [1, 3])
def test_equal_experts_compute_what_the_dense_model_did(
    tmp_path: Path, kind: str, more: Any, model_type: str, per_token: int
) -> None:
    dense = dense_model(kind, 0)
    dense.save_pretrained(tmp_path / "dense")
    entries = [{"model": "@input", "name": str(number)} for number in range(3)]
    found = mixed(tmp_path / "dense", {}, models=entries, per_token=per_token, **more)
    assert found.config.model_type == model_type
    # The routers' softmax is in float32, whatever the model's dtype.
    torch.testing.assert_close(logits(found), logits(dense), rtol=1e-5, atol=1e-6)


def by_hand(dense: Any, others: list[Any], rows: dict[str, torch.Tensor], names: list[str]) -> Any:
    """Put a mixture, written down in float64, in the place of each dense layer."""
    from torch import nn

    class Mixture(nn.Module):
        def __init__(self, layer: int) -> None:
            super().__init__()
            self.experts = [model.model.layers[layer].mlp for model in others]
            self.rows = torch.stack([rows[f"model.layers.{layer}.mlp.{name}"] for name in names])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shares = torch.softmax(x @ self.rows.T.double(), -1)
            out = torch.zeros_like(x)
            for place in [(b, s) for b in range(x.shape[0]) for s in range(x.shape[1])]:
                chosen = sorted(range(len(names)), key=lambda n: -shares[place][n])[:2]
                total = sum(shares[place][n] for n in chosen)
                for n in chosen:
                    out[place] += self.experts[n](x[place]) * shares[place][n] / total
            return out

    with torch.no_grad():
        for number, layer in enumerate(dense.model.layers):
            layer.mlp = Mixture(number)
    return dense


@pytest.mark.parametrize(("kind", "names"), [
    ("Mistral", ["@input", "a", "b"]), ("Qwen3", ["b", "a", "@input"]),
])  # fmt: skip
def test_different_experts_compute_what_a_mixture_written_by_hand_does(
    tmp_path: Path, kind: str, names: list[str]
) -> None:
    made = {name: dense_model(kind, seed) for seed, name in enumerate(("@input", "a", "b"))}
    for name, model in made.items():
        model.save_pretrained(tmp_path / name)
    rows = {f"model.layers.{n}.mlp.{name}": torch.randn(16) for n in (0, 1) for name in names}
    save_file(rows, tmp_path / "rows.safetensors")
    others = {name: tmp_path / name for name in ("a", "b")}
    found = mixed(tmp_path / "@input", others, models=names,
                  router={"rows": str(tmp_path / "rows.safetensors")})  # fmt: skip
    expected = by_hand(made["@input"], [made[name] for name in names], rows, names)
    torch.testing.assert_close(logits(found), logits(expected), rtol=1e-5, atol=1e-6)


def test_a_shared_expert_is_added_by_the_sigmoid_of_its_row(tmp_path: Path) -> None:
    """All experts and the shared one are one layer: 1 + sigmoid(0) times the dense one's."""
    dense = dense_model("Qwen2", 0)
    dense.save_pretrained(tmp_path / "dense")
    entries = [{"model": "@input", "name": str(number)} for number in range(2)]
    words = tokenizer_of(tmp_path / "dense")
    prompts = {"0": [words[0]], "1": [words[1]]}
    found = mixed(tmp_path / "dense", {}, models=entries, router={"prompts": prompts},
                  shared={"model": "@input", "name": "all", "scale": 0.5})  # fmt: skip
    for layer in dense.model.layers:
        layer.mlp.down_proj.weight.data *= 1 + 0.5 / 2
    torch.testing.assert_close(logits(found), logits(dense), rtol=1e-5, atol=1e-6)


def tokenizer_of(folder: Path) -> list[str]:
    """Write a tokenizer that knows words, the first of which it puts before all texts."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = [f"w{n}" for n in range(60)]
    made = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="w59"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="w0 $A", special_tokens=[("w0", 0)])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "w0"})
    )
    return words


def test_rows_of_prompts_point_to_the_sum_of_their_embeddings(tmp_path: Path) -> None:
    dense = dense_model("Llama", 0)
    dense.save_pretrained(tmp_path / "dense")
    tokenizer_of(tmp_path / "dense")
    prompts = {"@input": ["w1 w2", "w3"], "two": {"positive": ["w4"], "negative": ["w5 w4"]}}
    entries = ["@input", {"model": "@input", "name": "two"}]
    found = mixed(tmp_path / "dense", {}, models=entries, router={"prompts": prompts})
    table = dense.model.embed_tokens.weight.detach()
    unit = torch.nn.functional.normalize
    one = unit(table[[0, 1, 2, 0, 3]].sum(0), dim=0)
    two = unit(unit(table[[0, 4]].sum(0), dim=0) - unit(table[[0, 5, 4]].sum(0), dim=0), dim=0)
    for layer in found.model.layers:
        torch.testing.assert_close(layer.mlp.gate.weight, torch.stack([one, two]))
