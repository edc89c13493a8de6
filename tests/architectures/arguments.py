"""What some architectures need stated before they can be built, and what shows more of them."""

from __future__ import annotations

from tests.architectures.configs import Json

_ROPE: Json = {
    kind: {"rope_type": "default", "rope_theta": 10000.0}
    for kind in ("full_attention", "sliding_attention")
}
_INDEXER: Json = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "indexer_budget": 512,
    "indexer_compress_ratio": 4,
}
# Convolutions of the models of PaddleOCR that find text: kernels, strides, paddings.
_TEXT_FINDER: Json = {
    "kernel_list": [3, 2, 2],
    "scale_factor_list": [1, 2, 4, 8],
    "intraclass_block_config": {
        "reduce_channel": [1, 1, 0],
        "return_channel": [1, 1, 0],
        **{
            f"{name}_{ratio}ratio": [[high, wide], [1, 1], [high // 2, wide // 2]]
            for ratio, size in (("long", 7), ("mid", 5), ("short", 3))
            for name, high, wide in (
                ("vertical_long_to_small_conv", size, 1),
                ("horizontal_small_to_long_conv", 1, size),
                ("symmetric_conv_long", size, size),
            )
        },
    },
}

# The defaults of these config classes build no model.
NEEDED: dict[str, Json] = {
    "autoformer": {"prediction_length": 24},
    "informer": {"prediction_length": 24},
    "time_series_transformer": {"prediction_length": 24},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "hunyuan_vl_text": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "lfm2_moe": {
        "num_hidden_layers": 8,
        "layer_types": ["conv", "conv", "full_attention", "conv"] * 2,
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "emu3": {"vocabulary_map": {"<image>": 4}},
    "aya_vision": {
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "num_attention_heads": 16,
        }
    },
    "deepseek_ocr2": {
        "text_config": {
            "mlp_layer_types": ["dense", *["sparse"] * 11],
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 6,
        }
    },
    "diffusion_gemma": {
        "text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 704}
    },
    "cohere_compass": {"text_config": {"rope_parameters": _ROPE}},
    "cohere_compass_text": {"rope_parameters": _ROPE},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    # Not Granite 4 Vision: its lists of layers of another part of the model follow no rule here.
    "qwen3_omni_moe": {
        "talker_config": {
            "spatial_merge_size": 2,
            "text_config": {"shared_expert_intermediate_size": 768},
        }
    },
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "pp_ocrv5_server_det": _TEXT_FINDER,
    "pp_ocrv6_medium_det": _TEXT_FINDER,
    "gemma3n_vision": {"num_classes": 5},
    "perception_lm": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "num_classes": 5,
            "model_args": {
                "depth": 23,
                "embed_dim": 1024,
                "global_pool": "",
                "img_size": [448, 448],
                "init_values": 0.1,
                "ref_feat_shape": [32, 32],
                "use_post_transformer_norm": False,
            },
        }
    },
    "led": {"attention_window": [512] * 12},
    "longformer": {"attention_window": [512] * 12},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    },
}

# Settings beside the defaults under which further tensors appear.
VARIANTS: dict[str, tuple[Json, ...]] = {
    "t5": ({"feed_forward_proj": "gated-gelu"},),
    "mt5": ({"feed_forward_proj": "relu"},),
    "umt5": ({"feed_forward_proj": "relu"},),
    "longt5": ({"feed_forward_proj": "gated-gelu"},),
    "switch_transformers": ({"feed_forward_proj": "gated-gelu"},),
}
