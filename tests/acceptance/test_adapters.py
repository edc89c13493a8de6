"""Adapters of every kind against peft's own merge."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.acceptance.test_lora import applied, merged, randomised, small_gpt2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # what transformers and peft warn of is theirs
]


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 12))
        self.flat = nn.Parameter(torch.randn(5, 7))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.linear = nn.Linear(8, 12)
        self.conv = nn.Conv2d(4, 6, 3)
        self.pointwise = nn.Conv2d(4, 6, 1)
        self.experts = Experts()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embed(ids))


LAYERS = ["linear", "conv", "pointwise"]
LORA = {"r": 2, "lora_alpha": 6}
CASES = {
    "negative alpha": ("LoraConfig", {"r": 2, "lora_alpha": -3, "target_modules": LAYERS}),
    "bias of B": ("LoraConfig", {**LORA, "lora_bias": True, "target_modules": ["linear"]}),
    "bias of B on a trained bias": ("LoraConfig", {**LORA, "lora_bias": True, "bias": "all",
                                                   "target_modules": ["linear"]}),
    "tokens": ("LoraConfig", {**LORA, "target_modules": ["linear"],
                              "trainable_token_indices": {"embed": [7, 1, 0]}}),
    "tokens alone": ("TrainableTokensConfig", {"target_modules": ["embed"],
                                               "token_indices": [3, 10]}),
    "experts": ("LoraConfig", {**LORA, "target_modules": ["linear"],
                               "target_parameters": ["experts.up"]}),
    "a parameter": ("LoraConfig", {**LORA, "target_modules": ["linear"],
                                   "target_parameters": ["experts.flat"]}),
    "dora": ("LoraConfig", {**LORA, "use_dora": True, "target_modules": [*LAYERS, "embed"]}),
    "dora, rank-stabilised": ("LoraConfig", {**LORA, "use_dora": True, "use_rslora": True,
                                             "target_modules": LAYERS}),
    "loha": ("LoHaConfig", {"r": 2, "alpha": 5, "target_modules": LAYERS}),
    "loha, kernels": ("LoHaConfig", {"r": 2, "use_effective_conv2d": True, "target_modules": LAYERS,
                                     "alpha_pattern": {"linear": 3}}),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": LAYERS}),
    "lokr, kernels": ("LoKrConfig", {"r": 1, "use_effective_conv2d": True,
                                     "target_modules": LAYERS}),
    "lokr, both": ("LoKrConfig", {"r": 1, "decompose_both": True, "decompose_factor": 2,
                                  "target_modules": LAYERS}),
    "ia3": ("IA3Config", {"target_modules": LAYERS, "feedforward_modules": ["pointwise"]}),
    "ia3, inputs": ("IA3Config", {"target_modules": LAYERS, "feedforward_modules": LAYERS}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_merge_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    import peft

    kind, settings = CASES[case]
    torch.manual_seed(0)
    model = Network().eval()
    wrapped = peft.get_peft_model(copy.deepcopy(model), getattr(peft, kind)(**settings))
    randomised(wrapped, 1)
    wrapped.save_pretrained(tmp_path / "adapter")
    theirs = wrapped.merge_and_unload()
    found = merged(tmp_path, model, "adapter")
    expected = {n: t for n, t in theirs.state_dict().items() if n in found}
    assert expected.keys() == found.keys()
    torch.testing.assert_close(found, expected, rtol=3e-6, atol=2e-6)
    assert any(not torch.equal(t, model.state_dict()[n]) for n, t in found.items())


@pytest.mark.parametrize("use_dora", [False, True])
def test_gpt2_as_peft_saves_it(use_dora: bool, tmp_path: Path) -> None:
    """A head beside Conv1D: the one flag in the adapter is right for neither or one of them."""
    import peft
    import transformers

    model = small_gpt2()
    model.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, target_modules=["attn.c_proj", "c_attn"], use_dora=use_dora, fan_in_fan_out=False
    )
    wrapped = peft.get_peft_model(copy.deepcopy(model), config)
    randomised(wrapped, 3)
    wrapped.save_pretrained(tmp_path / "adapter")
    (saved,) = [tmp_path / "adapter" / "adapter_config.json"]
    saved.write_text(saved.read_text().replace('"fan_in_fan_out": true', '"fan_in_fan_out": false'))
    step = {"op": "lora_merge", "adapter": "adapter"}
    applied(tmp_path, tmp_path / "base", tmp_path / "out", step)
    ours = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    theirs = wrapped.merge_and_unload().state_dict()
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs), rtol=3e-6, atol=2e-6)


def test_embedding_and_head_as_peft_saves_them(tmp_path: Path) -> None:
    import peft
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=40, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base")
    targets = ["embed_tokens", "lm_head", "q_proj"]
    wrapped = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=3, target_modules=targets)
    )
    randomised(wrapped, 3)
    wrapped.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    step = {"op": "lora_merge", "adapter": "adapter"}
    applied(tmp_path, tmp_path / "base", tmp_path / "out", step)
    ours = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    theirs = wrapped.merge_and_unload().state_dict()
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs), rtol=3e-6, atol=2e-6)


COMBINATIONS = {
    "cat": {},
    "svd": {"svd_rank": 3},
    "ties_svd": {"svd_rank": 3, "density": 0.6},
    "dare_ties_svd": {"svd_rank": 3, "density": 1.0},
}


@pytest.mark.parametrize("method", COMBINATIONS)
def test_combined_adapters_are_pefts(method: str, tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    model = Network().eval()
    targets = [*LAYERS, "embed"]
    for seed, (name, rank) in enumerate({"one": 2, "two": 3}.items()):
        config = peft.LoraConfig(r=rank, lora_alpha=5, target_modules=targets)
        wrapped = peft.get_peft_model(copy.deepcopy(model), config)
        randomised(wrapped, seed)
        wrapped.save_pretrained(tmp_path / name, save_embedding_layers=False)
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "one", "one")
    wrapped.load_adapter(tmp_path / "two", "two")
    given = COMBINATIONS[method]
    wrapped.add_weighted_adapter(
        ["one", "two"], [0.75, 0.5], "both", combination_type=method, **given
    )
    wrapped.set_adapter("both")
    theirs = wrapped.merge_and_unload().state_dict()
    step = {"op": "lora_combine", "adapters": ["two"], "weights": [0.75, 0.5], "method": method}
    step |= {"rank": given["svd_rank"]} if "svd_rank" in given else {}
    step |= {"density": given["density"]} if "density" in given else {}
    applied(tmp_path, tmp_path / "one", tmp_path / "both", step)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "both")
    ours = again.merge_and_unload().state_dict()
    torch.testing.assert_close(dict(ours), dict(theirs), rtol=1e-4, atol=1e-5)
