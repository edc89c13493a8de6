"""The recipes that convert layouts against the converters that others ship.

What `make slow` installs is not all of them: `pip install --no-deps litgpt torchtune torchao`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_recipes_convert import COUNTS, GROUPS, HEADS, HIDDEN, INNER, SIZE, llama

from tests.test_recipes_convert import assert_same, converted  # isort: skip

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Tensors = dict[str, torch.Tensor]


def without_biases(*, head: bool = True) -> Tensors:
    source = llama(head=head)
    return {name: tensor for name, tensor in source.items() if not name.endswith("bias")}


def random_of(model: torch.nn.Module) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(t.shape, generator=generator) for n, t in model.state_dict().items()}


def test_torchtune(tmp_path: Path) -> None:
    weights = pytest.importorskip("torchtune.models.convert_weights")
    source, sizes = without_biases(), {"dim": HIDDEN, "head_dim": SIZE}
    wanted = weights.hf_to_tune(source, num_heads=HEADS, num_kv_heads=GROUPS, **sizes)
    assert_same(converted(tmp_path, "convert-hf-to-torchtune", source, **COUNTS), wanted)
    assert_same(converted(tmp_path, "convert-torchtune-to-hf", wanted, **COUNTS), source)


@pytest.mark.parametrize("head", [True, False])
def test_litgpt(tmp_path: Path, head: bool) -> None:
    scripts = pytest.importorskip("litgpt.scripts.convert_hf_checkpoint")
    from litgpt.config import Config

    source, wanted = without_biases(head=head), {}
    config = Config(mlp_class_name="LLaMAMLP", intermediate_size=INNER)
    scripts.copy_weights_hf_llama(config, {}, wanted, source)
    words = {} if head else {"head": "model.embed_tokens"}
    assert_same(converted(tmp_path, "convert-hf-to-litgpt", source, **words), wanted)
    found = converted(tmp_path, "convert-litgpt-to-hf", wanted, **COUNTS)
    assert_same({n: t for n, t in found.items() if n in source}, source)


def test_litgpt_as_it_was(tmp_path: Path) -> None:
    scripts = pytest.importorskip("litgpt.scripts.convert_hf_checkpoint")
    from litgpt.config import Config

    layout = {"groups": GROUPS, "fused": "attn.attn"}
    found = converted(tmp_path, "convert-hf-to-litgpt", llama(), **layout)
    config = Config(n_head=HEADS, n_query_groups=GROUPS, head_size=SIZE, n_embd=HIDDEN)
    fused = scripts.qkv_reassemble(found["transformer.h.0.attn.attn.weight"], config)
    parts = [llama()[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    torch.testing.assert_close(fused, torch.cat(parts), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("qwen3_moe", {}),
        ("mixtral", {"moe": "model.layers.{i}.block_sparse_moe", "gate": "w1", "up": "w3",
                     "down": "w2"}),
    ],
)  # fmt: skip
def test_transformers_fuses_the_same_experts(
    tmp_path: Path, kind: str, layout: dict[str, str]
) -> None:
    import transformers
    from safetensors.torch import load_file

    sizes = {"hidden_size": 8, "intermediate_size": 6, "moe_intermediate_size": 6, "head_dim": 4}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
              "num_experts": 3, "num_local_experts": 3, "vocab_size": 7}  # fmt: skip
    config = transformers.AutoConfig.for_model(kind, **sizes, **counts)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")  # writes experts one by one
    single = load_file(tmp_path / "model" / "model.safetensors")
    fused = dict(model.state_dict())
    assert_same(converted(tmp_path, "convert-experts-to-fused", single, **layout), fused)
    assert_same(converted(tmp_path, "convert-experts-to-single", fused, **layout), single)


UNETS: dict[str, dict[str, Any]] = {
    "1": {
        "block_out_channels": (4, 4, 8, 8),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    },
    "XL": {
        "block_out_channels": (4, 4, 8),
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 3), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 14,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "plain", "per_block"), [("1", 0, 2), ("1", 0, 1), ("XL", 2, 2)]
)
def test_diffusers_reads_the_unet(tmp_path: Path, version: str, plain: int, per_block: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    sizes = {"norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 6}
    model = diffusers.UNet2DConditionModel(**sizes, **UNETS[version], layers_per_block=per_block)
    source, words = random_of(model), {"layers_per_block": per_block}
    single = converted(tmp_path, "convert-diffusers-to-sd-unet", source, plain=plain, **words)
    assert_same(single_file.convert_ldm_unet_checkpoint(dict(single), model.config), source)
    assert_same(converted(tmp_path, "convert-sd-unet-to-diffusers", single, **words), source)


def test_diffusers_reads_the_vae(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), layers_per_block=2, norm_num_groups=2,
    )  # fmt: skip
    source = random_of(model)
    single = converted(tmp_path, "convert-diffusers-to-sd-vae", source)
    assert_same(single_file.convert_ldm_vae_checkpoint(dict(single), model.config), source)
    assert_same(converted(tmp_path, "convert-sd-vae-to-diffusers", single), source)


def test_diffusers_reads_the_text_encoder(tmp_path: Path) -> None:
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"hidden_size": 8, "intermediate_size": 16, "projection_dim": 8}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 7}
    ids = {"vocab_size": 11, "bos_token_id": 1, "eos_token_id": 2}
    model = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **counts, **ids))
    source = random_of(model)
    single = converted(tmp_path, "convert-diffusers-to-openclip", source)
    found = single_file.convert_open_clip_checkpoint(
        model, dict(single), prefix="conditioner.embedders.1.model."
    )
    assert_same(found, source)
    assert_same(converted(tmp_path, "convert-openclip-to-diffusers", single), source)


@pytest.mark.parametrize("guidance", [True, False])
def test_diffusers_reads_flux(tmp_path: Path, guidance: bool) -> None:
    diffusers = pytest.importorskip("diffusers")
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    model = diffusers.FluxTransformer2DModel(
        in_channels=2, num_layers=1, num_single_layers=2, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=3, pooled_projection_dim=3,
        guidance_embeds=guidance, axes_dims_rope=(0, 2, 2),
    )  # fmt: skip
    source = random_of(model)
    single = converted(tmp_path, "convert-diffusers-to-flux", source)
    # The converter knows one width alone: Flux's own.
    text = inspect.getsource(single_file.convert_flux_transformer_checkpoint_to_diffusers)
    names = dict(vars(single_file))
    exec(text.replace("inner_dim = 3072", "inner_dim = 8"), names)
    assert_same(names["convert_flux_transformer_checkpoint_to_diffusers"](dict(single)), source)
    assert_same(converted(tmp_path, "convert-flux-to-diffusers", single), source)
