"""A small network, its checkpoint, manifests for it, and steps of training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from surgeon.formats.safetensors import header_sha256
from surgeon.training import Manifest

Json = dict[str, Any]
SGD: Json = {
    "class": "torch.optim.SGD",
    "args": {"lr": 0.125, "momentum": 0.9, "weight_decay": 0.5},
}
NAMES = ["body.bias", "body.weight", "fc.bias", "fc.weight", "norm.bias", "norm.weight"]
HEAD = ["fc.bias", "fc.weight"]


class Network(nn.Module):
    """body (4 to 6), BatchNorm, fc (6 to 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.body(inputs))))


def network() -> Network:
    """Return the network, always with the same weights."""
    torch.manual_seed(0)
    return Network()


def group(name: str, params: Sequence[str], **settings: Any) -> Json:
    return {"name": name, "params": list(params), **settings}


def stage(name: str, *groups: Json, frozen: Sequence[str] | None = None, **more: Any) -> Json:
    """Return a manifest's stage; frozen is by default every parameter that no group has."""
    taken = {parameter for members in groups for parameter in members["params"]}
    rest = [name for name in NAMES if name not in taken]
    described = {"name": name, "groups": list(groups), "eval_modules": []}
    return {**described, "frozen": rest if frozen is None else list(frozen), **more}


def saved(
    model: nn.Module, folder: Path, *stages: Json, optimizer: Json | None = SGD, **changes: Any
) -> Path:
    """Save a model and the manifest of these stages; return the manifest's path."""
    tensors = model.state_dict()
    owners: dict[int, str] = {}
    ties = {
        name: owners[tensor.data_ptr()]
        for name, tensor in sorted(tensors.items())
        if owners.setdefault(tensor.data_ptr(), name) != name
    }
    path = folder / "out.safetensors"
    save_file({name: value for name, value in tensors.items() if name not in ties}, path)
    manifest: Json = {
        "surgeon_manifest": 1,
        "checkpoint": checkpoint_entry(path),
        "recipe": {"sha256": "0", "vars": {}, "text": {}},
        "inputs": {},
        "surgeon": "0",
        "tensors": {
            name: {"shape": list(value.shape), "dtype": "F32"} for name, value in tensors.items()
        },
        "ties": ties,
        "stages": list(stages),
        **({"optimizer": optimizer} if optimizer else {}),
        **changes,
    }
    beside = folder / "out.manifest.json"
    beside.write_text(json.dumps(manifest))
    return beside


def checkpoint_entry(path: Path) -> Json:
    """Return how a manifest describes a file."""
    content = path.read_bytes()
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    return {"file": path.name, "bytes": len(content), "header_sha256": header_sha256(header)}


def loaded(model: nn.Module, folder: Path, *stages: Json, **changes: Any) -> Manifest:
    """Save a model and its manifest, and load that."""
    return Manifest.load(saved(model, folder, *stages, **changes))


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return inputs (16, 4) and labels (16,), always the same."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(16, 4, generator=generator),
            torch.randint(0, 8, (16,), generator=generator),
        )
        for _ in range(count)
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    """Take steps on batches that are the same for every model."""
    for inputs, labels in batches(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def copied(model: nn.Module) -> Mapping[str, torch.Tensor]:
    """Return a copy of the state_dict."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
