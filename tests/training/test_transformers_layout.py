"""Models that transformers keeps in another layout in memory than on disk: bound, and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from surgeon import surgery
from surgeon.output.execute import Options
from surgeon.recipe import load
from surgeon.training import Manifest, ManifestError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Json = dict[str, Any]
SIZES = {
    "vocab_size": 40, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 4}
# class: its config, and the first expert's matrices as the checkpoint names them.
MODELS: dict[str, tuple[Json, list[str]]] = {
    "MixtralForCausalLM": (
        {**SIZES, "num_local_experts": 4},
        [f"model.layers.0.block_sparse_moe.experts.0.{w}.weight" for w in ("w1", "w2", "w3")],
    ),
    "Qwen3MoeForCausalLM": (
        {**SIZES, **MOE},
        [f"model.layers.0.mlp.experts.0.{w}_proj.weight" for w in ("gate", "up", "down")],
    ),
}
ADAM = {"class": "torch.optim.AdamW", "args": {"lr": 0.1, "weight_decay": 0.5}}


def built(kind: str) -> Any:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    return made(made.config_class(**MODELS[kind][0]))


def operated(
    folder: Path, model: Any, stage: Json, optimizer: str | None = None, **how: Any
) -> Path:
    """Save a model as transformers does, and have a recipe with this stage work on it."""
    model.save_pretrained(folder / "in", **how)
    recipe = {"surgeon": 1, "steps": [], "training": {"optimizer": ADAM, "stages": [stage]}}
    (folder / "r.json").write_text(json.dumps(recipe))
    with surgery.opened(
        load(str(folder / "r.json"), {}), str(folder / "in"), {}, optimizer
    ) as opened:
        surgery.write(opened, folder / "out", Options(workers=1), force=False)
    return folder / "out"


def trained(model: Any, run: Any, name: str, steps: int = 3) -> None:
    optimizer, _ = run.start(name)
    for step in range(steps):
        torch.manual_seed(step)
        tokens = torch.randint(40, (2, 9))
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    run.check()


def on_disk(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Return a model's tensors as transformers itself writes them."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("kind", MODELS)
def test_parts_of_fused_experts_train_and_the_rest_stays(tmp_path: Path, kind: str) -> None:
    first, second, _ = MODELS[kind][1]
    stage = {"name": "some", "train": [f"{first}", f"{second}[2:4]"]}
    out = operated(tmp_path, built(kind), stage)
    model = type(built(kind)).from_pretrained(out)
    before = load_file(out / "model.safetensors")
    trained(model, Manifest.load(out).bind(model), "some")
    after = on_disk(model, tmp_path / "after")
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {first, second}
    rows = (before[second] != after[second]).any(dim=1)
    assert rows.tolist() == [2 <= row < 4 for row in range(len(rows))]


@pytest.mark.parametrize("kind", MODELS)
def test_training_all_of_it_is_what_torch_does(tmp_path: Path, kind: str) -> None:
    out = operated(tmp_path, built(kind), {"name": "all"})
    model, plain = (type(built(kind)).from_pretrained(out) for _ in range(2))
    run = Manifest.load(out).bind(model)
    trained(model, run, "all")
    optimizer = torch.optim.AdamW(plain.parameters(), **ADAM["args"])

    class Plain:
        start = staticmethod(lambda name: (optimizer, None))
        check = staticmethod(lambda: None)

    trained(plain, Plain, "all")
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_groups_of_experts_have_their_own_settings(tmp_path: Path) -> None:
    kind = "MixtralForCausalLM"
    expert = [{"name": "two", "params": ["model.layers.0.block_sparse_moe.experts.2.**"], "lr": 3}]
    out = operated(tmp_path, built(kind), {"name": "all", "groups": expert})
    model = type(built(kind)).from_pretrained(out)
    optimizer, _ = Manifest.load(out).bind(model).start("all")
    held = {
        entry["lr"]: sum(p.numel() for p in entry["params"]) for entry in optimizer.param_groups
    }
    total = sum(parameter.numel() for parameter in model.parameters())
    assert held == {3: 3 * 12 * 8, 0.1: total - 3 * 12 * 8}


def test_a_checkpoint_that_lacks_an_expert_is_refused(tmp_path: Path) -> None:
    model = built("MixtralForCausalLM")
    out = operated(tmp_path, model, {"name": "all"})
    path = out / "surgeon.manifest.json"
    path = path if path.exists() else next(out.glob("*manifest*.json"))
    manifest = json.loads(path.read_text())
    gone = MODELS["MixtralForCausalLM"][1][0]
    del manifest["tensors"][gone]
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        ManifestError, match=r"as a part of 'model\.layers\.0\.mlp\.experts\.gate_up"
    ):
        Manifest.load(out).bind(model)


def test_a_checkpoint_saved_as_in_memory_needs_no_conversion(tmp_path: Path) -> None:
    model = built("MixtralForCausalLM")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stage = {"name": "some", "train": [f"{name}[1:2]"]}
    out = operated(tmp_path, model, stage, save_original_format=False)
    read = type(model).from_pretrained(out)
    trained(read, Manifest.load(out).bind(read), "some")
    pairs = zip(read.get_parameter(name), model.get_parameter(name), strict=True)
    assert [torch.equal(a, b) for a, b in pairs] == [True, False, True, True]


def stepped(tensors: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    """Return an optimizer that made two steps on parameters that each have their name."""
    optimizer = torch.optim.AdamW([(n, nn.Parameter(t)) for n, t in tensors.items()])  # type: ignore[list-item]
    for entry in optimizer.param_groups[0]["params"] * 2:
        entry.grad = torch.randn_like(entry)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", MODELS)
def test_moments_of_experts_apart_go_on_in_the_fused_ones(tmp_path: Path, kind: str) -> None:
    model = built(kind)
    earlier = stepped(on_disk(model, tmp_path / "old"))
    torch.save(earlier.state_dict(), tmp_path / "optimizer.pt")
    stage = {"name": "on", "optimizer_state": "carry"}
    out = operated(tmp_path, model, stage, str(tmp_path / "optimizer.pt"))
    read = type(model).from_pretrained(out)
    optimizer, _ = Manifest.load(out).bind(read).start("on")
    (group,) = earlier.param_groups
    kept = dict(zip(group["param_names"], map(earlier.state.get, group["params"]), strict=True))
    experts = MODELS[kind][1][0].rpartition(".0.")[0]
    gate, up = ("w1", "w3") if "Mixtral" in kind else ("gate_proj", "up_proj")
    for key in ("exp_avg", "exp_avg_sq", "step"):
        expected = torch.stack([
            torch.cat([kept[f"{experts}.{e}.{part}.weight"][key].expand(12, 8)
                       for part in (gate, up)])
            for e in range(4)
        ])  # fmt: skip
        found = torch.zeros_like(expected)
        base = read.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
        for held, state in optimizer.state.items():
            if held.untyped_storage().data_ptr() == base.untyped_storage().data_ptr():
                torch.as_strided(found, held.shape, held.stride(), held.storage_offset()).copy_(
                    state[key]
                )
        assert torch.equal(found, expected)


LATENT = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
          "first_k_dense_replace": 1, "moe_intermediate_size": 8, "q_lora_rank": 8,
          "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
          "num_key_value_heads": 2}  # fmt: skip
# Renamed, tied and renamed, dense layers beside fused ones: a name on disk to train of each.
OTHERS = {
    "GPTNeoXForCausalLM": ({"tie_word_embeddings": True}, "gpt_neox.embed_in.weight"),
    "ViTForImageClassification": ({"image_size": 8, "patch_size": 4},
                                  "vit.encoder.layer.0.output.dense.weight"),
    "DeepseekV3ForCausalLM": (LATENT, "model.layers.1.mlp.experts.1.down_proj.weight"),
    "OlmoeForCausalLM": ({"num_experts": 4, "num_key_value_heads": 2},
                         "model.layers.0.mlp.experts.3.up_proj.weight"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_trained_is_what_moves_on_disk(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    settings, name = OTHERS[kind]
    made = getattr(transformers, kind)
    model = made(made.config_class(**{**SIZES, "hidden_size": 16, **settings}))
    out = operated(tmp_path, model, {"name": "some", "train": [name]})
    read = made.from_pretrained(out)
    run = Manifest.load(out).bind(read)
    optimizer, _ = run.start("some")
    sum(p.square().sum() for p in read.parameters() if p.requires_grad).backward()
    optimizer.step()
    run.check()
    before, after = load_file(out / "model.safetensors"), on_disk(read, tmp_path / "after")
    assert after.keys() == before.keys()
    assert [n for n in before if not torch.equal(before[n], after[n])] == [name]


def test_what_a_conversion_computes_is_refused_with_a_way_out_that_works(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    config = transformers.NomicBertConfig(**{**SIZES, "num_key_value_heads": 2})
    model = transformers.NomicBertForMaskedLM(config)
    (tmp_path / "a").mkdir()
    out = operated(tmp_path / "a", model, {"name": "all"})
    with pytest.raises(ManifestError, match=r"save_pretrained\(FOLDER, save_original_format=Fal"):
        Manifest.load(out).bind(type(model).from_pretrained(out))
    (tmp_path / "b").mkdir()
    out = operated(tmp_path / "b", model, {"name": "all"}, save_original_format=False)
    Manifest.load(out).bind(type(model).from_pretrained(out)).start("all")
