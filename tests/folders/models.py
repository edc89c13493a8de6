"""Tiny random models, by the defaults of their config classes with small numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYERS = 4
VOCABULARY = 96
_SMALL: dict[str, int] = {
    "vocab_size": VOCABULARY, "decoder_vocab_size": VOCABULARY, "hidden_size": 32, "d_model": 32,
    "n_embd": 32, "dim": 32, "embedding_size": 32, "embed_dim": 32, "ffn_dim": 48, "d_ff": 48,
    "intermediate_size": 48, "n_inner": 48, "ffn_hidden_size": 48, "hidden_dim": 48,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2,
    "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4, "rotary_dim": 8,
    "decoder_attention_heads": 4, "head_dim": 8, "d_kv": 8, "max_position_embeddings": 64,
    "n_positions": 64, "n_ctx": 64, "num_hidden_layers": LAYERS, "n_layer": LAYERS,
    "n_layers": LAYERS, "num_layers": LAYERS, "num_decoder_layers": LAYERS,
    "encoder_layers": LAYERS, "decoder_layers": LAYERS, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "qk_head_dim": 16, "word_embed_proj_dim": 32, "state_size": 8,
    "attention_hidden_size": 32, "sliding_window": 4, "global_attn_every_n_layers": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "first_k_dense_replace": 1, "max_window_layers": 2, "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
}  # fmt: skip

# What some types need besides: their defaults are null, or bound to one another.
_OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "xmod": {"default_language": "en_XX"},
}

# Model types that take token ids alone.
TYPES = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2",
    "gemma3_text", "phi", "phi3", "gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "bloom",
    "falcon", "opt", "olmo", "olmo2", "olmo3", "olmoe", "cohere", "cohere2", "starcoder2",
    "stablelm", "granite", "granitemoe", "deepseek_v2", "deepseek_v3", "glm", "glm4", "glm4_moe",
    "nemotron", "persimmon", "codegen", "gpt_oss", "smollm3", "exaone4", "ernie4_5",
    "ernie4_5_moe", "helium", "arcee", "apertus", "seed_oss", "hunyuan_v1_dense", "minimax",
    "mamba", "xglm", "biogpt", "bert-generation", "llama4_text", "doge", "dots1", "lfm2",
    "jamba", "vaultgemma", "ministral", "phimoe", "diffllama",
    "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "albert", "electra", "mpnet",
    "deberta", "deberta-v2", "modernbert", "ernie", "layoutlm", "convbert", "mobilebert",
    "roberta-prelayernorm", "xmod", "fnet", "nystromformer", "roformer", "squeezebert",
    "t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "blenderbot", "blenderbot-small",
    "m2m_100", "plbart", "led", "prophetnet", "longt5", "switch_transformers",
)  # fmt: skip


def class_of(model_type: str) -> str | None:
    """Return the class of a type that has logits over the vocabulary."""
    for table in ("SEQ_TO_SEQ_CAUSAL_LM", "CAUSAL_LM", "MASKED_LM"):
        found = getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").get(model_type)
        if found and not (table == "CAUSAL_LM" and model_type in _ENCODERS):
            return str(found[0] if isinstance(found, tuple | list) else found)
    return None


_ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "roformer", "xmod",
             "roberta-prelayernorm")  # fmt: skip


def small(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with small numbers, in nested ones too."""
    values = dict(config)
    numbers = {key: one for key, one in values.items() if type(one) is int}
    layers = {numbers.get(key) for key in _SMALL if key.endswith(("layers", "layer"))}
    for key, value in config.items():
        if isinstance(value, list) and len(value) in layers and "layer" in key:
            values[key] = value[:LAYERS]
        elif key in _SMALL and (type(value) is int or (value is None and key.endswith("dim"))):
            values[key] = _SMALL[key]
        elif isinstance(value, dict) and "model_type" in value:
            values[key] = small(value)
    return values


def tiny_config(model_type: str, settings: Mapping[str, Any] | None = None) -> Any:
    """Return the config of a model with small numbers, and these settings."""
    values = small(CONFIG_MAPPING[model_type]().to_dict())
    values |= _OWN.get(model_type, {}) | dict(settings or {})
    config = CONFIG_MAPPING[model_type].from_dict(values)
    config._attn_implementation = "eager"
    return config


def tiny(model_type: str, seed: int, settings: Mapping[str, Any] | None = None) -> Any:
    """Return a random model with small numbers, and these settings."""
    torch.manual_seed(seed)
    config = tiny_config(model_type, settings)
    model = getattr(transformers, str(class_of(model_type)))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def saved(model: Any, folder: Path, without: Sequence[str] = ()) -> Path:
    """Save a model as transformers does; without some keys of its config."""
    model.save_pretrained(folder)
    if without:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({key: v for key, v in config.items() if key not in without}))
    return folder


def loaded(folder: Path, like: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Load a folder; raise ValueError where a key is missing, unexpected or mismatched."""
    model, info = type(like).from_pretrained(
        folder, output_loading_info=True, dtype=dtype, attn_implementation="eager"
    )
    wrong = {key: sorted(map(str, some))[:3] for key, some in info.items() if some}
    if wrong:
        raise ValueError(f"keys: {wrong}")
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    """Return the logits of some token ids."""
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :5]
    with torch.no_grad():
        try:
            found = model(**inputs, use_cache=False).logits
        except TypeError:  # a model without a cache
            found = model(**inputs).logits
    return found
