"""The ready-made recipes: each is planned and applied, and does what its first line says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from surgeon import apply, recipe
from surgeon.execute import Options

Tensors = dict[str, torch.Tensor]


def tensors(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "body.0.weight": (6, 4),
        "body.1.weight": (6, 6),
        "fc.weight": (7, 6),
        "fc.bias": (7,),
    }
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    embedding = torch.arange(12.0).reshape(4, 3)
    return made | {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding.clone()}


def applied(folder: Path, name: str, *models: str, **variables: Any) -> tuple[Tensors, Any]:
    """Apply a ready-made recipe to in.safetensors; return tensors and manifest."""
    save_file(tensors(0), folder / "in.safetensors")
    save_file(tensors(1), folder / "other.safetensors")
    plan = recipe.load(name, variables)
    locations = apply.bind_models(plan, [str(folder / model) for model in models], {})
    output = folder / "out.safetensors"
    with apply.opened(plan, str(folder / "in.safetensors"), locations) as opened:
        apply.write(opened, output, Options(), force=False)
    return load_file(output), json.loads((folder / "out.manifest.json").read_text())


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
    assert manifest["ties"] == {"model.embed_tokens.weight": "lm_head.weight"}
    assert "model.embed_tokens.weight" not in found


def test_average_checkpoints_is_their_mean(tmp_path: Path) -> None:
    found, _ = applied(tmp_path, "average-checkpoints", "other.safetensors")
    wanted = (tensors(0)["fc.weight"].double() + tensors(1)["fc.weight"].double()) / 2
    torch.testing.assert_close(found["fc.weight"], wanted.float(), rtol=0, atol=0)


@pytest.mark.parametrize(("t", "seed"), [(0, 0), (1, 1)])
def test_interpolate_two_models_has_them_at_its_ends(tmp_path: Path, t: int, seed: int) -> None:
    found, _ = applied(tmp_path, "interpolate-two-models", "other.safetensors", t=t)
    torch.testing.assert_close(found, tensors(seed), rtol=0, atol=1e-6)


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


def test_mixed_precision_export_casts_the_matrices_of_layers_alone(tmp_path: Path) -> None:
    kept = {"wte.weight": torch.ones(5, 4), "h.0.ln_1.weight": torch.ones(4)}
    matrices = {f"h.0.{name}.weight": torch.full((4, 4), 1 + 2**-9)
                for name in ("attn.c_attn", "mlp.c_fc", "self_attn.q_proj", "attention.self.query",
                             "output.dense", "fc1", "experts.1.w2")}  # fmt: skip
    save_file({**kept, **matrices, "h.0.attn.bias": torch.ones(9)}, tmp_path / "in.safetensors")
    plan = recipe.load("mixed-precision-export", {"shard_size": "1MB"})
    with apply.opened(plan, str(tmp_path / "in.safetensors"), {}) as opened:
        apply.write(opened, tmp_path / "out", Options(), force=False)
    found = load_file(tmp_path / "out" / "model.safetensors")
    wanted = kept | {name: tensor.bfloat16() for name, tensor in matrices.items()}
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_every_recipe_has_a_test_here_and_says_first_what_it_is_for() -> None:
    here = Path(__file__).read_text()
    for name, path in recipe.ready_made().items():
        text = json.loads(path.read_text())
        assert f'"{name}"' in here
        assert next(iter(text)) == "about"
        assert text["vars"]
