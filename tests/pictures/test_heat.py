"""Pictures of compare and diff: every cell against NumPy, every label in its place."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import surgeon
from surgeon.cli.commands import commands
from tests.pictures.parsed import drawn, labels

MODULES = ("mlp.up", "mlp.down", "norm")
LAYERS = (0, 2, 9, 10, 11)


def names() -> list[str]:
    inner = [f"model.layers.{i}.{module}.weight" for i in LAYERS for module in MODULES]
    return ["model.embed_tokens.weight", *inner, "lm_head.weight", "lm_head.bias"]


def models(folder: Path, count: int) -> list[Path]:
    """Models that came from the first: norms stay, a head has another shape, one has no bias."""
    rng = np.random.default_rng(0)
    base = {name: rng.standard_normal((6, 4)).astype("f4") for name in names()}
    base["model.layers.9.mlp.up.weight"][:] = 0
    paths = []
    for number in range(count):
        made = {
            name: tensor if "norm" in name or not number else
            tensor + rng.standard_normal((6, 4)).astype("f4") * 0.1 * number
            for name, tensor in base.items()
        }  # fmt: skip
        if number == count - 1:
            made["lm_head.weight"] = np.ones((7, 4), "f4")
            del made["lm_head.bias"]
        paths.append(folder / f"{number}.safetensors")
        save_file(made, paths[-1])
    return paths


def panels(figure: Any) -> dict[str, Any]:
    return {axes.get_title("left"): axes for axes in figure.axes if axes.images}


def cells(axes: Any) -> dict[tuple[str, str], float]:
    """Return the values of a panel by its labels."""
    found = axes.images[0].get_array()
    rows, columns = axes.get_figure().rows, axes.get_figure().columns
    return {(rows[i], columns[j]): float(found[i, j]) for i, j in np.argwhere(~found.mask)}


def labelled(figure: Any) -> Any:
    """Give a figure the labels of its rows and columns, which its outer panels have."""
    ticks = [[t.get_text() for t in axes.get_yticklabels()] for axes in figure.axes if axes.images]
    figure.rows = next(row for row in ticks if row)
    under = [[t.get_text() for t in axes.get_xticklabels()] for axes in figure.axes if axes.images]
    figure.columns = next(row for row in under if row)
    return figure


def key(name: str) -> tuple[str, str]:
    layer, _, module = name.removesuffix(".weight").partition(".mlp.")
    return (layer, f"mlp.{module}") if module else (layer, "(itself)")


def changes(paths: list[Path]) -> list[dict[tuple[str, str], np.ndarray]]:
    """Return what each other model added to the first, where all can be compared."""
    base, *others = (load_file(path) for path in paths)
    known = [name for name in base if "norm" not in name and "lm_head" not in name]
    return [{key(n): other[n].astype("f8") - base[n].astype("f8") for n in known}
            for other in others]  # fmt: skip


@pytest.mark.parametrize("count", [2, 3, 4])
def test_distances_and_cosines_are_those_of_numpy(tmp_path: Path, count: int) -> None:
    paths = models(tmp_path, count)
    figure = labelled(surgeon.compare(*paths, workers=1).plot())
    base = {key(name): tensor for name, tensor in load_file(paths[0]).items()}
    moved = changes(paths)
    found = panels(figure)
    pairs = [*combinations(range(1, count), 2)]
    assert len(found) == count - 1 + len(pairs)
    for number, delta in enumerate(moved):
        wanted = {k: np.linalg.norm(d) / np.linalg.norm(base[k]) for k, d in delta.items()
                  if base[k].any()}  # fmt: skip
        assert cells(found[f"{'BCD'[number]} from A"]) == pytest.approx(wanted, rel=1e-6)
    for i, j in pairs:
        a, b = moved[i - 1], moved[j - 1]
        wanted = {k: np.vdot(a[k], b[k]) / np.linalg.norm(a[k]) / np.linalg.norm(b[k]) for k in a}
        assert cells(found[f"{'ABCD'[i]} and {'ABCD'[j]}"]) == pytest.approx(wanted, rel=1e-6)


def test_layers_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    figure = labelled(surgeon.compare(*models(tmp_path, 3), workers=1).plot())
    layers = [f"model.layers.{number}" for number in LAYERS]
    assert figure.rows == ["model.embed_tokens", *layers, "lm_head"]
    assert figure.columns == ["(itself)", "mlp.down", "mlp.up", "norm"]


def marks(axes: Any) -> set[str]:
    """Return why cells have no value: hatched ones, and those of the image of unchanged ones."""
    same = axes.images[1].get_array() if len(axes.images) > 1 else np.ma.masked_all((1, 1))
    unchanged = {f"unchanged {i} {j}" for i, j in np.argwhere(~same.mask)}
    return {patch.get_gid() for patch in axes.patches} | unchanged


def test_what_has_no_value_says_why_and_has_no_colour(tmp_path: Path) -> None:
    figure = labelled(surgeon.compare(*models(tmp_path, 3), workers=1).plot())
    head, nine = figure.rows.index("lm_head"), figure.rows.index("model.layers.9")
    for title, axes in panels(figure).items():
        found = axes.images[0].get_array()
        assert f"reshaped {head} 0" in marks(axes)
        assert f"unchanged {nine} 3" in marks(axes)
        assert found.mask[:, 3].all()
        assert (f"no ratio {nine} 2" in marks(axes)) == ("from A" in title)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "unchanged", "reshaped: not comparable", "changed, without a ratio",
    ]  # fmt: skip


def test_models_that_are_equal_have_no_colours_at_all(tmp_path: Path) -> None:
    (path,) = models(tmp_path, 1)
    figure = surgeon.compare(path, path, path, workers=1).plot()
    assert all(axes.images[0].get_array().mask.all() for axes in panels(figure).values())
    assert len(figure.axes) == 3  # and no bar of colours


def test_many_models_have_the_mean_of_their_cosines(tmp_path: Path) -> None:
    paths = models(tmp_path, 6)
    found = surgeon.compare(*paths, workers=1)
    figure = labelled(found.plot())
    assert [*panels(figure)] == [f"{x} from A" for x in "BCDEF"] + ["mean of all pairs"]
    mean = cells(panels(figure)["mean of all pairs"])
    assert mean["model.layers.2", "mlp.up"] == found.layers["model.layers.2"]["mlp.up"].cosine


def test_numbers_stand_in_a_picture_with_few_cells(tmp_path: Path) -> None:
    figure = surgeon.compare(*models(tmp_path, 3), workers=1).plot()
    axes = panels(figure)["B and C"]
    shown = {text.get_text() for text in axes.texts}
    assert shown == {f"{value:.2f}" for value in axes.images[0].get_array().compressed()}


def test_diff_shows_the_relative_change_of_every_tensor(tmp_path: Path) -> None:
    a, b = models(tmp_path, 2)
    found = surgeon.diff(a, b)
    figure = labelled(found.plot())
    (axes,) = panels(figure).values()
    old = {key(name): tensor for name, tensor in load_file(a).items()}
    (moved,) = changes([a, b])
    wanted = {k: np.linalg.norm(d) / np.linalg.norm(old[k]) for k, d in moved.items()
              if old[k].any()}  # fmt: skip
    assert cells(axes) == pytest.approx(wanted, rel=1e-6)
    bias = figure.rows.index("lm_head"), figure.columns.index("bias")
    assert f"only in one {bias[0]} {bias[1]}" in marks(axes)
    assert sum(mark.startswith("unchanged") for mark in marks(axes)) == len(LAYERS)


def test_many_experts_share_a_column(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.experts.{j}.up.weight": np.full((2, 2), 1, "f4")
               for i in range(2) for j in range(60)}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")
    tensors["layers.1.experts.7.up.weight"] = np.full((2, 2), 1.5, "f4")
    save_file(tensors, tmp_path / "b.safetensors")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    figure = labelled(surgeon.diff(a, b).plot())
    assert figure.columns == ["experts.*.up"]
    (axes,) = panels(figure).values()
    assert cells(axes) == {("layers.1", "experts.*.up"): 0.5}
    whole = labelled(surgeon.compare(a, b, workers=1).plot())
    (axes,) = panels(whole).values()
    # Of 240 elements, four moved by a half.
    wanted = {("layers.1", "experts.*.up"): float(np.sqrt(4 * 0.25 / 240))}
    assert cells(axes) == pytest.approx(wanted)


def test_small_and_large_changes_are_told_apart(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.up.weight": np.ones(4, "f8") for i in range(6)}
    save_file(tensors, tmp_path / "a.safetensors")
    moved = {name: tensor + 10.0**-i for i, (name, tensor) in enumerate(tensors.items())}
    save_file(moved, tmp_path / "b.safetensors")
    figure = surgeon.diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors").plot()
    axes, bar = figure.axes
    shades = axes.images[0].norm(axes.images[0].get_array())[:, 0]
    assert list(np.diff(shades)) == pytest.approx([-0.2] * 5)
    figure.canvas.draw()
    shown = [label.get_text() for label in bar.get_yticklabels() if label.get_text()]
    assert {"100%", "0.01%"} <= {*shown}
    assert len({*shown}) == len(shown)


def run(*words: object) -> Any:
    return CliRunner().invoke(commands, [str(word) for word in words])


def test_labels_are_whole_in_the_file(tmp_path: Path) -> None:
    paths = models(tmp_path, 3)
    result = run("compare", *paths, "--picture", tmp_path / "c.svg", "--json")
    assert (result.exit_code, json.loads(result.stdout)["models"][0]) == (0, str(paths[0]))
    root = drawn(tmp_path / "c.svg")
    found = labels(root)
    assert {"model.embed_tokens", "model.layers.11", "mlp.down", "B and C"} <= set(found)
    assert "How far models moved from A, and whether together" in found
    assert any(line.endswith("2.safetensors") for line in found)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert width > 300
    assert height > 100


def test_names_are_no_formulas(tmp_path: Path) -> None:
    name = "layers.0.$\\frac{a}{b}$ & <b>.中文.weight"
    for i in range(2):
        save_file({name: np.full((2, 2), i + 1, "f4")}, tmp_path / f"{i}$x$.safetensors")
    paths = [tmp_path / f"{i}$x$.safetensors" for i in range(2)]
    assert run("diff", *paths, "--picture", tmp_path / "d.svg").exit_code == 1
    found = labels(drawn(tmp_path / "d.svg"))
    assert "$\\frac{a}{b}$ & <b>.中文" in found
    assert run("diff", *paths, "--picture", tmp_path / "d.png").exit_code == 1


@pytest.mark.parametrize("command", ["inspect", "diff", "compare"])
def test_a_picture_is_refused_before_anything_is_read(tmp_path: Path, command: str) -> None:
    paths = ["no.safetensors"] * (1 if command == "inspect" else 2)
    result = run(command, *paths, "--picture", tmp_path / "x.gif")
    assert (result.exit_code, "a picture is a .png or .svg file" in result.stderr) == (2, True)
