"""compare: against a naive loop over plain numbers."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from surgeon.base.errors import PlanError, UsageError
from surgeon.inspection.compare import compare
from surgeon.pictures import figures

NAMES = ["embed.weight", "layers.0.mlp.up.weight", "layers.0.mlp.up.bias", "layers.10.attn.weight",
         "layers.9.attn.weight", "head.weight"]  # fmt: skip


def models(folder: Path, count: int, dtype: torch.dtype = torch.float32) -> list[str]:
    generator = torch.Generator().manual_seed(5)
    base = {name: torch.randn(30, 7, generator=generator) for name in NAMES}
    paths = []
    for number in range(count):
        path = folder / f"{number}.safetensors"
        moved = {
            name: tensor + 0.1 * number * torch.randn(30, 7, generator=generator)
            for name, tensor in base.items()
        }
        for tensor in moved.values():
            tensor[:5] = 1.5  # elements that nobody moves
        save_file({name: tensor.to(dtype) for name, tensor in moved.items()}, path)
        paths.append(str(path))
    return paths


def naive(paths: list[str], names: list[str]) -> dict[str, Any]:
    from safetensors.torch import load_file

    loaded = [load_file(path) for path in paths]
    flat = [[x for n in names for x in model[n].double().flatten().tolist()] for model in loaded]
    base, others = flat[0], flat[1:]
    deltas = [[x - b for x, b in zip(other, base, strict=True)] for other in others]

    def dot(x: list[float], y: list[float]) -> float:
        return math.fsum(p * q for p, q in zip(x, y, strict=True))

    def cosine(x: list[float], y: list[float]) -> float:
        return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))

    columns = list(zip(*deltas, strict=True))
    several = [c for c in columns if sum(value != 0 for value in c) > 1]
    conflicts = [c for c in several if min(c) < 0 < max(c)]
    pairs = list(itertools.combinations(deltas, 2))
    return {
        "elements": len(base),
        "relative": [math.sqrt(dot(d, d) / dot(base, base)) for d in deltas],
        "cosine": sum(cosine(x, y) for x, y in pairs) / len(pairs)
        if pairs
        else cosine(base, others[0]),
        "conflicts": len(conflicts) / len(several) if several else None,
    }


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_figures_equal_a_naive_loop(tmp_path: Path, count: int, dtype: torch.dtype) -> None:
    paths = models(tmp_path, count, dtype)
    found = compare(paths, 1).layers["layers.0"]["mlp.up"]
    expected = naive(paths, ["layers.0.mlp.up.weight", "layers.0.mlp.up.bias"])
    assert found.elements == expected["elements"]
    assert found.relative == pytest.approx(expected["relative"], rel=1e-12)
    assert found.cosine == pytest.approx(expected["cosine"], rel=1e-12)
    assert (found.conflicts is None) == (count == 2)
    assert (found.conflicts or 0) == pytest.approx(expected["conflicts"] or 0, rel=1e-12)


def test_totals_are_those_of_all_tensors(tmp_path: Path) -> None:
    paths = models(tmp_path, 3)
    found, expected = compare(paths, 1).total, naive(paths, NAMES)
    assert found.relative == pytest.approx(expected["relative"], rel=1e-12)
    assert found.conflicts == pytest.approx(expected["conflicts"], rel=1e-12)


def test_layers_stand_in_their_order(tmp_path: Path) -> None:
    found = compare(models(tmp_path, 2), 1)
    assert list(found.layers) == ["embed", "layers.0", "layers.9", "layers.10", "head"]


def test_figures_do_not_depend_on_workers(tmp_path: Path, monkeypatch: Any) -> None:
    paths = models(tmp_path, 3)
    alone = compare(paths, 1).as_json()
    monkeypatch.setattr("surgeon.output.workers._SHARED_FROM", 0)
    assert compare(paths, 3).as_json() == alone


def test_a_model_with_itself_is_alike(tmp_path: Path) -> None:
    (path,) = models(tmp_path, 1)
    total = compare([path, path], 1).total
    assert (total.relative, total.conflicts) == ([0.0], None)
    assert total.cosine == pytest.approx(1, rel=1e-15)


def test_what_is_not_finite_is_counted_apart(tmp_path: Path) -> None:
    a, b = (tmp_path / f"{name}.safetensors" for name in "ab")
    save_file({"w": torch.tensor([1.0, 2.0, math.nan, 3.0])}, a)
    save_file({"w": torch.tensor([1.0, math.inf, 0.0, 5.0])}, b)
    (figures,) = compare([str(a), str(b)], 1).layers["w"].values()
    assert (figures.elements, figures.nonfinite) == (2, 2)
    assert figures.relative == pytest.approx([2 / math.sqrt(10)])


def test_what_not_all_have_is_left_out_and_said(tmp_path: Path) -> None:
    a, b = (tmp_path / f"{name}.safetensors" for name in "ab")
    save_file({"w": torch.ones(3), "v": torch.ones(3), "u": torch.ones(2)}, a)
    save_file({"w": torch.ones(3), "v": torch.ones(4), "x": torch.ones(2)}, b)
    found = compare([str(a), str(b)], 1)
    assert list(found.layers) == ["w"]
    assert sorted(found.notes) == [
        "'u' is only in A; left out",
        "'v' is F32 (3,) in A, F32 (4,) in B; left out",
        "'x' is only in B; left out",
    ]


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    a, b = (tmp_path / f"{name}.safetensors" for name in "ab")
    save_file({"w": torch.ones(3)}, a)
    save_file({"w": torch.ones(3, dtype=torch.int32)}, b)
    with pytest.raises(PlanError, match="no floating-point tensor in common"):
        compare([str(a), str(b)], 1)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "surgeon", "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_prints_a_table_or_a_document(tmp_path: Path) -> None:
    paths = models(tmp_path, 3)
    text = run(*paths)
    assert text.returncode == 0
    assert [line.split()[0] for line in text.stdout.splitlines() if "layers." in line] == [
        "layers.0", "layers.9", "layers.10",
    ]  # fmt: skip
    document = json.loads(run(*paths, "--json").stdout)
    assert document["total"]["sign_conflicts"] == compare(paths, 1).total.conflicts
    assert document["layers"][1]["modules"]["mlp.up"]["elements"] == 420


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("count", [2, 3])
def test_picture_is_drawn_the_same_each_time(tmp_path: Path, suffix: str, count: int) -> None:
    found = compare(models(tmp_path, count), 1)
    first, second = (tmp_path / f"{i}.{suffix}" for i in range(2))
    found.plot(first)
    found.plot(second)
    assert first.read_bytes() == second.read_bytes()
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[suffix]
    assert first.read_bytes().startswith(start)
    if suffix == "svg":
        assert "layers.10" in first.read_text()
        assert "mlp.up" in first.read_text()


def test_picture_that_cannot_be_drawn_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"a \.png or \.svg file"):
        figures.require_drawable(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match="there is no folder"):
        figures.require_drawable(tmp_path / "none" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'surgeon-checkpoints\[picture\]'"):
        figures.require_drawable(tmp_path / "a.png")


def test_one_model_is_not_enough(tmp_path: Path) -> None:
    (path,) = models(tmp_path, 1)
    done = run(path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "two models or more" in done.stderr
