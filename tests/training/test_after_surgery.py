"""From a recipe to training: what `surgeon apply` writes is what the training side reads."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import Network, copied, train
from torch import nn

from surgeon import recipe, surgery
from surgeon.output.execute import Options
from surgeon.training import Manifest

TRAINING = {
    "optimizer": {
        "class": "torch.optim.AdamW",
        "args": {"lr": 0.03125, "weight_decay": 0.5},
    },
    "stages": [
        {"name": "warm-up", "train": ["@new"], "duration": {"epochs": 5}},
        {
            "name": "joint",
            "groups": [{"name": "head", "params": ["fc"], "lr_scale": 2.0}],
            "optimizer_state": "carry",
        },
    ],
}
WARM_UP_ONLY = {**TRAINING, "stages": TRAINING["stages"][:1]}


def operated(folder: Path, written_as: str, tensors: dict[str, torch.Tensor], **rest: Any) -> Path:
    """Apply a recipe to these tensors; return where the output is."""
    save_file(tensors, folder / "in.safetensors")
    (folder / "recipe.json").write_text(json.dumps({"surgeon": 1, **rest}))
    wanted = recipe.load(str(folder / "recipe.json"), {})
    with surgery.opened(wanted, str(folder / "in.safetensors"), {}) as opened:
        surgery.write(opened, folder / written_as, Options(), force=False)
    return folder / written_as


def narrow_network() -> nn.Module:
    torch.manual_seed(0)
    model = Network()
    model.fc = nn.Linear(6, 7)
    return model


@pytest.mark.parametrize(
    ("output", "settings"),
    [("out.safetensors", {}), ("folder", {}), ("folder", {"output": {"shard_size": 200}})],
)
def test_a_widened_network_is_trained_in_stages(
    tmp_path: Path, output: str, settings: dict[str, Any]
) -> None:
    old = narrow_network().state_dict()
    widen = {"op": "widen", "target": "fc", "rows": 1}
    path = operated(tmp_path, output, old, steps=[widen], training=TRAINING, **settings)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    model = Network()
    model.load_state_dict({n: t for file in files for n, t in load_file(file).items()})
    run = Manifest.load(path).bind(model)
    assert [(stage.name, dict(stage.duration)) for stage in run.stages] == [
        ("warm-up", {"epochs": 5}),
        ("joint", {}),
    ]
    train(model, run.start("warm-up")[0])
    now = copied(model)
    assert torch.equal(now["fc.weight"][:7], old["fc.weight"])
    assert all(torch.equal(now[name], old[name]) for name in old if "fc" not in name)
    optimizer, _ = run.start("joint")
    steps = [state["step"].item() for state in optimizer.state.values()]
    assert steps == [5.0, 5.0]
    train(model, optimizer)
    assert {entry["name"]: entry["lr"] for entry in optimizer.param_groups} == {
        "head": 0.0625,
        "default": 0.03125,
    }
    assert not torch.equal(model.fc.weight[:7], old["fc.weight"])


def test_freezing_a_module_stops_statistics_that_are_all_a_layer_has(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(6, affine=False)
    model = nn.Sequential(
        OrderedDict(body=nn.Sequential(nn.Linear(4, 6), norm), fc=nn.Linear(6, 8))
    )
    training = {**TRAINING, "stages": [{"name": "head", "freeze": ["body"]}, {"name": "joint"}]}
    tensors = model.state_dict()
    path = operated(tmp_path, "out.safetensors", tensors, steps=[], training=training)
    run = Manifest.load(path).bind(model)
    before = copied(model)
    for name in ("head", "joint"):
        optimizer, _ = run.start(name)
        model.train()
        train(model, optimizer)
        run.check()
        is_still = torch.equal(norm.running_mean, before["body.1.running_mean"])
        assert is_still == (name == "head")


def test_a_recipe_without_training_trains_everything(tmp_path: Path) -> None:
    old = narrow_network()
    path = operated(tmp_path, "out.safetensors", old.state_dict(), steps=[])
    run = Manifest.load(path).bind(old)
    optimizer, _ = run.start("training", optimizer=torch.optim.SGD)
    assert len(optimizer.param_groups[0]["params"]) == 6


class Tied(nn.Module):
    """An embedding that is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 3)
        self.output = nn.Linear(3, 6, bias=False)
        self.output.weight = self.embedding.weight


def test_tied_layers_that_were_widened_are_one_parameter(tmp_path: Path) -> None:
    table = torch.ones(5, 3)
    tie = {"op": "tie", "target": "output.weight", "to": "embedding.weight", "when": "always"}
    widen = {"op": "widen", "target": "embedding", "rows": 1, "init": "zeros"}
    tensors = {"embedding.weight": table, "output.weight": table.clone()}
    path = operated(tmp_path, "out.safetensors", tensors, steps=[tie, widen], training=WARM_UP_ONLY)
    model = Tied()
    optimizer, _ = Manifest.load(path).bind(model).start("warm-up")
    before = copied(model)
    model.output(model.embedding(torch.arange(6))).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.embedding.weight[:5], before["embedding.weight"][:5])
    assert not torch.equal(model.embedding.weight[5:], before["embedding.weight"][5:])


@pytest.mark.parametrize(("at", "old"), [(-1, [0, 1, 2, 3, 4, 5, 7]), (0, [1, 2, 3, 4, 5, 6, 7])])
def test_only_rows_that_were_put_in_between_are_trained(
    tmp_path: Path, at: int, old: list[int]
) -> None:
    before = narrow_network().state_dict()
    steps = [{"op": "widen", "target": "fc", "rows": 1, "at": at}]
    path = operated(tmp_path, "out.safetensors", before, steps=steps, training=TRAINING)
    model = Network()
    model.load_state_dict(load_file(path))
    optimizer, _ = Manifest.load(path).bind(model).start("warm-up")
    new = model.fc.weight[[n for n in range(8) if n not in old]].clone()
    train(model, optimizer)
    assert torch.equal(model.fc.weight[old], before["fc.weight"])
    assert torch.equal(model.fc.bias[old], before["fc.bias"])
    assert not torch.equal(model.fc.weight[[n for n in range(8) if n not in old]], new)
