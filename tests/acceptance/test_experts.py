"""Mixtures of dense models against transformers: folders load, and compute what they should."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from surgeon import recipe, surgery
from surgeon.base.errors import PlanError
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


# --- Some of the experts ----------------------------------------------------------------------

ROUTED = {"moe_intermediate_size": 12, "num_experts_per_tok": 2}
MIXTURES = {
    "Mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "Qwen3Moe": {**ROUTED, "num_experts": 6, "norm_topk_prob": False, "head_dim": 4},
    "Qwen2Moe": {**ROUTED, "num_experts": 6, "shared_expert_intermediate_size": 8},
    "Olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
    "DeepseekV3": {**LATENT, **ROUTED, "first_k_dense_replace": 1, "n_routed_experts": 6,
                   "n_group": 2, "topk_group": 2, "n_shared_experts": 1},
    "GptOss": {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 4,
               "layer_types": ["full_attention"] * 2, "sliding_window": 8},
}  # fmt: skip


def mixture_model(kind: str) -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **MIXTURES[kind]})
    config._experts_implementation = "eager"
    torch.manual_seed(3)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, dtype=torch.float64) * 0.3)
        if name.endswith("e_score_correction_bias"):
            tensor.abs_()  # masked groups must not be better than others
    return model


def surgered(tmp_path: Path, model: Any, step: dict[str, Any]) -> Any:
    import transformers

    model.save_pretrained(tmp_path / "whole")
    plan = recipe.load({"surgeon": 1, "steps": [step]}, {})
    with surgery.opened(plan, str(tmp_path / "whole"), {}) as opened:
        surgery.write(opened, tmp_path / "some", Options(), force=True)
    return loaded(transformers, tmp_path / "some")


def restrict(model: Any, kept: list[int]) -> None:
    """Have the routers choose among some experts alone."""
    for layer in model.model.layers:
        router = getattr(layer.mlp, "gate", None) or getattr(layer.mlp, "router", None)
        if not hasattr(router, "top_k"):
            continue  # a dense layer
        others = [n for n in range(len(router.weight)) if n not in kept]
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias[others] = -1e9
        else:
            router.forward = partial(_restricted, router.forward, router.weight, others)


def _restricted(forward: Any, rows: torch.Tensor, others: list[int], *given: Any) -> Any:
    linear = torch.nn.functional.linear

    def masked(x: torch.Tensor, weight: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        logits = linear(x, weight, *bias)
        if weight is rows:
            logits[:, others] = -1e9
        return logits

    with mock.patch("torch.nn.functional.linear", masked):
        return forward(*given)


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("kept", [[0, 2, 3, 5], [1, 4]])
def test_kept_experts_compute_what_the_router_restricted_to_them_does(
    tmp_path: Path, kind: str, kept: list[int]
) -> None:
    if kind == "DeepseekV3" and len(kept) == 2:
        pytest.skip("groups of one expert are refused, see below")
    model = mixture_model(kind)
    found = surgered(tmp_path, model, {"op": "keep_experts", "by": kept})
    assert len(found.model.layers[1].mlp.experts.down_proj) == len(kept)
    whole = logits(model)
    restrict(model, kept)
    expected = logits(model)
    assert not torch.allclose(whole, expected)
    torch.testing.assert_close(logits(found), expected, rtol=1e-5, atol=1e-6)


def test_fewer_experts_than_the_router_chose_are_all_chosen(tmp_path: Path) -> None:
    model = mixture_model("Mixtral")
    found = surgered(tmp_path, model, {"op": "keep_experts", "by": [4]})
    assert found.config.num_experts_per_tok == 1
    restrict(model, [4])
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kept", [[0, 1, 2, 3], [1, 4], [3, 4, 0, 1]])
def test_groups_of_experts_that_would_be_others_are_refused(
    tmp_path: Path, kept: list[int]
) -> None:
    with pytest.raises(PlanError, match=r"in 2 groups \(n_group\)"):
        surgered(tmp_path, mixture_model("DeepseekV3"), {"op": "keep_experts", "by": kept})


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])
def test_merging_by_what_the_routers_chose_reads_the_training_side_s_file(
    tmp_path: Path, kind: str
) -> None:
    from surgeon.training import collect_routing

    model = mixture_model(kind)
    collect_routing(model, [TOKENS], tmp_path / "routing.json")
    step = {"op": "merge_experts", "by": str(tmp_path / "routing.json"), "keep": 3}
    found = surgered(tmp_path, model, step)
    assert found.config.num_local_experts == 3
    assert logits(found).isfinite().all()


def test_merged_equal_experts_compute_what_one_did(tmp_path: Path) -> None:
    model = mixture_model("Mixtral")
    for layer in model.model.layers:
        for tensor in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            tensor.data[:] = tensor.data[:1].clone()
    step = {"op": "merge_experts", "by": [[0, 3], [1, 2, 4], [5]]}
    found = surgered(tmp_path, model, step)
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-5, atol=1e-6)
