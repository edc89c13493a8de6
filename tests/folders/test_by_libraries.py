"""What surgeon writes, opened by transformers and PEFT, computes what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from surgeon.cli.commands import commands
from tests.network import write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SMALL = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
IDS = torch.arange(3, 12)[None]


def applied(folder: Path, source: Path, recipe: str, *options: str) -> Path:
    out = folder / "out"
    words = ["apply", recipe, str(source), str(out), "--quiet", *options]
    result = CliRunner().invoke(commands, words)
    assert result.exit_code == 0, result.output
    return out


def llama(folder: Path, **more: Any) -> tuple[Any, Path]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL | more)
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "in")
    return model, folder / "in"


@pytest.mark.parametrize(
    ("heads", "shared"), [([2, 5], {}), ([0, 1, 2], {"kv": "**.(k|v)_proj", "per_kv": 3})]
)
def test_pruned_heads_are_heads_that_say_nothing(
    tmp_path: Path, heads: list[int], shared: dict[str, Any]
) -> None:
    """Six query heads over two: against the whole model, the pruned heads' outputs at zero."""
    model, source = llama(tmp_path)
    words = {
        "qkv": "**.q_proj",
        "out": "**.o_proj",
        "heads": str(heads),
        "head_size": "4",
        **shared,
    }
    options = [word for key, value in words.items() for word in ("--set", f"{key}={value}")]
    out = applied(tmp_path, source, "prune-heads", *options)
    with torch.no_grad():
        for layer in model.model.layers:
            for head in heads:
                layer.self_attn.o_proj.weight[:, head * 4 : head * 4 + 4] = 0
        made = type(model).from_pretrained(out, attn_implementation="eager").eval()
        torch.testing.assert_close(made(IDS).logits, model(IDS).logits)


def test_output_of_whisper_is_its_embedding(tmp_path: Path) -> None:
    """proj_out is stored by old versions beside the embedding that it is."""
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    config = transformers.WhisperConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, num_mel_bins=4,
        max_source_positions=8, max_target_positions=8, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None,
        begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "in")
    weights = tmp_path / "in" / "model.safetensors"
    stored = load_file(weights)
    embedding = stored["model.decoder.embed_tokens.weight"]
    save_file(stored | {"proj_out.weight": embedding.clone()}, weights, {"format": "pt"})
    steps = [{"op": "tie", "target": "proj_out.weight", "to": "model.decoder.embed_tokens.weight",
              "when": "equal"},
             {"op": "widen", "target": "proj_out.weight", "rows": 3, "init": "zeros"}]  # fmt: skip
    out = applied(tmp_path, tmp_path / "in", str(write_recipe(tmp_path, *steps)))
    made, info = type(model).from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert made.config.vocab_size == 43
    assert made.proj_out.weight is made.model.decoder.embed_tokens.weight
    sound, ids = torch.ones(1, 4, 16), torch.tensor([[1, 5, 7]])
    with torch.no_grad():
        torch.testing.assert_close(made(sound, decoder_input_ids=ids).logits[..., :40],
                                   model(sound, decoder_input_ids=ids).logits)  # fmt: skip


def test_adapter_opens_with_its_base(tmp_path: Path) -> None:
    """An adapter made of a trained model, opened by AutoPeftModel: the trained model's logits."""
    peft = pytest.importorskip("peft")
    model, base = llama(tmp_path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "up_proj.weight")):
                parameter += torch.randn(len(parameter), 2) @ torch.randn(2, parameter.shape[1]) / 9
    model.save_pretrained(tmp_path / "tuned")
    step = {"op": "lora_extract", "base": "base", "target": ["**.q_proj", "**.up_proj"], "rank": 2}
    recipe = write_recipe(tmp_path, step, models={"base": str(base)},
                          output={"config": {"task_type": "CAUSAL_LM"}})  # fmt: skip
    out = applied(tmp_path, tmp_path / "tuned", str(recipe))
    made = peft.AutoPeftModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        torch.testing.assert_close(made(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


def test_adapter_of_a_tied_head_parts_it_from_the_embedding(tmp_path: Path) -> None:
    """PEFT adds to the head alone while the adapter is apart: the same logits."""
    peft = pytest.importorskip("peft")
    model, source = llama(tmp_path, tie_word_embeddings=True)
    config = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    with_adapter = peft.get_peft_model(model, config).eval()
    with_adapter.save_pretrained(tmp_path / "adapter")
    merge = {"op": "lora_merge", "adapter": str(tmp_path / "adapter")}
    alone = ["apply", str(write_recipe(tmp_path, merge)), str(source), str(tmp_path / "refused")]
    said = CliRunner().invoke(commands, alone).output
    assert said.count("'lm_head.weight', which is tied to 'model.embed_tokens.weight'") == 1
    parted = {"op": "copy", "from": "model.embed_tokens", "to": "lm_head"}
    out = applied(tmp_path, source, str(write_recipe(tmp_path, parted, merge)))
    made = type(model).from_pretrained(out).eval()
    with torch.no_grad():
        torch.testing.assert_close(made(IDS).logits, with_adapter(IDS).logits)


def test_adapters_of_two_parameters_of_one_module_are_merged(tmp_path: Path) -> None:
    """PEFT wraps the experts of GPT-OSS twice, and names the inner ones after base_layer."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **SMALL | {"head_dim": 8}, num_local_experts=4, num_experts_per_tok=2,
        layer_types=["full_attention"] * 2,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = transformers.GptOssForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "in")
    both = ["experts.gate_up_proj", "experts.down_proj"]
    settings = peft.LoraConfig(r=2, target_modules=[], target_parameters=both,
                               init_lora_weights=False)  # fmt: skip
    with_adapter = peft.get_peft_model(model, settings)
    with_adapter.save_pretrained(tmp_path / "adapter")
    merge = {"op": "lora_merge", "adapter": str(tmp_path / "adapter")}
    out = applied(tmp_path, tmp_path / "in", str(write_recipe(tmp_path, merge)))
    made = type(model).from_pretrained(out, attn_implementation="eager").eval()
    with torch.no_grad():
        merged = with_adapter.merge_and_unload()(IDS).logits
        torch.testing.assert_close(made(IDS).logits, merged)


def test_layers_of_a_folder_in_four_bits_go(tmp_path: Path) -> None:
    """The text of bitsandbytes' settings is of another length from one weight to the next."""
    pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")
    _, source = llama(tmp_path, hidden_size=128, intermediate_size=256,
                      num_attention_heads=4, head_dim=32)  # fmt: skip
    settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                               bnb_4bit_compute_dtype=torch.float32,
                                               bnb_4bit_use_double_quant=True)  # fmt: skip

    def opened(folder: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, device_map={"": "cpu"}, attn_implementation="eager",
            **({"quantization_config": settings} if folder == source else {}),
        ).eval()  # fmt: skip

    model = opened(source)
    model.save_pretrained(tmp_path / "codes")
    drop = {"op": "layers", "container": "model.layers", "take": ["1"]}
    made = opened(applied(tmp_path, tmp_path / "codes", str(write_recipe(tmp_path, drop))))
    del model.model.layers[0]
    model.model.layers[0].self_attn.layer_idx = 0
    model.config.num_hidden_layers = 1
    with torch.no_grad():
        assert torch.equal(made(IDS).logits, model(IDS).logits)
