"""How transformers' mixtures are laid out that dense models can become."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from surgeon.base.errors import PlanError

Config = Mapping[str, Any]

# The weights of a dense layer.
DENSE = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class MoeLayout:
    """One model type of mixtures.

    `of` are the dense model types that differ from it in their feed-forward layers alone, `block`
    is what is in the place of `mlp`, `parts` what its experts call the dense layer's three. An
    expert of `shared` is gone through by all tokens; `shared_gate` multiplies it, `correction` is a
    bias of the router's choice. `says` is what the config has to say for the router's weights to
    add up to 1.
    """

    model_type: str
    of: tuple[str, ...]
    title: str
    block: str = "mlp"
    parts: Mapping[str, str] = field(default_factory=lambda: {part: part for part in DENSE})
    shared: str | None = None
    shared_gate: str | None = None
    correction: str | None = None
    says: Mapping[str, Any] = field(default_factory=dict)

    def expert(self, number: int, part: str) -> str:
        """Return a weight's name in the block."""
        return f"experts.{number}.{self.parts[part]}.weight"


_ALL_SPARSE = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}

LAYOUTS = {
    layout.model_type: layout
    for layout in (
        MoeLayout(
            "mixtral",
            ("llama", "mistral"),
            "Mixtral",
            "block_sparse_moe",
            {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        ),
        MoeLayout(
            "qwen2_moe",
            ("qwen2", "llama", "mistral"),
            "Qwen2Moe",
            shared="shared_expert",
            shared_gate="shared_expert_gate.weight",
            says=_ALL_SPARSE,
        ),
        MoeLayout("qwen3_moe", ("qwen3",), "Qwen3Moe", says=_ALL_SPARSE),
        MoeLayout(
            "deepseek_v3",
            ("deepseek_v3",),
            "DeepseekV3",
            shared="shared_experts",
            correction="gate.e_score_correction_bias",
            says={"norm_topk_prob": True, "first_k_dense_replace": 0, "n_group": 1,
                  "topk_group": 1, "n_shared_experts": 1, "routed_scaling_factor": 1.0},
        ),
    )
}  # fmt: skip

# What dense classes of transformers take for granted where the config says nothing, and mixtures
# otherwise.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "mistral": {"rms_norm_eps": 1e-6, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
_THETA = 10000.0


def layout_of(config: Config, wanted: str | None, *, is_shared: bool) -> MoeLayout:
    """Return the layout that a dense model gets; raises PlanError where that cannot be known."""
    kind = config.get("model_type")
    fitting = [layout for layout in LAYOUTS.values() if kind in layout.of]
    if wanted is not None:
        layout = LAYOUTS[wanted]
        if kind is not None and layout not in fitting:
            raise PlanError(
                f"a {kind} becomes no {wanted}, which is made of {' or '.join(layout.of)}"
            )
    elif kind is None:
        raise PlanError(
            f'there is no config.json beside the input: say as what "layout" the mixture is '
            f"written: {', '.join(LAYOUTS)}"
        )
    else:
        found = [layout for layout in fitting if (layout.shared is not None) == is_shared]
        if not found and not fitting:
            known = sorted({one for layout in LAYOUTS.values() for one in layout.of})
            raise PlanError(
                f"no mixture is known for model_type '{kind}', but for {', '.join(known)}; upcycle "
                "makes experts under names of your own"
            )
        layout = (found or fitting)[0]
    if is_shared and layout.shared is None:
        raise PlanError(f"{layout.model_type} has no shared expert; leave out 'shared'")
    if not is_shared and layout.shared is not None:
        raise PlanError(
            f"{layout.model_type} has an expert that all tokens go through: say which model's with "
            "'shared'; with \"scale\": 0 it adds nothing"
        )
    return layout


def said_of(layout: MoeLayout, config: Config, per_token: int) -> dict[str, Any]:
    """Return what the config says of the mixture, besides what its tensors say."""
    kind = str(config.get("model_type"))
    said: dict[str, Any] = {"model_type": layout.model_type, "num_experts_per_tok": per_token}
    said |= layout.says
    if isinstance(names := config.get("architectures"), list):
        dense = r"^(Llama|Mistral|Qwen2|Qwen3)(?=For|Model)"
        said["architectures"] = [re.sub(dense, layout.title, str(name)) for name in names]
    if kind == layout.model_type:
        return said
    said |= {key: value for key, value in _DEFAULTS.get(kind, {}).items() if key not in config}
    if kind == "llama" and config.get("num_key_value_heads") is None:
        said["num_key_value_heads"] = config.get("num_attention_heads", 32)
    if "rope_theta" not in config and not config.get("rope_parameters"):
        said["rope_theta"] = _THETA
    if layout.model_type == "qwen2_moe" and kind != "qwen2":
        said["qkv_bias"] = bool(config.get("attention_bias"))
    return said


def require_plain(layout: MoeLayout, config: Config) -> None:
    """Raise PlanError for settings of the dense model that the mixture's class does not have."""
    problems = []
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {config['hidden_act']!r}")
    if config.get("use_sliding_window") or (
        layout.model_type == "qwen2_moe" and config.get("model_type") == "mistral"
        and config.get("sliding_window", 1)
    ):  # fmt: skip
        problems.append("it attends in a sliding window")
    if isinstance(config.get("text_config"), dict):
        problems.append("it has a text_config: take the language model out of it")
    dense = config.get("first_k_dense_replace")
    if layout.correction and isinstance(dense, int) and dense < config.get("num_hidden_layers", 0):
        problems.append(f"first_k_dense_replace is {dense}: it is a mixture already")
    if problems:
        raise PlanError(
            *(f"config.json: {problem}, which is not made a {layout.model_type}"
              for problem in problems)
        )  # fmt: skip
