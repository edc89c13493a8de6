"""What notebooks show of answers: well-formed, escaped, and the figures of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import surgeon
from tests.pictures.parsed import parsed, require_alone, rows, said

ODD = "layers.0.<img src=x onerror=alert(1)>&.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.fc.weight": rng.standard_normal((3, 2)).astype("f4") for i in range(4)}
    save_file({**tensors, ODD: np.ones((2, 2), "f4")}, tmp_path / "a.safetensors")
    moved = {name: tensor * 1.5 for name, tensor in tensors.items()}
    save_file({**moved, ODD: np.ones((3, 2), "f4")}, tmp_path / "b.safetensors")
    recipe = {
        "surgeon": 1, "about": "<script>",
        "steps": [{"op": "widen", "target": "layers.3.fc", "rows": 1}],
        "training": {"optimizer": {"class": "torch.optim.SGD", "args": {"lr": 0.1}},
                     "stages": [{"name": "<b>", "train": ["@new"]}]},
    }  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    surgeon.apply(tmp_path / "r.json", tmp_path / "a.safetensors", tmp_path / "o.safetensors")
    return tmp_path


ANSWERS: dict[str, Callable[[Path], Any]] = {
    "plan": lambda f: surgeon.plan(f / "r.json", f / "a.safetensors"),
    "apply": lambda f: surgeon.apply(f / "r.json", f / "a.safetensors", f / "o2.safetensors"),
    "manifest": lambda f: surgeon.Manifest.load(f / "o.safetensors"),
    "inspect": lambda f: surgeon.inspect(f / "a.safetensors"),
    "stats": lambda f: surgeon.inspect(f / "a.safetensors", stats=True),
    "diff": lambda f: surgeon.diff(f / "a.safetensors", f / "b.safetensors"),
    "equal": lambda f: surgeon.diff(f / "a.safetensors", f / "a.safetensors"),
    "compare": lambda f: surgeon.compare(f / "a.safetensors", f / "b.safetensors", workers=1),
    "verify": lambda f: surgeon.verify(f / "o.safetensors"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_shows_itself_escaped(folder: Path, name: str) -> None:
    root = parsed(ANSWERS[name](folder)._repr_html_())
    require_alone(root)
    assert root.get("class") == "surgeon"
    assert [*root.iter("p")]


def table_of(folder: Path, name: str) -> list[list[str]]:
    return [*rows(parsed(ANSWERS[name](folder)._repr_html_()))]


def test_layers_that_are_alike_are_one_row(folder: Path) -> None:
    found = table_of(folder, "inspect")
    assert ["layers.{0-3}.fc.weight", "F32", "(3, 2)", "24 B"] in found
    assert [ODD, "F32", "(2, 2)", "16 B"] in found


def test_a_diff_has_signs_and_figures(folder: Path) -> None:
    found = {row[0]: row[1:] for row in table_of(folder, "diff")}
    assert found["layers.{0-3}.fc.weight"][0] == "~ changed"
    assert found["layers.{0-3}.fc.weight"][2:4] == ["0.5", "1"]
    assert found[ODD][0] == "~ F32 (2, 2) -> F32 (3, 2)"


def test_a_plan_and_a_manifest_show_the_reports_parts(folder: Path) -> None:
    for name in ("plan", "manifest"):
        root = parsed(ANSWERS[name](folder)._repr_html_())
        titles = [said(title) for title in root.iter("h2")]
        assert {"Tensors", "Training", "Sizes"} <= {*titles}
        assert "<b>" in {said(part).split(" · ")[0] for part in root.iter("th")}


def test_long_answers_are_cut_and_say_so(tmp_path: Path) -> None:
    many = {f"t{chr(97 + i // 26)}{chr(97 + i % 26)}": np.zeros(1, "f4") for i in range(260)}
    save_file(many, tmp_path / "m.safetensors")
    root = parsed(surgeon.inspect(tmp_path / "m.safetensors")._repr_html_())
    assert "and 60 more rows" in said(root)
