"""LoRA against peft itself: its own merge, its own loading of what was extracted."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from surgeon import recipe, surgery
from surgeon.output.execute import Options

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # what transformers and peft warn of is theirs
]


class Everything(nn.Module):
    """One layer of each kind that an adapter may change."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.linear = nn.Linear(8, 12)
        self.square = nn.Linear(12, 12, bias=False)
        self.turned = Conv1D(8, 12)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.pointwise = nn.Conv2d(4, 2, 1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.turned(self.square(self.linear(self.embed(ids)))))
        return self.head(self.pointwise(self.conv(hidden[:, None])).flatten(2).flatten(1)[:, :16])


IDS = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))
LAYERS = ["embed", "linear", "square", "turned", "conv", "pointwise"]
SETTINGS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"linear": 5, "e.*": 2}, "alpha_pattern": {"square": 7}},
    "biases": {"bias": "all", "modules_to_save": ["head"]},
    "own biases": {"bias": "lora_only"},
    "saved": {"modules_to_save": ["head", "norm"]},
}


def randomised(model: nn.Module, seed: int) -> None:
    """Give everything that is trained other values; B starts with zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def adapted(model: nn.Module, folder: Path, seed: int = 1, **settings: object) -> nn.Module:
    """Adapt a copy with peft, save the adapter, and return what peft merges it to."""
    import peft

    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings))
    randomised(wrapped, seed)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload()


def applied(folder: Path, source: Path, output: Path, *steps: dict, **models: Path) -> None:
    path = folder / "recipe.json"
    path.write_text(json.dumps({"surgeon": 1, "steps": steps}))
    locations = {name: str(place) for name, place in models.items()}
    with surgery.opened(recipe.load(str(path), {}), str(source), locations) as opened:
        surgery.write(opened, output, Options(), force=True)


def merged(folder: Path, model: nn.Module, adapter: object) -> dict[str, torch.Tensor]:
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / "in.safetensors")
    output = folder / "out.safetensors"
    applied(folder, folder / "in.safetensors", output, {"op": "lora_merge", "adapter": adapter})
    return load_file(output)


@pytest.mark.parametrize("name", SETTINGS)
def test_merge_is_what_peft_merges(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Everything().eval()
    settings = {"r": 3, "lora_alpha": 16, "target_modules": LAYERS, **SETTINGS[name]}
    theirs = adapted(model, tmp_path / "adapter", **settings).eval()
    # Of a square linear weight beside a transposed one, PEFT's one flag says too little.
    entry = {"adapter": "adapter", "config": {"fan_in_fan_out": False}}
    ours = copy.deepcopy(model)
    ours.load_state_dict(merged(tmp_path, model, entry))
    torch.testing.assert_close(
        ours.state_dict(), theirs.state_dict(), rtol=2e-6, atol=1e-6, check_stride=False
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs(IDS), rtol=1e-4, atol=1e-5)
        assert (ours(IDS) - model(IDS)).abs().max() > 0.01


def test_bias_of_b_is_what_peft_merges(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Everything().eval()
    settings = {"r": 3, "lora_bias": True, "target_modules": ["linear", "conv"]}
    theirs = adapted(model, tmp_path / "adapter", **settings)
    found = merged(tmp_path, model, "adapter")
    torch.testing.assert_close(found, dict(theirs.state_dict()), rtol=2e-6, atol=1e-6)


def test_two_weighted_adapters_are_pefts_linear_combination(tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    model = Everything().eval()
    settings = {"r": 3, "lora_alpha": 6, "target_modules": ["linear", "square"]}
    for seed, name in enumerate(("one", "two")):
        adapted(model, tmp_path / name, seed, **settings)
    wrapped = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "one", "one")
    wrapped.load_adapter(tmp_path / "two", "two")
    wrapped.add_weighted_adapter(["one", "two"], [0.75, 0.5], "both", combination_type="cat")
    wrapped.set_adapter("both")
    theirs = wrapped.merge_and_unload()
    weights = {"one": 0.75, "two": 0.5}
    found = merged(tmp_path, model, [{"adapter": n, "weight": w} for n, w in weights.items()])
    torch.testing.assert_close(found, dict(theirs.state_dict()), rtol=2e-6, atol=1e-6)


def small_gpt2() -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=8)
    return transformers.GPT2LMHeadModel(config).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(8)[None]).logits


def test_gpt2_with_transposed_weights_and_a_tied_embedding(tmp_path: Path) -> None:
    import transformers

    model = small_gpt2()
    model.save_pretrained(tmp_path / "base")
    settings = {"r": 4, "target_modules": ["wte", "c_attn", "c_proj", "c_fc"],
                "fan_in_fan_out": True}  # fmt: skip
    theirs = adapted(model, tmp_path / "adapter", **settings).eval()
    step = {"op": "lora_merge", "adapter": str(tmp_path / "adapter")}
    applied(tmp_path, tmp_path / "base", tmp_path / "out", step)
    ours = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert (logits(ours) - logits(model)).abs().max() > 0.01
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)


def test_extracted_adapter_of_full_rank_is_the_trained_model_in_peft(tmp_path: Path) -> None:
    import peft

    base = small_gpt2()
    trained = copy.deepcopy(base)
    randomised(trained, 5)
    # PEFT unties an embedding that it saves; the output would keep the base's.
    trained.transformer.wte.weight.data = base.transformer.wte.weight.data.clone()
    base.save_pretrained(tmp_path / "base")
    trained.save_pretrained(tmp_path / "trained")
    step = {
        "op": "lora_extract", "base": "base", "rank": 64,
        "target": ["**.c_attn", "**.c_fc", "**.mlp.c_proj", "**.wpe"], "transposed": "**.h",
        "embeddings": "**.wpe", "save": ["**.(ln_1|ln_2|ln_f)", "**.attn.c_proj"],
        "others": "drop",
    }  # fmt: skip
    applied(tmp_path, tmp_path / "trained", tmp_path / "adapter", step, base=tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    merged_state = loaded.merge_and_unload().state_dict()
    for name, tensor in trained.state_dict().items():
        if not name.endswith(".bias") or ".ln_" in name or "attn.c_proj" in name:
            torch.testing.assert_close(merged_state[name], tensor, rtol=1e-5, atol=1e-6)


def test_adapter_that_was_merged_is_extracted_again(tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    model = Everything().eval()
    settings = {"r": 3, "target_modules": ["embed", "linear", "square"]}
    theirs = adapted(model, tmp_path / "adapter", **settings).eval()
    found = merged(tmp_path, model, "adapter")
    (tmp_path / "out.safetensors").rename(tmp_path / "trained.safetensors")
    step = {"op": "lora_extract", "base": "base", "rank": 3, "embeddings": "embed",
            "target": settings["target_modules"], "energy": 0.999999}  # fmt: skip
    paths = tmp_path / "trained.safetensors", tmp_path / "again"
    applied(tmp_path, *paths, step, base=tmp_path / "in.safetensors")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "again").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS), theirs(IDS), rtol=1e-4, atol=1e-5)
    again = merged(tmp_path, model, "again")
    torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-6)
