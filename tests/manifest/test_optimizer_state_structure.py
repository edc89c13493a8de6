"""An optimizer's state goes through the ops that restructure a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.manifest.test_optimizer_state import Operated, operate
from tests.network import Json

Kept = dict[str, torch.Tensor]


def numbered(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(6, 6) for _ in range(count))


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Three layers and a convolution, after some steps of Adam."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"h": numbered(3), "stem": nn.Conv2d(2, 4, 3)})
    optimizer = torch.optim.Adam(model.named_parameters())
    for _ in range(2):
        loss = sum((torch.randn_like(p) * p).sum() for p in model.parameters())
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
    return model, optimizer


def surgery(folder: Path, *steps: Json) -> tuple[Operated, dict[str, Kept]]:
    """Return what steps made, and by key what was kept before."""
    model, optimizer = trained()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    before = {
        key: {name: optimizer.state[p][key] for name, p in model.named_parameters()}
        for key in ("exp_avg", "exp_avg_sq")
    }
    return operate(folder, saved, *steps), before


def expected(step: Json, old: Kept) -> Kept:
    """What torch makes of the moments of the tensors that a step is about."""
    layers = [(old[f"h.{i}.weight"], old[f"h.{i}.bias"]) for i in range(3)]
    match step["op"]:
        case "split":
            return {
                f"h.{i}.{part}.{leaf}": torch.stack([moment[row] for row in rows])
                for i, pair in enumerate(layers)
                for leaf, moment in zip(("weight", "bias"), pair, strict=True)
                for part, rows in (("a", (0, 3)), ("b", (1, 4)), ("c", (2, 5)))
            }
        case "concat":
            return {"h.bias": torch.cat([bias for _, bias in layers])}
        case "stack":
            return {"h.weight": torch.stack([weight for weight, _ in layers], 1)}
        case "unstack":
            return {f"stem.{n}": old["stem.weight"][:, n] for n in range(2)}
        case "permute":
            return {"stem.weight": old["stem.weight"].permute(2, 3, 1, 0)}
        case "transpose":
            return {"h.1.weight": layers[1][0].T}
        case "reshape":
            return {"stem.weight": old["stem.weight"].reshape(4, -1)}
    return {f"h.{new}.bias": layers[i][1] for new, i in enumerate((2, 0))}


STEPS: list[Json] = [
    {"op": "layers", "container": "h", "take": [2, 0]},
    {"op": "split", "target": "h.{i}", "dim": 0, "parts": 3, "groups": 2,
     "into": ["h.{i}.a", "h.{i}.b", "h.{i}.c"]},
    {"op": "concat", "from": "h.{i}.bias", "dim": 0, "into": "h.bias"},
    {"op": "stack", "from": "h.{i}.weight", "dim": 1, "into": "h.weight"},
    {"op": "unstack", "from": "stem.weight", "dim": 1, "into": "stem.{n}"},
    {"op": "permute", "target": "stem.weight", "order": [2, 3, 1, 0]},
    {"op": "transpose", "target": "h.1"},
    {"op": "reshape", "target": "stem.weight", "shape": [4, -1]},
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["op"])
def test_moments_move_with_their_elements(tmp_path: Path, step: Json) -> None:
    made, before = surgery(tmp_path, step)
    for key, old in before.items():
        for name, moment in expected(step, old).items():
            assert torch.equal(made.tensors[f"{name}/{key}"], moment), name
    assert not any("reset" in note for note in made.notes)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step["op"])
def test_every_parameter_still_has_state(tmp_path: Path, step: Json) -> None:
    made, _ = surgery(tmp_path, step)
    blocks = {block.partition("[")[0] for block in made.blocks}
    assert blocks == made.manifest["tensors"].keys()


def test_repeated_and_zeroed_layers_have_none(tmp_path: Path) -> None:
    take = ["0:3", {"range": 0, "zero": ["bias"]}]
    made, before = surgery(tmp_path, {"op": "layers", "container": "h", "take": take})
    assert not any(name.startswith("h.3.") for name in made.tensors)
    for key, old in before.items():
        assert torch.equal(made.tensors[f"h.0.bias/{key}"], old["h.0.bias"])


def test_joined_parts_keep_step_counts_of_their_own(tmp_path: Path) -> None:
    made, _ = surgery(
        tmp_path,
        {"op": "concat", "from": "h.{i}.bias", "dim": 0, "into": "h.bias"},
        {"op": "reshape", "target": "h.bias", "shape": [3, 6]},
    )
    assert [block for block in made.blocks if "bias[" in block] == [
        "h.bias[0:1]", "h.bias[1:2]", "h.bias[2:3]"
    ]  # fmt: skip
    assert {"h.bias[0:1]/step", "h.bias[2:3]/step"} <= made.tensors.keys()


def test_rows_that_were_added_have_none_after_a_transposition(tmp_path: Path) -> None:
    made, before = surgery(
        tmp_path,
        {"op": "widen", "target": "h.1", "rows": 2, "init": "zeros"},
        {"op": "transpose", "target": "h.1"},
    )
    assert "h.1.weight[:,0:6]" in made.blocks
    moment = made.tensors["h.1.weight/exp_avg"]
    assert torch.equal(moment[:, :6], before["exp_avg"]["h.1.weight"].T)
    assert not moment[:, 6:].any()
