"""Gradients as pictures, and their history: what is kept, how much of it, and what is drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import NAMES, batches, group, loaded, network, stage
from torch import nn

from surgeon.base.errors import UsageError
from surgeon.training import History, Run

WARM_UP = stage(
    "warm-up",
    group("new", ["fc.weight[7:8]", "fc.bias[7:8]"]),
    frozen=["fc.weight[0:7]", "fc.bias[0:7]", "body.weight", "body.bias", "norm.weight",
            "norm.bias"],
)  # fmt: skip
JOINT = stage("joint", group("head", ["fc.weight", "fc.bias"]),
              group("rest", [name for name in NAMES if not name.startswith("fc")]))  # fmt: skip


def trained(folder: Path, steps: int) -> tuple[Run, list[dict[str, float]]]:
    """Train two stages; return the run, and the norms of the groups as torch has them."""
    model = network()
    run = loaded(model, folder, WARM_UP, JOINT).bind(model)
    norms = []
    for name in ("warm-up", "joint"):
        optimizer, _ = run.start(name)
        for inputs, labels in batches(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            run.record()
            full = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            if name == "warm-up":
                parts = {"new": [full["fc.weight"][7:], full["fc.bias"][7:]]}
            else:
                rest = [grad for n, grad in full.items() if not n.startswith("fc")]
                parts = {"head": [full["fc.weight"], full["fc.bias"]], "rest": rest}
            flat = {k: torch.cat([grad.flatten() for grad in v]) for k, v in parts.items()}
            norms.append({k: float(v.double().norm()) for k, v in flat.items()})
            optimizer.step()
    return run, norms


def test_the_history_has_every_groups_norm(tmp_path: Path) -> None:
    run, norms = trained(tmp_path, 3)
    kept = run.history
    assert (kept.records, kept.every, kept.groups) == (6, 1, ("new", "head", "rest"))
    assert [point.stage for point in kept.points] == ["warm-up"] * 3 + ["joint"] * 3
    for point, wanted in zip(kept.points, norms, strict=True):
        found = {name: own.mean for name, own in point.groups.items()}
        assert found == pytest.approx(wanted, rel=1e-5)
    assert json.loads(json.dumps(kept.as_json()))["points"][4]["first"] == 4
    assert "joint" in str(kept)


def filled(count: int, change_at: int) -> tuple[History, np.ndarray]:
    values = np.random.default_rng(0).uniform(1, 2, count)
    kept = History()
    for number, value in enumerate(values):
        kept.add("one" if number < change_at else "two", {"a": value, "b": None})
    return kept, values


@pytest.mark.parametrize("count", [10, 1024, 1025, 5000, 50_000])
def test_memory_is_bounded_and_means_are_exact(count: int) -> None:
    change_at = count // 3
    kept, values = filled(count, change_at)
    assert len(kept.points) <= 1025
    assert kept.records == count
    after = 0
    for point in kept.points:
        own = values[point.first : point.last + 1]
        assert point.first == after
        assert (point.groups["a"].mean, point.groups["a"].largest) == (
            pytest.approx(own.mean()), own.max(),
        )  # fmt: skip
        assert point.records <= kept.every
        assert point.stage == ("one" if point.last < change_at else "two")
        after = point.last + 1
    assert after == count


def test_what_is_not_finite_is_counted_and_not_averaged() -> None:
    kept = History()
    for norm in (1.0, math.nan, math.inf, 3.0):
        kept.add("one", {"a": norm})
    joined = kept.points[0].joined(kept.points[1]).joined(kept.points[2]).joined(kept.points[3])
    found = joined.groups["a"]
    assert (found.mean, found.largest, found.nonfinite) == (2.0, 3.0, 2)


def test_the_picture_has_a_line_for_each_group(tmp_path: Path) -> None:
    run, norms = trained(tmp_path, 4)
    figure: Any = run.history.plot(tmp_path / "norms.svg")
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert [*lines] == ["new", "head", "rest"]
    for name, drawn in lines.items():
        wanted = [norm.get(name, math.nan) for norm in norms]
        np.testing.assert_allclose(drawn, wanted, rtol=1e-5)
    assert [text.get_text() for text in axes.texts] == ["warm-up", "joint"]
    assert axes.get_yscale() == "log"
    assert "norm of the gradient" in (tmp_path / "norms.svg").read_text()


def test_gradients_are_bars_by_block(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, WARM_UP, JOINT).bind(model)
    run.start("joint")
    inputs, labels = batches(1)[0]
    nn.functional.cross_entropy(model(inputs), labels).backward()
    found = run.gradients()
    figure: Any = found.plot(tmp_path / "now.png")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        block.block for block in found.blocks
    ]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [block.norm for block in found.blocks]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["head", "rest"]
    assert (tmp_path / "now.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"a \.png or \.svg file"):
        found.plot(tmp_path / "now.gif")


@pytest.mark.parametrize("odd", [[], [{"a": None}], [{"a": 0.0}], [{"a": math.nan}, {"b": 1.0}]])
def test_odd_histories_are_drawn_too(odd: list[dict[str, float | None]]) -> None:
    kept = History()
    for norms in odd:
        kept.add("one", norms)
    assert kept.plot().axes
    assert str(kept)
    assert "<table>" in kept._repr_html_() or not kept.groups
