"""Projections that hold queries, keys and values, against the modules of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from surgeon.cli.commands import commands
from tests.late import Late
from tests.network import write_recipe

transformers: Any = Late("transformers", is_optional=True)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
IDS = torch.arange(3, 12)[None]
SMALL = {"vocab_size": 32, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def made(folder: Path, name: str, *, kind: str = "CausalLM", **settings: Any) -> Any:
    torch.manual_seed(0)
    given = settings if kind == "ConditionalGeneration" else SMALL | settings
    config = getattr(transformers, f"{name}Config")(**given)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}For{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(folder / "in")
    return model


def run(folder: Path, recipe: str, into: str, /, **variables: Any) -> Any:
    given = [f"--set={key}={json.dumps(value)}" for key, value in variables.items()]
    words = ["apply", recipe, str(folder / "in"), str(folder / into), *given]
    return CliRunner().invoke(commands, words)


def loaded(model: Any, folder: Path) -> Any:
    found, info = type(model).from_pretrained(folder / "out", output_loading_info=True)
    assert not any(info.values())
    return found.eval()


# Of each type: where its fused projection is, what splits it right, and each head's rows of
# queries, keys and values in the order of the module's own code (4 heads of 6).
LAYOUTS: dict[str, tuple[str, dict[str, Any], list[int], dict[str, Any]]] = {
    "GPTNeoX": ("gpt_neox.layers.{i}.attention:query_key_value", {"groups": 4},
                [0, 18, 36, 54, 6, 24, 42, 60, 12, 30, 48, 66], {"num_attention_heads": 4}),
    "Bloom": ("transformer.h.{i}.self_attention:query_key_value", {"groups": 4},
              [0, 18, 36, 54, 6, 24, 42, 60, 12, 30, 48, 66], {"n_layer": 2, "n_head": 4}),
    "Falcon": ("transformer.h.{i}.self_attention:query_key_value",
               {"groups": 2, "sizes": [24, 12, 12]}, [0, 6, 24, 30, 12, 36, 18, 42],
               {"num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True,
                "num_ln_in_parallel_attn": 1}),
    "Persimmon": ("model.layers.{i}.self_attn:query_key_value", {"groups": 4},
                  [0, 18, 36, 54, 6, 24, 42, 60, 12, 30, 48, 66], {"num_attention_heads": 4}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_split_parts_queries_keys_and_values(kind: str, tmp_path: Path) -> None:
    place, right, rows, settings = LAYOUTS[kind]
    model = made(tmp_path, kind, **settings)
    attention, _, fused = place.partition(":")
    words = {"attention": attention, "fused": fused, "sizes": [24, 24, 24]}
    said = run(tmp_path, "split-qkv", "wrong.safetensors", **words | {"groups": 1,
               "sizes": right.get("sizes", words["sizes"])})  # fmt: skip
    assert said.exit_code == 4
    assert f'say "groups": {right["groups"]}' in said.output
    said = run(tmp_path, "split-qkv", "right.safetensors", **words | right)
    assert said.exit_code == 0, said.output
    found, own = load_file(tmp_path / "right.safetensors"), attention.replace("{i}", "1")
    parts = [found[f"{own}.{part}.weight"] for part in ("q_proj", "k_proj", "v_proj")]
    weight = model.state_dict()[f"{own}.{fused}.weight"]
    assert torch.equal(torch.cat(parts), torch.cat([weight[row : row + 6] for row in rows]))


@pytest.mark.parametrize("drop", [[1, 4], [3, 4, 5]])
def test_phi_3_without_heads_computes_what_it_did_without_their_outputs(
    drop: list[int], tmp_path: Path
) -> None:
    """Six heads of queries over two, in one projection with them; config.json has no head_dim."""
    model = made(tmp_path, "Phi3", num_attention_heads=6, num_key_value_heads=2)
    gone = {*drop, *({7, 9} if len(drop) == 3 else ())}
    step = {"op": "narrow", "target": "**.qkv_proj", "block": 4, "drop": sorted(gone)}
    rest = {"op": "narrow", "target": "**.o_proj.weight", "dim": 1, "block": 4, "drop": drop}
    said = run(tmp_path, str(write_recipe(tmp_path, step, rest)), "out")
    assert said.exit_code == 0, said.output
    with torch.no_grad():
        for layer in model.model.layers:
            for head in drop:
                layer.self_attn.o_proj.weight[:, head * 4 : head * 4 + 4] = 0
        torch.testing.assert_close(loaded(model, tmp_path)(IDS).logits, model(IDS).logits)


def without_heads(model: Any, heads: tuple[int, ...], size: int) -> Any:
    """Return logits where the outputs of heads are taken as zeros."""
    with torch.no_grad():
        for name, module in model.named_modules():
            for head in heads if name.endswith("self_attn.o_proj") and "vision" not in name else ():
                module.weight[:, head * size : head * size + size] = 0
        return model(IDS).logits


def test_gates_queries_keys_and_values_of_hrm_go_together(tmp_path: Path) -> None:
    """One projection on disk, four modules of transformers."""
    model = made(tmp_path, "HrmText", num_attention_heads=4, head_dim=6)
    step = {"op": "narrow", "target": "**.gqkv_proj", "block": 6, "drop": [1, 5, 9]}
    said = run(tmp_path, str(write_recipe(tmp_path, step)), "out")
    assert said.exit_code == 4
    assert "holds gates, then queries, then keys, then values" in said.output
    said = run(tmp_path, "prune-heads", "out", qkv="**.gqkv_proj", out="**.o_proj", head_size=6,
               heads=1, parts=4)  # fmt: skip
    assert said.exit_code == 0, said.output
    assert "not known" not in said.output
    gone = without_heads(model, (1,), 6)
    torch.testing.assert_close(loaded(model, tmp_path)(IDS).logits, gone)


@pytest.mark.parametrize("drop", [[1, 4], [3, 4, 5]])
def test_molmo_2_without_heads_computes_what_it_did_without_their_outputs(
    drop: list[int], tmp_path: Path
) -> None:
    """The text model's queries, keys and values are one projection on disk: 6 heads over 2."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2,
             "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
    vision = sizes | {"num_hidden_layers": 2, "image_default_input_size": [28, 28]}
    between = sizes | {"vision_feature_layer": [1, 0], "text_hidden_size": 24}
    text = SMALL | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
    model = made(tmp_path, "Molmo2", kind="ConditionalGeneration", text_config=text,
                 vision_config=vision, adapter_config=between)  # fmt: skip
    gone = {*drop, *({7, 9} if len(drop) == 3 else ())}
    step = {"op": "narrow", "target": "**.att_proj", "block": 4, "drop": sorted(gone)}
    rest = {"op": "narrow", "target": "**.attn_out.weight", "dim": 1, "block": 4, "drop": drop}
    said = run(tmp_path, str(write_recipe(tmp_path, step, rest)), "out")
    assert said.exit_code == 0, said.output
    assert "not known" not in said.output
    expected = without_heads(model, tuple(drop), 4)
    torch.testing.assert_close(loaded(model, tmp_path)(IDS).logits, expected)


def test_keys_of_jetmoe_go_with_their_values(tmp_path: Path) -> None:
    """Experts hold the queries of as many heads as there are keys, of kv_channels each."""
    made(tmp_path, "JetMoe", num_key_value_heads=3, num_experts_per_tok=2, num_local_experts=4,
         kv_channels=6)  # fmt: skip
    for drop, code in (([1, 4], 0), ([1, 5], 4)):
        step = {"op": "narrow", "target": "**.kv_proj", "block": 6, "drop": drop}
        said = run(tmp_path, str(write_recipe(tmp_path, step)), f"{code}.safetensors")
        assert said.exit_code == code, said.output
    assert "holds keys, then values" in said.output


@pytest.mark.parametrize("kind", ["Qwen2", "Starcoder2"])
def test_size_of_heads_is_written_where_the_class_alone_asks_for_it(
    kind: str, tmp_path: Path
) -> None:
    model = made(tmp_path, kind, num_attention_heads=6, num_key_value_heads=2)
    said = run(tmp_path, "prune-heads", "out", qkv="**.q_proj", out="**.o_proj", head_size=4,
               heads="0:3", kv="**.(k|v)_proj", per_kv=3)  # fmt: skip
    assert said.exit_code == 0, said.output
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:, :12] = 0
        found = loaded(model, tmp_path)
        assert found.config.head_dim == 4
        torch.testing.assert_close(found(IDS).logits, model(IDS).logits)


def test_heads_that_share_a_width_have_no_size_of_their_own(tmp_path: Path) -> None:
    """OPT divides hidden_size among its heads, whatever config.json says."""
    made(tmp_path, "OPT", num_attention_heads=6, ffn_dim=16, word_embed_proj_dim=24)
    said = run(tmp_path, "prune-heads", "out", qkv="**.(q|k|v)_proj", out="**.out_proj",
               head_size=4, heads=1)  # fmt: skip
    assert said.exit_code == 4
    assert "in a model of type 'opt' num_attention_heads heads divide hidden_size" in said.output


def test_heads_that_each_have_their_rows_are_not_taken_for_parts(tmp_path: Path) -> None:
    """MiniMax has queries, keys and values head by head, and head_dim in its config."""
    made(tmp_path, "MiniMax", num_attention_heads=4, num_key_value_heads=4, head_dim=6,
         layer_types=["linear_attention"] * 2, num_local_experts=2)  # fmt: skip
    step = {"op": "narrow", "target": "**.qkv_proj", "drop": 1, "block": 6, "parts": 3}
    said = run(tmp_path, str(write_recipe(tmp_path, step)), "out.safetensors")
    assert said.exit_code == 4
    assert "each head has 3 x 6 rows of its own" in said.output


def test_parts_of_codegen_are_told_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.CodeGenConfig(vocab_size=32, n_embd=32, n_layer=1, n_head=8, rotary_dim=4,
                                        n_positions=16)  # fmt: skip
    transformers.CodeGenForCausalLM(config).save_pretrained(tmp_path / "in")
    said = run(tmp_path, "split-qkv", "out.safetensors", attention="transformer.h.{i}.attn",
               value="k_proj", key="v_proj", sizes=[32] * 3, groups=4)  # fmt: skip
    assert "holds queries, then values, then keys, in each of 4 groups" in said.output
