"""The ready-made recipes: each is planned and applied, and does what its first line says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import recipe, surgery
from surgeon.output.execute import Options
from surgeon.recipe.locations import bind_models
from tests.network import write_tokenizer

Tensors = dict[str, torch.Tensor]


def tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "body.0.weight": (6, 4),
        "body.1.weight": (6, 6),
        "fc.weight": (7, 6),
        "fc.bias": (7,),
        "stem.weight": (4, 3, 2, 2),
    }
    for layer in range(4):
        for part, rows in (("q_proj", 4), ("k_proj", 2), ("v_proj", 2), ("o_proj", 4)):
            shapes[f"model.layers.{layer}.self_attn.{part}.weight"] = (rows, 4)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (4, 8)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    embedding = torch.arange(12.0).reshape(4, 3)
    return made | {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}


def applied(folder: Path, name: str, *models: str, **variables: Any) -> tuple[Tensors, Any]:
    """Apply a ready-made recipe to in.safetensors; return tensors and manifest."""
    save_file(tensors(0), folder / "in.safetensors")
    save_file(tensors(1), folder / "other.safetensors")
    plan = recipe.load(name, variables)
    locations = bind_models(plan, [str(folder / model) for model in models], {})
    output = folder / "out.safetensors"
    with surgery.opened(plan, str(folder / "in.safetensors"), locations) as opened:
        surgery.write(opened, output, Options(), force=False)
    return load_file(output), json.loads((folder / "out.manifest.json").read_text())


def reapplied(folder: Path, name: str, **variables: Any) -> Tensors:
    """Apply a ready-made recipe to what in.safetensors is by now."""
    output = folder / "again.safetensors"
    with surgery.opened(recipe.load(name, variables), str(folder / "in.safetensors"), {}) as opened:
        surgery.write(opened, output, Options(), force=False)
    return load_file(output)


def test_add_output_nodes_keeps_rows_and_trains_new_ones_first(tmp_path: Path) -> None:
    found, manifest = applied(tmp_path, "add-output-nodes", layer="fc", new=2)
    torch.testing.assert_close(found["fc.weight"][:7], tensors(0)["fc.weight"], rtol=0, atol=0)
    assert found["fc.bias"].shape == (9,)
    (group,) = manifest["stages"][0]["groups"]
    assert group["params"] == ["fc.bias[7:9]", "fc.weight[7:9]"]
    assert group["lr"] == 0.01


def test_replace_head_keeps_nothing_of_it(tmp_path: Path) -> None:
    found, manifest = applied(tmp_path, "replace-head", head="fc", classes=3)
    assert found["fc.weight"].shape == (3, 6)
    assert found["fc.bias"].shape == (3,)
    assert manifest["stages"][0]["groups"][0]["params"] == ["fc.bias", "fc.weight"]
    assert "body.0.weight" in manifest["stages"][0]["frozen"]


def test_freeze_all_but_head_changes_no_weight(tmp_path: Path) -> None:
    found, manifest = applied(tmp_path, "freeze-all-but-head", head="fc")
    torch.testing.assert_close(found, tensors(0), rtol=0, atol=0)
    (stage,) = manifest["stages"]
    assert stage["groups"][0]["params"] == ["fc.bias", "fc.weight"]


def test_gradual_unfreezing_trains_more_in_each_stage(tmp_path: Path) -> None:
    _, manifest = applied(tmp_path, "gradual-unfreezing", order=["fc", "body.1", "body.0"])
    groups = [{g["name"]: g["lr"] for g in stage["groups"]} for stage in manifest["stages"]]
    assert [list(stage) for stage in groups] == [
        ["fc"], ["fc", "body.1"], ["fc", "body.1", "body.0"]
    ]  # fmt: skip
    assert groups[2]["body.0"] == pytest.approx(0.001 * 0.3**2)


def test_tie_embeddings_stores_one_of_them(tmp_path: Path) -> None:
    found, manifest = applied(tmp_path, "tie-embeddings")
    assert manifest["ties"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in found


def test_average_checkpoints_is_their_mean(tmp_path: Path) -> None:
    found, _ = applied(tmp_path, "average-checkpoints", "other.safetensors")
    wanted = (tensors(0)["fc.weight"].double() + tensors(1)["fc.weight"].double()) / 2
    torch.testing.assert_close(found["fc.weight"], wanted.float(), rtol=0, atol=0)


def test_average_series_decays(tmp_path: Path) -> None:
    series = three(tmp_path)
    found, _ = applied(tmp_path, "average-series", *OTHERS, decay=0.75)
    wanted = series[0]
    for later in series[1:]:
        wanted = 0.75 * wanted + 0.25 * later
    torch.testing.assert_close(found["fc.weight"], wanted.float(), rtol=0, atol=1e-6)


def test_average_checkpoints_takes_weights(tmp_path: Path) -> None:
    one, two, three_ = three(tmp_path)
    found, _ = applied(tmp_path, "average-checkpoints", *OTHERS, weights=[1, 2, 5])
    wanted = (one + 2 * two + 5 * three_) / 8
    torch.testing.assert_close(found["fc.weight"], wanted.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("t", "seed"), [(0, 0), (1, 1)])
def test_interpolate_two_models_has_them_at_its_ends(tmp_path: Path, t: int, seed: int) -> None:
    found, _ = applied(tmp_path, "interpolate-two-models", "other.safetensors", t=t)
    torch.testing.assert_close(found, tensors(seed), rtol=0, atol=1e-6)


def three(folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write a third model; return one matrix of all three in float64, the state's first."""
    save_file(tensors(2), folder / "third.safetensors")
    base, other, third = (tensors(seed)["fc.weight"].double() for seed in range(3))
    return base, other, third


OTHERS = ("other.safetensors", "third.safetensors")


@pytest.mark.parametrize(("normalize", "divisor"), [(False, 1), (True, 0.5)])
def test_task_arithmetic_adds_what_models_learned(
    tmp_path: Path, normalize: bool, divisor: float
) -> None:
    base, other, third = three(tmp_path)
    words = {"lambda": 0.5, "weights": [1, -0.5], "normalize": normalize}
    found, _ = applied(tmp_path, "task-arithmetic", *OTHERS, **words)
    wanted = base + 0.5 * ((other - base) - 0.5 * (third - base)) / divisor
    torch.testing.assert_close(found["fc.weight"], wanted.float(), rtol=0, atol=1e-6)


def agreeing(base: torch.Tensor, changes: list[torch.Tensor], lambda_: float) -> torch.Tensor:
    """Return base + lambda times the mean of the changes that have the sign of their sum."""
    wanted = base.clone()
    for place in range(base.numel()):
        values = [float(change.view(-1)[place]) for change in changes]
        signed = [v for v in values if v != 0 and (v > 0) == (sum(values) >= 0)]
        wanted.view(-1)[place] += lambda_ * sum(signed) / max(1, len(signed))
    return wanted.float()


def test_ties_averages_the_largest_changes_that_agree(tmp_path: Path) -> None:
    base, *models = three(tmp_path)
    found, _ = applied(tmp_path, "ties", *OTHERS, **{"density": 0.5, "lambda": 0.7})
    changes = [model - base for model in models]
    for change in changes:
        change[change.abs() < change.abs().flatten().sort().values[-(change.numel() // 2)]] = 0
    wanted = agreeing(base, changes, 0.7)
    torch.testing.assert_close(found["fc.weight"], wanted, rtol=0, atol=1e-6)


def test_dare_ties_of_everything_averages_the_changes_that_agree(tmp_path: Path) -> None:
    base, *models = three(tmp_path)
    found, _ = applied(tmp_path, "dare-ties", *OTHERS, **{"density": 1, "lambda": 0.7})
    wanted = agreeing(base, [model - base for model in models], 0.7)
    torch.testing.assert_close(found["fc.weight"], wanted, rtol=0, atol=1e-6)


def test_dare_ties_drops_changes_at_random_and_enlarges_the_others(tmp_path: Path) -> None:
    base, *models = three(tmp_path)
    found, _ = applied(tmp_path, "dare-ties", *OTHERS, density=0.5)
    one, two = (2 * (model - base) for model in models)
    change = found["fc.weight"].double() - base
    possible = torch.stack([torch.zeros_like(base), one, two, (one + two) / 2])
    assert ((possible - change).abs().min(dim=0).values < 1e-6).all()
    assert 0 < (change == 0).sum() < change.numel() / 2


def test_model_stock_moves_the_mean_as_far_as_models_agree(tmp_path: Path) -> None:
    base, *models = three(tmp_path)
    found, _ = applied(tmp_path, "model-stock", *OTHERS)
    one, two = (model - base for model in models)
    cosine = (one * two).sum() / (one.norm() * two.norm())
    wanted = base + 2 * cosine / (1 + cosine) * (one + two) / 2
    assert cosine > 0
    torch.testing.assert_close(found["fc.weight"], wanted.float(), rtol=0, atol=1e-6)


def test_strip_prefix_takes_it_off_the_names_that_have_it(tmp_path: Path) -> None:
    found, _ = applied(tmp_path, "strip-prefix", prefix="model")
    assert {"embed_tokens.weight", "fc.weight"} <= found.keys()


def test_convert_to_safetensors_changes_nothing(tmp_path: Path) -> None:
    found, manifest = applied(tmp_path, "convert-to-safetensors")
    torch.testing.assert_close(found, tensors(0), rtol=0, atol=0)
    assert not any("lineage" in entry for entry in manifest["tensors"].values())


def test_cast_for_export_rounds_as_torch_does(tmp_path: Path) -> None:
    found, _ = applied(tmp_path, "cast-for-export", dtype="bfloat16")
    wanted = {name: tensor.bfloat16() for name, tensor in tensors(0).items()}
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def layers_of(found: Tensors, part: str) -> list[torch.Tensor]:
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(20)]
    return [found[name] for name in names if name in found]


def test_drop_layers_keeps_and_renumbers_those_named(tmp_path: Path) -> None:
    found, _ = applied(tmp_path, "drop-layers", keep=["0:2", 3])
    old = layers_of(tensors(0), "mlp.down_proj")
    wanted = [old[0], old[1], old[3]]
    torch.testing.assert_close(layers_of(found, "mlp.down_proj"), wanted, rtol=0, atol=0)


def test_up_scale_depth_runs_the_middle_twice(tmp_path: Path) -> None:
    found, _ = applied(tmp_path, "up-scale-depth", lower="0:3", upper="1:4")
    old = layers_of(tensors(0), "self_attn.q_proj")
    wanted = [old[index] for index in (0, 1, 2, 1, 2, 3)]
    torch.testing.assert_close(layers_of(found, "self_attn.q_proj"), wanted, rtol=0, atol=0)


def test_llama_pro_blocks_are_zero_where_they_end_and_train_alone(tmp_path: Path) -> None:
    found, manifest = applied(tmp_path, "llama-pro-blocks", every=2)
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        zero = [not tensor.any() for tensor in layers_of(found, part)]
        assert zero == [False, False, True, False, False, True]
    assert all(tensor.any() for tensor in layers_of(found, "self_attn.q_proj"))
    (stage,) = manifest["stages"]
    trained = {name.split(".")[2] for name in stage["groups"][0]["params"]}
    assert trained == {"2", "5"}
    assert len(stage["groups"][0]["params"]) == 10


@pytest.mark.parametrize("groups", [1, 2])
def test_fuse_qkv_and_split_qkv_are_there_and_back(tmp_path: Path, groups: int) -> None:
    found, _ = applied(tmp_path, "fuse-qkv", groups=groups)
    parts = [layers_of(tensors(0), f"self_attn.{p}_proj")[2] for p in "qkv"]
    slices = [p[g * len(p) // groups :][: len(p) // groups] for g in range(groups) for p in parts]
    fused = found["model.layers.2.self_attn.qkv_proj.weight"]
    torch.testing.assert_close(fused, torch.cat(slices), rtol=0, atol=0)
    (tmp_path / "out.safetensors").rename(tmp_path / "in.safetensors")
    (tmp_path / "out.manifest.json").unlink()
    again = reapplied(tmp_path, "split-qkv", sizes=[4, 2, 2], groups=groups)
    torch.testing.assert_close(again, tensors(0), rtol=0, atol=0)


def test_widen_hidden_layer_keeps_the_function(tmp_path: Path) -> None:
    found, _ = applied(tmp_path, "widen-hidden-layer", layer="body.1", readers="fc", rows=5)
    assert found["body.1.weight"].shape == (11, 6)
    inputs, old = torch.randn(9, 6), tensors(0)
    out, expected = (
        torch.tanh(inputs @ each["body.1.weight"].T) @ each["fc.weight"].T for each in (found, old)
    )
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("recipe_name", "words", "units"),
    [("widen-hidden-layer", {"rows": 3}, 15), ("narrow-channels", {"drop": [1, 7]}, 10)],
)
def test_hidden_units_of_a_conv1d_are_its_columns(
    recipe_name: str, words: dict[str, Any], units: int, tmp_path: Path
) -> None:
    shapes = {"c_fc.weight": (4, 12), "c_fc.bias": (12,), "c_proj.weight": (12, 4)}
    old = {f"h.0.mlp.{name}": torch.randn(shape) for name, shape in shapes.items()}
    if "drop" in words:  # units that say nothing
        old["h.0.mlp.c_proj.weight"][words["drop"]] = 0
    save_file(old, tmp_path / "in.safetensors")
    readers = [{"target": "h.0.mlp.c_proj", "dim": 0}]
    found = reapplied(tmp_path, recipe_name, layer="h.0.mlp.c_fc", readers=readers, dim=1, **words)
    assert found["h.0.mlp.c_fc.bias"].shape == (units,)
    inputs = torch.randn(9, 4)
    out, expected = (
        torch.tanh(torch.addmm(each["h.0.mlp.c_fc.bias"], inputs, each["h.0.mlp.c_fc.weight"]))
        @ each["h.0.mlp.c_proj.weight"] for each in (found, old)
    )  # fmt: skip
    torch.testing.assert_close(out, expected)


def test_prune_heads_drops_them_and_what_reads_them(tmp_path: Path) -> None:
    words = {"qkv": ["body.0", "body.1"], "out": "fc", "heads": 1, "head_size": 2}
    found, _ = applied(tmp_path, "prune-heads", **words)
    kept, old = [0, 1, 4, 5], tensors(0)
    torch.testing.assert_close(found["body.0.weight"], old["body.0.weight"][kept], rtol=0, atol=0)
    torch.testing.assert_close(found["fc.weight"], old["fc.weight"][:, kept], rtol=0, atol=0)


def test_narrow_channels_drops_them_and_what_reads_them(tmp_path: Path) -> None:
    readers = [{"target": "fc.weight", "dim": 1}]
    found, _ = applied(tmp_path, "narrow-channels", layer="body.1", readers=readers, drop=["1:3"])
    kept, old = [0, 3, 4, 5], tensors(0)
    torch.testing.assert_close(found["body.1.weight"], old["body.1.weight"][kept], rtol=0, atol=0)
    torch.testing.assert_close(found["fc.weight"], old["fc.weight"][:, kept], rtol=0, atol=0)


def test_resize_positions_interpolates_as_torch_does(tmp_path: Path) -> None:
    words = {"positions": "lm_head.weight", "from": [2, 2], "to": [3, 5]}
    found, _ = applied(tmp_path, "resize-positions", **words)
    image = tensors(0)["lm_head.weight"].T.reshape(1, 3, 2, 2)
    expected = torch.nn.functional.interpolate(image, (3, 5), mode="bicubic", antialias=True)
    torch.testing.assert_close(found["lm_head.weight"], expected[0].reshape(3, 15).T)


def test_change_input_channels_adds_them_up_for_one(tmp_path: Path) -> None:
    found, _ = applied(tmp_path, "change-input-channels", layer="stem")
    expected = tensors(0)["stem.weight"].double().sum(1, keepdim=True).float()
    torch.testing.assert_close(found["stem.weight"], expected, rtol=0, atol=0)


def lora_there_and_back(folder: Path) -> Tensors:
    """Extract what lies between two models, and merge it into the first one."""
    save_file(tensors(1), folder / "trained.safetensors")
    save_file(tensors(0), folder / "in.safetensors")
    plan = recipe.load(
        "extract-lora-adapter", {"target": ["body", "fc"], "rank": 4, "others": "drop"}
    )
    locations = bind_models(plan, [str(folder / "in.safetensors")], {})
    with surgery.opened(plan, str(folder / "trained.safetensors"), locations) as opened:
        surgery.write(opened, folder / "adapter", Options(), force=False)
    found, _ = applied(folder, "merge-lora-adapter", adapter=str(folder / "adapter"))
    return found


def test_lora_recipes_bring_the_nearest_matrices_there_and_back(tmp_path: Path) -> None:
    found = lora_there_and_back(tmp_path)
    torch.testing.assert_close(found["body.0.weight"], tensors(1)["body.0.weight"])  # of rank 4
    delta = tensors(1)["fc.weight"] - tensors(0)["fc.weight"]
    left = found["fc.weight"] - tensors(1)["fc.weight"]
    assert left.norm().item() == pytest.approx(torch.linalg.svdvals(delta)[4:].norm().item(), 1e-4)
    torch.testing.assert_close(found["fc.bias"], tensors(0)["fc.bias"], rtol=0, atol=0)


def test_upcycle_to_experts_makes_copies_and_routers(tmp_path: Path) -> None:
    mlp = {f"model.layers.0.mlp.{n}_proj.weight": torch.randn(4, 4) for n in ("gate", "up", "down")}
    save_file(mlp, tmp_path / "dense.safetensors")
    plan = recipe.load("upcycle-to-experts", {"experts": 2, "hidden_size": 4})
    with surgery.opened(plan, str(tmp_path / "dense.safetensors"), {}) as opened:
        surgery.write(opened, tmp_path / "moe.safetensors", Options(), force=False)
    found = load_file(tmp_path / "moe.safetensors")
    assert len(found) == 7
    experts = [found[f"model.layers.0.block_sparse_moe.experts.{e}.w2.weight"] for e in (0, 1)]
    for expert in experts:
        torch.testing.assert_close(expert, mlp["model.layers.0.mlp.down_proj.weight"])


DENSE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 5,
         "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip


def dense_folder(folder: Path, seed: int) -> Tensors:
    """Write a Llama of one layer; returns its tensors."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {f"self_attn.{part}_proj": (4, 4) for part in "qkvo"}
    shapes |= {"mlp.gate_proj": (6, 4), "mlp.up_proj": (6, 4), "mlp.down_proj": (4, 6)}
    shapes |= {"input_layernorm": (4,), "post_attention_layernorm": (4,)}
    named = {f"model.layers.0.{name}": shape for name, shape in shapes.items()}
    named |= {"model.embed_tokens": (5, 4), "model.norm": (4,), "lm_head": (5, 4)}
    made = {f"{n}.weight": torch.randn(shape, generator=generator) for n, shape in named.items()}
    folder.mkdir()
    save_file(made, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(DENSE))
    return made


def mixed(folder: Path, count: int) -> list[Tensors]:
    """Make `mixture` of dense models by the ready-made recipe; return these."""
    dense = [dense_folder(folder / f"dense{number}", number) for number in range(count)]
    others = {str(number): str(folder / f"dense{number}") for number in range(1, count)}
    plan = recipe.load("mixture-of-experts", {"per_token": 1})
    with surgery.opened(plan, str(folder / "dense0"), others) as opened:
        surgery.write(opened, folder / "mixture", Options(), force=False)
    return dense


def test_mixture_of_experts_has_all_models_for_experts(tmp_path: Path) -> None:
    dense = mixed(tmp_path, 3)
    found = load_file(tmp_path / "mixture/model.safetensors")
    for number, model in enumerate(dense):
        expert = f"model.layers.0.block_sparse_moe.experts.{number}.w3.weight"
        torch.testing.assert_close(found[expert], model["model.layers.0.mlp.up_proj.weight"])
    config = json.loads((tmp_path / "mixture/config.json").read_text())
    said = {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 1}
    assert said.items() <= config.items()


def of_three_experts(folder: Path) -> tuple[Tensors, str]:
    """Write a mixture and what a run saw of it; experts 1 and 2 were chosen, 0 is like 2."""
    block = "model.layers.0.mlp"
    made = {f"{block}.experts.{n}.up_proj.weight": torch.full((2, 2), n + 1.0) for n in range(3)}
    made[f"{block}.gate.weight"] = torch.tensor([[1.0, 1], [2, 2], [3, 3]])
    save_file(made, folder / "in.safetensors")
    layer = {"frequency": [0.25, 1, 0.75], "weight": [0.5, 0.4, 0.1],
             "similarity": [[1, -1, 0.5], [-1, 1, 0], [0.5, 0, 1]]}  # fmt: skip
    said = {"surgeon": "routing", "layers": {"model.layers.0": layer}}
    (folder / "routing.json").write_text(json.dumps(said))
    return made, str(folder / "routing.json")


def test_keep_experts_keeps_those_that_were_chosen(tmp_path: Path) -> None:
    old, by = of_three_experts(tmp_path)
    found = reapplied(tmp_path, "keep-experts", by=by, keep=2)
    block = "model.layers.0.mlp"
    torch.testing.assert_close(found[f"{block}.gate.weight"], old[f"{block}.gate.weight"][1:])
    assert [found[f"{block}.experts.{n}.up_proj.weight"][0, 0].item() for n in (0, 1)] == [2, 3]


def test_merge_experts_merges_what_routers_take_for_alike(tmp_path: Path) -> None:
    _, by = of_three_experts(tmp_path)
    found = reapplied(tmp_path, "merge-experts", by=by, keep=2)
    block = "model.layers.0.mlp"
    mean = 0.75 * 3 + 0.25 * 1
    assert [found[f"{block}.experts.{n}.up_proj.weight"][0, 0].item() for n in (0, 1)] == [2, mean]
    assert found[f"{block}.gate.weight"][1, 0].item() == mean


def test_prune_by_importance_keeps_the_best_of_each_layer(tmp_path: Path) -> None:
    save_file(old := residual_tensors(), tmp_path / "in.safetensors")
    layers = range(2)
    said = {"surgeon": "importance", "layers": {"model.layers": [0.1, 0.2]},
            "heads": {f"model.layers.{n}.self_attn.o_proj": [n, 2, 1 - n] for n in layers},
            "neurons": {f"model.layers.{n}.mlp.down_proj": list(range(9)) for n in layers}
            }  # fmt: skip
    (tmp_path / "found.json").write_text(json.dumps(said))
    found = reapplied(tmp_path, "prune-by-importance", by=str(tmp_path / "found.json"), heads=2,
                      head_size=2, neurons=3, layers=1)  # fmt: skip
    own = "self_attn.v_proj.weight"
    torch.testing.assert_close(found[f"model.layers.0.{own}"], old[f"model.layers.1.{own}"][:4])
    down = "mlp.down_proj.weight"
    torch.testing.assert_close(
        found[f"model.layers.0.{down}"], old[f"model.layers.1.{down}"][:, 6:]
    )
    assert not any("layers.1" in name for name in found)


def test_mixed_precision_export_casts_the_matrices_of_layers_alone(tmp_path: Path) -> None:
    kept = {"wte.weight": torch.ones(5, 4), "h.0.ln_1.weight": torch.ones(4)}
    matrices = {f"h.0.{name}.weight": torch.full((4, 4), 1 + 2**-9)
                for name in ("attn.c_attn", "mlp.c_fc", "self_attn.q_proj", "attention.self.query",
                             "output.dense", "fc1", "experts.1.w2")}  # fmt: skip
    save_file({**kept, **matrices, "h.0.attn.bias": torch.ones(9)}, tmp_path / "in.safetensors")
    plan = recipe.load("mixed-precision-export", {"shard_size": "1MB"})
    with surgery.opened(plan, str(tmp_path / "in.safetensors"), {}) as opened:
        surgery.write(opened, tmp_path / "out", Options(), force=False)
    found = load_file(tmp_path / "out" / "model.safetensors")
    wanted = kept | {name: tensor.bfloat16() for name, tensor in matrices.items()}
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_every_recipe_has_a_test_here_and_says_first_what_it_is_for() -> None:
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_recipes*.py"))
    for name, path in recipe.ready_made().items():
        text = json.loads(path.read_text())
        assert f'"{name}"' in here
        assert next(iter(text)) == "about"
        assert text["vars"]


# What becomes of the rows of "?", "a", "b" and "c"; the other model has "?", "b" and "x".
TOKENS = {
    "add-tokens": lambda own, other: [*own, own[0], (own[1] + own[2]) / 2],
    "trim-vocabulary": lambda own, other: [own[0], own[2]],
    "merge-vocabularies": lambda own, other: [
        (own[0] + other[0]) / 2, own[1], (own[2] + other[1]) / 2, own[3], other[2]],
    "transplant-tokenizer": lambda own, other: [own[0], own[2]],
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
def test_recipes_for_tokens_change_the_rows_that_they_say(tmp_path: Path, name: str) -> None:
    text = json.loads(recipe.ready_made()[name].read_text())
    for folder, tokens in (("in", "?abc"), ("other", "?bx")):
        (tmp_path / folder).mkdir()
        write_tokenizer(tmp_path / folder, *tokens)
        rows = torch.randn(len(tokens), 3, generator=torch.Generator().manual_seed(len(tokens)))
        save_file({"embed_tokens.weight": rows}, tmp_path / folder / "model.safetensors")
    (tmp_path / "corpus.txt").write_text("b b")
    example = text["example"] | (
        {"corpus": str(tmp_path / "corpus.txt")} if "corpus" in text["vars"] else {}
    )
    plan = recipe.load(name, example)
    places = bind_models(plan, [str(tmp_path / "other")] * len(text.get("models", ())), {})
    with surgery.opened(plan, str(tmp_path / "in"), places) as opened:
        surgery.write(opened, tmp_path / "out", Options(), force=False)
    own, other, found = (load_file(tmp_path / folder / "model.safetensors")["embed_tokens.weight"]
                         for folder in ("in", "other", "out"))  # fmt: skip
    expected = torch.stack(TOKENS[name](own, other))
    torch.testing.assert_close(found[: len(expected)], expected)


# They need inputs of their own; their tests above have some.
NOT_OF_THE_NETWORK = {
    "merge-lora-adapter",
    "upcycle-to-experts",
    "extract-lora-adapter",
    "split-qkv",
    "mixed-precision-export",
    "rotate-residual-stream",
    "mixture-of-experts",
    "keep-experts",
    "merge-experts",
    "prune-by-importance",
    *TOKENS,
}


OTHER_LAYOUTS = {n for n in recipe.ready_made() if re.match("convert-.*-to-(?!safetensors)", n)}


@pytest.mark.parametrize(
    "name", sorted(set(recipe.ready_made()) - NOT_OF_THE_NETWORK - OTHER_LAYOUTS)
)
def test_the_example_of_a_recipe_can_be_applied(tmp_path: Path, name: str) -> None:
    text = json.loads(recipe.ready_made()[name].read_text())
    three(tmp_path)
    merges = any(step.get("models") == "*" for step in text["steps"])
    models = OTHERS if merges else OTHERS[: len(text.get("models", ()))]
    found, _ = applied(tmp_path, name, *models, **text.get("example", {}))
    assert found


def residual_network(found: Tensors, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of a network with a residual stream; products stand for attention."""
    from torch.nn.functional import linear, rms_norm, silu

    def normed(name: str) -> torch.Tensor:
        return rms_norm(stream, stream.shape[-1:], found[f"{name}.weight"])

    stream = found["model.embed_tokens.weight"][tokens]
    for layer in range(2):
        own = f"model.layers.{layer}"
        x = normed(f"{own}.input_layernorm")
        q, k, v = (linear(x, found[f"{own}.self_attn.{part}_proj.weight"]) for part in "qkv")
        stream = stream + linear(q * k + v, found[f"{own}.self_attn.o_proj.weight"])
        x = normed(f"{own}.post_attention_layernorm")
        gate, up = (linear(x, found[f"{own}.mlp.{part}_proj.weight"]) for part in ("gate", "up"))
        stream = stream + linear(silu(gate) * up, found[f"{own}.mlp.down_proj.weight"])
    return linear(normed("model.norm"), found["lm_head.weight"])


def residual_tensors() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens": (11, 6), "model.norm": (6,), "lm_head": (11, 6)}
    for layer in range(2):
        own = f"model.layers.{layer}"
        shapes |= {f"{own}.input_layernorm": (6,), f"{own}.post_attention_layernorm": (6,)}
        shapes |= {f"{own}.self_attn.{part}_proj": (6, 6) for part in "qkvo"}
        shapes |= {f"{own}.mlp.{part}_proj": (9, 6) for part in ("gate", "up")}
        shapes[f"{own}.mlp.down_proj"] = (6, 9)
    made = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    made["model.embed_tokens"][:, 2] *= 50  # an outlier
    return {f"{name}.weight": tensor for name, tensor in made.items()}


def test_rotate_residual_stream_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    old, tokens = residual_tensors(), torch.arange(11)
    save_file(old, tmp_path / "in.safetensors")
    found = reapplied(tmp_path, "rotate-residual-stream", hidden_size=6)
    assert found.keys() == old.keys()
    assert found["model.norm.weight"].eq(1).all()
    expected = residual_network(old, tokens)
    torch.testing.assert_close(residual_network(found, tokens), expected, rtol=1e-3, atol=1e-3)
    most, most_before = (
        tensors["model.embed_tokens.weight"].abs().amax(0).max()
        / tensors["model.embed_tokens.weight"].abs().amax(0).median()
        for tensors in (found, old)
    )
    assert most < most_before / 5
