"""The ready-made recipes that convert layouts: as others do it, and back to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import recipe, surgery
from surgeon.base.errors import SurgeonError
from surgeon.output.execute import Options

Tensors = dict[str, torch.Tensor]
HEADS, GROUPS, SIZE, HIDDEN, INNER, EXPERTS = 4, 2, 6, 8, 5, 3
COUNTS = {"heads": HEADS, "kv_heads": GROUPS}


def llama(*, head: bool = True) -> Tensors:
    """Return a tiny model of two layers under Hugging Face's names, with biases."""
    rows = {"q_proj": HEADS * SIZE, "k_proj": GROUPS * SIZE, "v_proj": GROUPS * SIZE}
    shapes = {"model.embed_tokens.weight": (9, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for own in ("model.layers.0", "model.layers.1"):
        for name, size in rows.items():
            shapes |= {f"{own}.self_attn.{name}.weight": (size, HIDDEN)}
            shapes |= {f"{own}.self_attn.{name}.bias": (size,)}
        shapes[f"{own}.self_attn.o_proj.weight"] = (HIDDEN, HEADS * SIZE)
        shapes |= {f"{own}.mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes[f"{own}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{own}.{name}.weight": (HIDDEN,) for name in norms}
    return random(shapes | ({"lm_head.weight": (9, HIDDEN)} if head else {}))


def random(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def converted(folder: Path, name: str, source: Tensors | Path, **variables: Any) -> Tensors:
    if isinstance(source, dict):
        save_file({n: t.contiguous().clone() for n, t in source.items()}, folder / "in.safetensors")
        source = folder / "in.safetensors"
    with surgery.opened(recipe.load(name, variables), str(source), {}) as opened:
        surgery.write(opened, folder / "out.safetensors", Options(), force=True)
    return load_file(folder / "out.safetensors")


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def in_pairs(halves: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows whose rotary halves of each head alternate, row by row."""
    size = len(halves) // heads
    rows = [
        halves[head * size + half * size // 2 + pair]
        for head in range(heads)
        for pair in range(size // 2)
        for half in range(2)
    ]
    return torch.stack(rows)


def by_group(parts: list[torch.Tensor], groups: int) -> torch.Tensor:
    """Return the rows of each group: of the first part, then of the next."""
    return torch.cat([part.chunk(groups)[group] for group in range(groups) for part in parts])


def with_pairs(source: Tensors) -> Tensors:
    turned = dict(source)
    for name, tensor in source.items():
        if ".q_proj." in name or ".k_proj." in name:
            turned[name] = in_pairs(tensor, HEADS if ".q_proj." in name else GROUPS)
    return turned


def renamed(source: Tensors, words: dict[str, str]) -> Tensors:
    found = {}
    for name, tensor in source.items():
        for old, new in words.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


META = {
    "model.embed_tokens": "tok_embeddings", "lm_head": "output", "model.": "",
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TORCHTUNE = {
    "model.embed_tokens": "tok_embeddings", "lm_head": "output", "model.": "",
    "self_attn.o_proj": "attn.output_proj", "self_attn": "attn", "gate_proj": "w1",
    "down_proj": "w2", "up_proj": "w3", "input_layernorm.weight": "sa_norm.scale",
    "post_attention_layernorm.weight": "mlp_norm.scale", "norm.weight": "norm.scale",
}  # fmt: skip


@pytest.mark.parametrize(
    ("there", "back", "words"),
    [
        ("convert-hf-to-llama", "convert-llama-to-hf", META),
        ("convert-hf-to-torchtune", "convert-torchtune-to-hf", TORCHTUNE),
    ],
)
def test_rotary_halves_become_pairs_under_other_names(
    tmp_path: Path, there: str, back: str, words: dict[str, str]
) -> None:
    found = converted(tmp_path, there, llama(), **COUNTS)
    assert_same(found, renamed(with_pairs(llama()), words))
    assert_same(converted(tmp_path, back, found, **COUNTS), llama())


@pytest.mark.parametrize(("groups", "fused"), [(1, "attn.qkv"), (GROUPS, "attn.attn")])
def test_litgpt_fuses_queries_keys_and_values(tmp_path: Path, groups: int, fused: str) -> None:
    layout = {"groups": groups, "fused": fused}
    found = converted(tmp_path, "convert-hf-to-litgpt", llama(), **layout)
    parts = [llama()[f"model.layers.1.self_attn.{p}_proj.bias"] for p in "qkv"]
    assert torch.equal(found[f"transformer.h.1.{fused}.bias"], by_group(parts, groups))
    assert_same(converted(tmp_path, "convert-litgpt-to-hf", found, **COUNTS, **layout), llama())


def test_megatron_fuses_by_group_and_gate_on_up(tmp_path: Path) -> None:
    found = converted(tmp_path, "convert-hf-to-megatron", llama(), kv_heads=GROUPS)
    own, old = "decoder.layers.1", "model.layers.1"
    qkv = [llama()[f"{old}.self_attn.{part}_proj.weight"] for part in "qkv"]
    mlp = [llama()[f"{old}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(found[f"{own}.self_attention.linear_qkv.weight"], by_group(qkv, GROUPS))
    assert torch.equal(found[f"{own}.mlp.linear_fc1.weight"], torch.cat(mlp))
    assert len(found) == 3 + 2 * 7
    assert_same(converted(tmp_path, "convert-megatron-to-hf", found, **COUNTS), llama())


def test_neox_counts_the_layers_between_embedding_and_norm(tmp_path: Path) -> None:
    leaves = ("attention.query_key_value", "mlp.dense_h_to_4h", "input_layernorm")
    names = {f"gpt_neox.layers.{i}.{leaf}": f"sequential.{i + 2}.{leaf}"
             for i in range(2) for leaf in (*leaves, "post_attention_layernorm")}  # fmt: skip
    names |= {"gpt_neox.embed_in": "sequential.0.word_embeddings",
              "gpt_neox.final_layer_norm": "sequential.5.norm",
              "embed_out": "sequential.6.final_linear"}  # fmt: skip
    source = random({f"{name}.weight": (3,) for name in names})
    found = converted(tmp_path, "convert-hf-to-neox", source, layers=2)
    wanted = {f"{new}.weight": source[f"{name}.weight"] for name, new in names.items()}
    assert_same(found, wanted)
    assert_same(converted(tmp_path, "convert-neox-to-hf", found), source)
    with pytest.raises(SurgeonError, match="expected 3 tensors"):
        converted(tmp_path, "convert-hf-to-neox", source, layers=3)


MIXTRAL = {"moe": "model.layers.{i}.block_sparse_moe", "gate": "w1", "up": "w3", "down": "w2"}


@pytest.mark.parametrize(
    ("module", "words", "layout"),
    [
        ("mlp", ("gate_proj", "up_proj", "down_proj"), {}),
        ("block_sparse_moe", ("w1", "w3", "w2"), MIXTRAL),
    ],
)
def test_experts_are_fused_gate_on_up(
    tmp_path: Path, module: str, words: tuple[str, ...], layout: dict[str, str]
) -> None:
    own = f"model.layers.0.{module}"
    shapes = {f"{own}.experts.{e}.{word}.weight": (5, 4) for e in range(3) for word in words[:2]}
    shapes |= {f"{own}.experts.{expert}.{words[2]}.weight": (4, 5) for expert in range(3)}
    source = random(shapes | {f"{own}.gate.weight": (3, 4)})
    found = converted(tmp_path, "convert-experts-to-fused", source, **layout)
    gate, up, down = (
        torch.stack([source[f"{own}.experts.{expert}.{word}.weight"] for expert in range(3)])
        for word in words
    )
    wanted = {"experts.gate_up_proj": torch.cat([gate, up], dim=1), "experts.down_proj": down}
    wanted["gate.weight"] = source[f"{own}.gate.weight"]
    assert_same(found, {f"model.layers.0.mlp.{name}": t for name, t in wanted.items()})
    assert_same(converted(tmp_path, "convert-experts-to-single", found, **layout), source)


UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "down_blocks.0.resnets.0.norm1": "input_blocks.1.0.in_layers.0",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.1.resnets.1.time_emb_proj": "input_blocks.5.0.emb_layers.1",
    "down_blocks.2.resnets.0.norm2": "input_blocks.7.0.out_layers.0",
    "down_blocks.3.resnets.1.conv2": "input_blocks.11.0.out_layers.3",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.0.attentions.0.transformer_blocks.0.norm1":
        "input_blocks.1.1.transformer_blocks.0.norm1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "mid_block.resnets.0.norm1": "middle_block.0.in_layers.0",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
    "up_blocks.0.resnets.2.conv1": "output_blocks.2.0.in_layers.2",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.3.attentions.2.proj_out": "output_blocks.11.1.proj_out",
}  # fmt: skip
VAE = {
    "quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv",
    "encoder.conv_in": "encoder.conv_in", "decoder.conv_out": "decoder.conv_out",
    "decoder.conv_in": "decoder.conv_in", "encoder.conv_norm_out": "encoder.norm_out",
    "encoder.mid_block.resnets.0.norm1": "encoder.mid.block_1.norm1",
    "decoder.mid_block.resnets.1.conv2": "decoder.mid.block_2.conv2",
    "encoder.mid_block.attentions.0.group_norm": "encoder.mid.attn_1.norm",
    "encoder.down_blocks.1.resnets.0.conv_shortcut": "encoder.down.1.block.0.nin_shortcut",
    "encoder.down_blocks.0.downsamplers.0.conv": "encoder.down.0.downsample.conv",
    "decoder.up_blocks.0.resnets.2.conv1": "decoder.up.3.block.2.conv1",
    "decoder.up_blocks.3.resnets.0.conv1": "decoder.up.0.block.0.conv1",
    "decoder.up_blocks.2.upsamplers.0.conv": "decoder.up.1.upsample.conv",
    **{f"{side}.mid_block.attentions.0.{new}": f"{side}.mid.attn_1.{old}"
       for side in ("encoder", "decoder")
       for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))},
    "encoder.conv_out": "encoder.conv_out",
}  # fmt: skip


@pytest.mark.parametrize(
    ("to_single", "back", "prefix", "names", "words"),
    [
        ("convert-diffusers-to-sd-unet", "convert-sd-unet-to-diffusers",
         "model.diffusion_model", UNET, {"plain": 0}),
        ("convert-diffusers-to-sd-vae", "convert-sd-vae-to-diffusers",
         "first_stage_model", VAE, {}),
    ],
)  # fmt: skip
def test_stable_diffusion_has_its_names_in_a_single_file(
    tmp_path: Path,
    to_single: str,
    back: str,
    prefix: str,
    names: dict[str, str],
    words: dict[str, Any],
) -> None:
    source = random({f"{name}.weight": (3, 2) for name in names})
    found = converted(tmp_path, to_single, source, **words)
    single = {f"{prefix}.{new}.weight": source[f"{name}.weight"] for name, new in names.items()}
    single = {n: t[:, :, None, None] if "attn_1." in n and "norm" not in n else t
              for n, t in single.items()}  # fmt: skip
    assert_same(found, single)
    other = {"cond_stage_model.x": torch.ones(2)}
    assert_same(converted(tmp_path, back, found | other), source)


def test_a_block_with_attention_is_not_the_plain_one(tmp_path: Path) -> None:
    source = random({f"{name}.weight": (3, 2) for name in UNET})
    with pytest.raises(SurgeonError, match=r"found 'up_blocks\.3\.attentions"):
        converted(tmp_path, "convert-diffusers-to-sd-unet", source, plain=3)


def test_openclip_fuses_and_transposes(tmp_path: Path) -> None:
    own = "text_model.encoder.layers.0"
    parts = [f"{own}.self_attn.{part}_proj" for part in "qkv"]
    leaves = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", "self_attn.out_proj")
    names = [*parts, *(f"{own}.{leaf}" for leaf in leaves), "text_model.final_layer_norm"]
    shapes = {f"{name}.{leaf}": (4, 3) for name in names for leaf in ("weight", "bias")}
    shapes |= {f"text_model.embeddings.{n}_embedding.weight": (5, 3) for n in ("token", "position")}
    source = random(shapes | {"text_projection.weight": (2, 3)})
    found = converted(tmp_path, "convert-diffusers-to-openclip", source)
    prefix = "conditioner.embedders.1.model"
    fused = torch.cat([source[f"{part}.bias"] for part in parts])
    assert torch.equal(found[f"{prefix}.transformer.resblocks.0.attn.in_proj_bias"], fused)
    assert torch.equal(found[f"{prefix}.text_projection"], source["text_projection.weight"].T)
    assert_same(converted(tmp_path, "convert-openclip-to-diffusers", found), source)


def flux() -> Tensors:
    """Return one block of each kind under the names of the single file."""
    width = {"img_attn.qkv": 12, "txt_attn.qkv": 12, "linear1": 3 * 4 + 16}
    double = [f"{side}_{leaf}" for side in ("img", "txt")
              for leaf in ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")]  # fmt: skip
    modules = [*(f"double_blocks.0.{leaf}" for leaf in double), "final_layer.linear"]
    modules += [f"single_blocks.0.{leaf}" for leaf in ("linear1", "linear2", "modulation.lin")]
    modules += [f"{part}_in.{leaf}" for part in ("time", "vector", "guidance")
                for leaf in ("in_layer", "out_layer")]  # fmt: skip
    modules += ["txt_in", "img_in", "final_layer.adaLN_modulation.1"]
    rows = {name: width.get(name.partition(".0.")[2], 4) for name in modules}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (n, 2) for name, n in rows.items()}
    shapes |= {f"{name}.bias": (n,) for name, n in rows.items()}
    norms = ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0")
    shapes |= {f"{n}.norm.{part}_norm.scale": (4,) for n in norms for part in ("query", "key")}
    return random(shapes)


def test_flux_fuses_and_swaps_shift_and_scale(tmp_path: Path) -> None:
    prefix = "model.diffusion_model."
    single = {f"{prefix}{name}": tensor for name, tensor in flux().items()}
    found = converted(tmp_path, "convert-flux-to-diffusers", single, prefix=prefix)
    rows = flux()["single_blocks.0.linear1.weight"]
    assert torch.equal(found["single_transformer_blocks.0.attn.to_v.weight"], rows[8:12])
    assert torch.equal(found["single_transformer_blocks.0.proj_mlp.weight"], rows[12:])
    shift, scale = flux()["final_layer.adaLN_modulation.1.bias"].chunk(2)
    assert torch.equal(found["norm_out.linear.bias"], torch.cat([scale, shift]))
    assert len(found) == len(single) + 2 * (2 * 2 + 3)
    assert_same(converted(tmp_path, "convert-diffusers-to-flux", found, prefix=prefix), single)


def test_heads_are_what_the_config_beside_the_input_says(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(llama(), folder / "model.safetensors")
    config = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS}
    (folder / "config.json").write_text(json.dumps(config))
    found = converted(tmp_path, "convert-hf-to-llama", folder)
    assert_same(found, renamed(with_pairs(llama()), META))
    (tmp_path / "out.safetensors").rename(tmp_path / "consolidated.safetensors")
    (tmp_path / "params.json").write_text(json.dumps({"n_heads": HEADS, "n_kv_heads": GROUPS}))
    source = tmp_path / "consolidated.safetensors"
    assert_same(converted(tmp_path, "convert-llama-to-hf", source), llama())


@pytest.mark.parametrize("name", ["convert-hf-to-llama", "convert-hf-to-torchtune"])
def test_without_a_config_heads_are_not_guessed(tmp_path: Path, name: str) -> None:
    with pytest.raises(SurgeonError, match=r"size 'head': no config .* 'num_attention_heads'"):
        converted(tmp_path, name, llama())


@pytest.mark.parametrize("name", ["convert-hf-to-llama", "convert-hf-to-megatron"])
def test_what_a_layout_has_no_name_for_is_refused(tmp_path: Path, name: str) -> None:
    more = {"model.layers.0.self_attn.q_norm.weight": torch.ones(SIZE)}
    words = COUNTS if name.endswith("llama") else {"kv_heads": GROUPS}
    with pytest.raises(SurgeonError, match=r"found 'model\.layers\.0\.self_attn\.q_norm\.weight'"):
        converted(tmp_path, name, llama() | more, **words)


def test_a_tied_output_layer_is_stored_where_that_is_said(tmp_path: Path) -> None:
    source, words = llama(head=False), {**COUNTS, "head": "model.embed_tokens"}
    with pytest.raises(SurgeonError, match="'lm_head'"):
        converted(tmp_path, "convert-hf-to-llama", source, **COUNTS)
    found = converted(tmp_path, "convert-hf-to-llama", source, **words)
    assert torch.equal(found["output.weight"], source["model.embed_tokens.weight"])
