"""Which dimension of which tensor is which number of a model folder's config.json.

A place is `name[dimension]`: a pattern for the end of a tensor's name. What it is said to be is a
number of the config, or a product of numbers (`3*n_embd`). A rule is only followed where the input
keeps it already, so that a model which is different after all is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Grid:
    """Position embeddings over the patches of an image, after `extra` rows of other tokens."""

    place: str
    extra: int


@dataclass(frozen=True)
class Family:
    """Architectures whose configs follow from their tensors in the same way.

    `sizes` maps numbers of the config to places, `counts` maps them to numbered containers, and
    `heads` maps numbers of heads to what they times `head_dim` are. `defaults` says what a number
    is where it is missing or null. `layer_lists` have one entry per layer. An `output` embedding is
    tied to the `embedding` where `tie_word_embeddings` says so.
    """

    types: tuple[str, ...]
    sizes: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    layer_lists: tuple[str, ...] = ()
    embedding: str = ""
    output: str = ""
    grid: Grid | None = None


_LAYER_NORMS = "(input|post_attention|pre_feedforward|post_feedforward)_layernorm"

# transformers.models.llama, mistral, mixtral, qwen2, qwen3, gemma, gemma2.
_LLAMA = Family(
    types=("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2"),
    sizes={
        "vocab_size": ("embed_tokens.weight[0]", "lm_head.weight[0]"),
        "hidden_size": (
            "embed_tokens.weight[1]",
            "lm_head.weight[1]",
            "score.weight[1]",
            "norm.weight[0]",
            f"layers.*.{_LAYER_NORMS}.weight[0]",
            "layers.*.self_attn.(q|k|v)_proj.weight[1]",
            "layers.*.self_attn.o_proj.(weight|bias)[0]",
            "layers.*.mlp.(gate|up)_proj.weight[1]",
            "layers.*.mlp.down_proj.(weight|bias)[0]",
            "layers.*.block_sparse_moe.gate.weight[1]",
            "layers.*.block_sparse_moe.experts.*.(w1|w3).weight[1]",
            "layers.*.block_sparse_moe.experts.*.w2.weight[0]",
        ),
        "intermediate_size": (
            "layers.*.mlp.(gate|up)_proj.(weight|bias)[0]",
            "layers.*.mlp.down_proj.weight[1]",
            "layers.*.block_sparse_moe.experts.*.(w1|w3).weight[0]",
            "layers.*.block_sparse_moe.experts.*.w2.weight[1]",
        ),
        "num_local_experts": ("layers.*.block_sparse_moe.gate.weight[0]",),
        "num_attention_heads*head_dim": (
            "layers.*.self_attn.q_proj.(weight|bias)[0]",
            "layers.*.self_attn.o_proj.weight[1]",
        ),
        "num_key_value_heads*head_dim": ("layers.*.self_attn.(k|v)_proj.(weight|bias)[0]",),
        "head_dim": ("layers.*.self_attn.(q|k)_norm.weight[0]",),
    },
    counts={"num_hidden_layers": "layers", "num_local_experts": "experts"},
    heads={
        "num_attention_heads": "num_attention_heads*head_dim",
        "num_key_value_heads": "num_key_value_heads*head_dim",
    },
    defaults={
        "head_dim": "hidden_size/num_attention_heads",
        "num_key_value_heads": "num_attention_heads",
    },
    labels=("score.weight[0]", "score.bias[0]", "qa_outputs.(weight|bias)[0]"),
    layer_lists=("layer_types",),
    embedding="embed_tokens.weight",
    output="lm_head.weight",
)

# Its linear layers are stored the other way round: (inputs, outputs).
_GPT2 = Family(
    types=("gpt2",),
    sizes={
        "vocab_size": ("wte.weight[0]", "lm_head.weight[0]"),
        "n_positions": ("wpe.weight[0]",),
        "n_ctx": ("wpe.weight[0]",),
        "n_embd": (
            "wte.weight[1]",
            "wpe.weight[1]",
            "lm_head.weight[1]",
            "score.weight[1]",
            "h.*.(ln_1|ln_2).(weight|bias)[0]",
            "ln_f.(weight|bias)[0]",
            "h.*.attn.c_attn.weight[0]",
            "h.*.attn.c_proj.weight[0]",
            "h.*.attn.c_proj.weight[1]",
            "h.*.attn.c_proj.bias[0]",
            "h.*.mlp.c_fc.weight[0]",
            "h.*.mlp.c_proj.weight[1]",
            "h.*.mlp.c_proj.bias[0]",
        ),
        "3*n_embd": ("h.*.attn.c_attn.weight[1]", "h.*.attn.c_attn.bias[0]"),
        "n_inner": (
            "h.*.mlp.c_fc.weight[1]",
            "h.*.mlp.c_fc.bias[0]",
            "h.*.mlp.c_proj.weight[0]",
        ),
    },
    counts={"n_layer": "h"},
    heads={"n_head": "n_embd"},
    defaults={"n_inner": "4*n_embd", "head_dim": "n_embd/n_head"},
    labels=("score.weight[0]", "classifier.(weight|bias)[0]", "qa_outputs.(weight|bias)[0]"),
    embedding="wte.weight",
    output="lm_head.weight",
)

_ENCODER_LAYER = (
    "layer.*.attention.output.dense.(weight|bias)[0]",
    "layer.*.attention.output.dense.weight[1]",
    "layer.*.intermediate.dense.weight[1]",
    "layer.*.output.dense.(weight|bias)[0]",
    "pooler.dense.weight[1]",
)
_MIDDLE = (
    "layer.*.intermediate.dense.(weight|bias)[0]",
    "layer.*.output.dense.weight[1]",
)

_BERT = Family(
    types=("bert", "roberta", "xlm-roberta", "camembert"),
    sizes={
        "vocab_size": (
            "embeddings.word_embeddings.weight[0]",
            "cls.predictions.decoder.(weight|bias)[0]",
            "cls.predictions.bias[0]",
            "lm_head.decoder.(weight|bias)[0]",
            "lm_head.bias[0]",
        ),
        "max_position_embeddings": ("embeddings.position_embeddings.weight[0]",),
        "type_vocab_size": ("embeddings.token_type_embeddings.weight[0]",),
        "hidden_size": (
            "embeddings.(word|position|token_type)_embeddings.weight[1]",
            "embeddings.LayerNorm.(weight|bias)[0]",
            "layer.*.attention.self.(query|key|value).(weight|bias)[0]",
            "layer.*.attention.self.(query|key|value).weight[1]",
            "layer.*.attention.output.LayerNorm.(weight|bias)[0]",
            "layer.*.output.LayerNorm.(weight|bias)[0]",
            "pooler.dense.(weight|bias)[0]",
            "cls.predictions.transform.dense.(weight|bias)[0]",
            "cls.predictions.transform.dense.weight[1]",
            "cls.predictions.transform.LayerNorm.(weight|bias)[0]",
            "cls.predictions.decoder.weight[1]",
            "cls.seq_relationship.weight[1]",
            "lm_head.dense.(weight|bias)[0]",
            "lm_head.dense.weight[1]",
            "lm_head.layer_norm.(weight|bias)[0]",
            "lm_head.decoder.weight[1]",
            "classifier.weight[1]",
            "classifier.dense.(weight|bias)[0]",
            "classifier.dense.weight[1]",
            "classifier.out_proj.weight[1]",
            "qa_outputs.weight[1]",
            *_ENCODER_LAYER,
        ),
        "intermediate_size": _MIDDLE,
    },
    counts={"num_hidden_layers": "layer"},
    heads={"num_attention_heads": "hidden_size"},
    defaults={"head_dim": "hidden_size/num_attention_heads"},
    labels=(
        "classifier.(weight|bias)[0]",
        "classifier.out_proj.(weight|bias)[0]",
        "qa_outputs.(weight|bias)[0]",
    ),
    embedding="embeddings.word_embeddings.weight",
    output="(cls.predictions|lm_head).decoder.weight",
)


def _image_family(name: str, extra: int) -> Family:
    """Return the rules of ViT, and of DeiT, which has one more token before the patches."""
    return Family(
        types=(name,),
        sizes={
            "num_channels": ("embeddings.patch_embeddings.projection.weight[1]",),
            "patch_size": (
                "embeddings.patch_embeddings.projection.weight[2]",
                "embeddings.patch_embeddings.projection.weight[3]",
            ),
            "hidden_size": (
                "embeddings.(cls_token|distillation_token|mask_token)[2]",
                "embeddings.position_embeddings[2]",
                "embeddings.patch_embeddings.projection.(weight|bias)[0]",
                "layer.*.attention.attention.(query|key|value).(weight|bias)[0]",
                "layer.*.attention.attention.(query|key|value).weight[1]",
                "layer.*.(layernorm_before|layernorm_after).(weight|bias)[0]",
                "layernorm.(weight|bias)[0]",
                "(classifier|cls_classifier|distillation_classifier).weight[1]",
                *_ENCODER_LAYER,
            ),
            "intermediate_size": _MIDDLE,
            "pooler_output_size": ("pooler.dense.(weight|bias)[0]",),
        },
        counts={"num_hidden_layers": "layer"},
        heads={"num_attention_heads": "hidden_size"},
        defaults={
            "head_dim": "hidden_size/num_attention_heads",
            "pooler_output_size": "hidden_size",
        },
        labels=("(classifier|cls_classifier|distillation_classifier).(weight|bias)[0]",),
        grid=Grid("embeddings.position_embeddings", extra),
    )


# Of an architecture that is none of the others, what goes by the same name in most.
COMMON = Family(
    types=(),
    sizes={
        "vocab_size": (
            "(embed_tokens|wte|word_embeddings|embed_in|shared).weight[0]",
            "(lm_head|embed_out).(weight|bias)[0]",
        ),
    },
    labels=(
        "(classifier|score|qa_outputs).(weight|bias)[0]",
        "classifier.(out_proj|1).(weight|bias)[0]",
    ),
    embedding="(embed_tokens|wte|word_embeddings|embed_in|shared).weight",
    output="(lm_head|embed_out).weight",
)

FAMILIES = {
    model_type: family
    for family in (_LLAMA, _GPT2, _BERT, _image_family("vit", 1), _image_family("deit", 2))
    for model_type in family.types
}
