"""Importances of heads, neurons, channels and layers, against sums written out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from surgeon.base import patterns
from surgeon.training import ManifestError, collect_importance
from surgeon.training.importance import HEADS, NEURONS

BATCHES = [torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(n)) for n in (0, 1)]


class Layer(nn.Module):
    """The names that matter, and nothing to compute but what is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.attn = nn.ModuleDict({"o_proj": nn.Linear(4, 4), "q_norm": nn.LayerNorm(4)})
        self.mlp = nn.ModuleDict({"up_proj": nn.Linear(4, 6), "down_proj": nn.Linear(6, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn["o_proj"](self.norm(x))
        return x + self.mlp["down_proj"](torch.relu(self.mlp["up_proj"](self.attn["q_norm"](x))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def collected(folder: Path, batches: list[Any], **more: Any) -> tuple[Network, dict[str, Any]]:
    torch.manual_seed(2)
    model = Network()
    collect_importance(model, batches, folder / "found.json", head_size=2, **more)
    return model, json.loads((folder / "found.json").read_text())


def root_mean_square(examples: list[list[float]]) -> float:
    """Of the means over positions."""
    means = [sum(example) / len(example) for example in examples]
    return math.sqrt(sum(mean**2 for mean in means) / len(means))


def test_units_of_the_first_layer_are_as_large_as_what_is_read(tmp_path: Path) -> None:
    model, found = collected(tmp_path, BATCHES)
    layer = model.layers[0]
    x = torch.cat(BATCHES)
    with torch.no_grad():
        normed = layer.norm(x)
        neurons = torch.relu(layer.mlp["up_proj"](layer.attn["q_norm"](x + layer.attn["o_proj"](
            normed))))  # fmt: skip
    for unit, value in enumerate(found["neurons"]["layers.0.mlp.down_proj"]):
        expected = root_mean_square(neurons[..., unit].abs().tolist())
        assert value == pytest.approx(expected, rel=1e-5)
    for head, value in enumerate(found["heads"]["layers.0.attn.o_proj"]):
        part = normed[..., 2 * head : 2 * head + 2].norm(dim=-1)
        assert value == pytest.approx(root_mean_square(part.tolist()), rel=1e-5)


def test_channels_are_added_up_over_norms_and_layers_turn_what_they_get(tmp_path: Path) -> None:
    model, found = collected(tmp_path, BATCHES)
    x = torch.cat(BATCHES)
    channels = np.zeros(4)
    for number, layer in enumerate(model.layers):
        with torch.no_grad():
            normed, made = layer.norm(x), layer(x)
        channels += [root_mean_square(normed[..., c].abs().tolist()) for c in range(4)]
        cosines = [float(a @ b / (a.norm() * b.norm()))
                   for a, b in zip(x.reshape(-1, 4), made.reshape(-1, 4), strict=True)]  # fmt: skip
        influence = found["layers"]["layers"][number]
        assert influence == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-5)
        x = made
    np.testing.assert_allclose(found["channels"], channels, rtol=1e-5)


def test_masked_positions_do_not_count(tmp_path: Path) -> None:
    x = BATCHES[0][:1]
    mask = torch.tensor([[1, 1, 0]])
    _, masked = collected(tmp_path, [{"x": x, "attention_mask": mask}])
    _, cut = collected(tmp_path, [x[:, :2]])
    assert masked == cut


@pytest.mark.parametrize(("name", "kind"), [
    ("model.layers.0.self_attn.o_proj", HEADS), ("transformer.h.0.attn.c_proj", HEADS),
    ("bert.encoder.layer.0.attention.output.dense", HEADS),
    ("gpt_neox.layers.0.attention.dense", HEADS),
    ("model.decoder.layers.0.self_attn.out_proj", HEADS), ("model.layers.0.mlp.down_proj", NEURONS),
    ("transformer.h.0.mlp.c_proj", NEURONS), ("bert.encoder.layer.0.output.dense", NEURONS),
    ("gpt_neox.layers.0.mlp.dense_4h_to_h", NEURONS), ("model.decoder.layers.0.fc2", NEURONS),
    ("distilbert.transformer.layer.0.ffn.lin2", NEURONS),
    ("model.layers.0.self_attn.q_proj", None), ("bert.encoder.layer.0.intermediate.dense", None),
])  # fmt: skip
def test_usual_names_are_known(name: str, kind: str | None) -> None:
    found = [known for known in (HEADS, NEURONS) if patterns.match(known, name) is not None]
    assert found == ([kind] if kind else [])


def test_what_cannot_be_collected_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="the size of a head is not known"):
        collect_importance(Network(), BATCHES, tmp_path / "found.json")
    with pytest.raises(ManifestError, match="nothing was found"):
        collect_importance(nn.Linear(4, 4), BATCHES, tmp_path / "found.json")
