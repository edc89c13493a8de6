"""The picture of sizes and values: counts against NumPy, in memory that is bounded."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import surgeon
from surgeon.cli.commands import commands
from surgeon.formats import open_checkpoint
from surgeon.inspection.inspect import inspected
from surgeon.inspection.spread import spread
from surgeon.numeric import histograms
from surgeon.pictures.spread import Spread
from tests.pictures.parsed import drawn, labels


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    found: dict[str, torch.Tensor] = {"embed.weight": torch.randn(50, 8, generator=generator)}
    for i in (0, 2, 10):
        drawn_ones = torch.randn(40, 8, generator=generator) * 0.02
        found[f"layers.{i}.up.weight"] = drawn_ones.to(torch.bfloat16)
        found[f"layers.{i}.norm.weight"] = torch.ones(8) + i
    found["layers.2.up.weight"][0, :3] = 0
    found["layers.10.up.weight"][0, 0] = torch.nan
    found["head.weight"] = torch.arange(-20, 20)
    return found


def looked_at(path: Path, given: dict[str, torch.Tensor]) -> Spread:
    save_file(given, path)
    opened = open_checkpoint(str(path))
    try:
        return spread(path.name, inspected(opened.tensors, (), stats=False))
    finally:
        opened.close()


def values(given: dict[str, torch.Tensor], layer: str) -> np.ndarray:
    own = [t.float().numpy().ravel() for name, t in given.items() if name.startswith(f"{layer}.")]
    return np.concatenate(own).astype("f8")


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e30])
def test_counts_are_those_of_numpys_histogram(scale: float) -> None:
    drawn_ones = (np.random.default_rng(0).standard_normal(5000) * scale).astype("f4")
    counts = histograms.counted(drawn_ones)
    first, last = histograms.occupied(counts)
    edges = histograms.edges(first, last)
    for sign, own in ((1, counts[0]), (-1, counts[1])):
        # The right edge of NumPy's last bin belongs to it; nothing lies on it here.
        wanted, _ = np.histogram(sign * drawn_ones.astype("f8"), edges)
        assert own[first:last].tolist() == wanted.tolist()
    assert counts.sum() == drawn_ones.size


def test_what_is_no_number_is_counted_apart() -> None:
    odd = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0], "f4")
    counts = histograms.counted(odd)
    assert (histograms.zeros(counts), histograms.nonfinite(counts)) == (2, 3)
    assert histograms.occupied(histograms.counted(odd[:5])) == (4, 4)


def test_layers_have_their_sizes_and_shares(tmp_path: Path) -> None:
    given = tensors()
    found = looked_at(tmp_path / "m.safetensors", given)
    assert [layer.name for layer in found.layers] == [
        "embed", "layers.0", "layers.2", "layers.10", "head",
    ]  # fmt: skip
    assert found.layers[1].sizes == {"BF16": 640, "F32": 32}
    shares, edges = found.shares()
    assert shares.sum(axis=1) == pytest.approx(1)
    for layer, row in zip(found.layers, shares, strict=True):
        own = values(given, layer.name)
        own = own[np.isfinite(own)]
        bins = np.concatenate([-edges[::-1], edges])
        middle = len(edges) - 1
        uppers = zip(bins[middle + 1 :], bins[middle + 2 :], strict=False)
        wanted = [np.mean((own >= low) & (own < high)) for low, high in uppers]
        assert row[middle + 1 :] == pytest.approx(wanted)
        assert row[middle] == pytest.approx(np.mean(np.abs(own) < edges[0]))


def test_a_picture_has_a_line_for_each_layer(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "m.safetensors")
    words = ["inspect", tmp_path / "m.safetensors", "--picture", tmp_path / "m.svg"]
    result = CliRunner().invoke(commands, [str(word) for word in words])
    assert result.exit_code == 0, result.stderr
    root = drawn(tmp_path / "m.svg")
    found = labels(root)
    layers = ["embed", "layers.0", "layers.2", "layers.10", "head"]
    assert [label for label in found if label in layers] == layers
    assert "1 nan or inf" in found
    assert {"BF16", "F32", "I64"} <= set(found)
    assert sum((g.get("id") or "").startswith("layer ") for g in root.iter("g")) == len(layers)


def test_the_library_draws_what_was_inspected(tmp_path: Path) -> None:
    torch.save({"state": tensors(), "epoch": 3}, tmp_path / "m.pt")
    found = surgeon.inspect(f"{tmp_path / 'm.pt'}#state", ["layers", "!**.norm"])
    assert "location" not in found.as_json()
    assert found.plot(tmp_path / "m.svg").axes
    drawn_ones = labels(drawn(tmp_path / "m.svg"))
    assert [text for text in drawn_ones if text.startswith("layers")] == [
        "layers.0", "layers.2", "layers.10"]  # fmt: skip
    assert "F32" not in drawn_ones
    torch.save({"state": {"layers.0.up.weight": torch.ones(2, 2)}}, tmp_path / "m.pt")
    with pytest.raises(surgeon.SurgeonError, match="changed since it was inspected"):
        found.plot()


def test_lines_are_as_high_as_their_shares(tmp_path: Path) -> None:
    found = looked_at(tmp_path / "m.safetensors", tensors())
    shares, _ = found.shares()
    figure: Any = found.plot()
    values_of = figure.axes[1]
    for row, steps in enumerate(values_of.patches):
        heights = (row + 0.44 - steps.get_data().values) / 0.88
        assert heights == pytest.approx(shares[row] / shares[row].max())


@pytest.mark.parametrize(
    "given",
    [
        {"w": torch.zeros(3)},
        {"w": torch.zeros(0)},
        {"w": torch.full((2,), torch.nan)},
        {"w": torch.ones(1)},
        {"a.w": torch.tensor([1e-38, 3e38]), "b.w": torch.tensor([True, False])},
        {"w": torch.zeros(4, dtype=torch.float8_e4m3fn)},
        {"w": torch.tensor([1e300], dtype=torch.float64)},
    ],
    ids=["zeros", "empty", "nan", "one", "extremes", "fp8", "beyond"],
)
def test_odd_values_are_drawn_too(tmp_path: Path, given: dict[str, torch.Tensor]) -> None:
    found = looked_at(tmp_path / "m.safetensors", given)
    found.plot(tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert np.isfinite(found.shares()[0]).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(60_000_000)}, tmp_path / "m.safetensors")
    opened = open_checkpoint(str(tmp_path / "m.safetensors"))
    tracemalloc.start()
    try:
        spread("m", inspected(opened.tensors, (), stats=False))
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
        opened.close()
