"""Row blocks against an oracle that holds the blocks as separate tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from small import HEAD, NAMES, batches, copied, group, loaded, network, stage, train
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from surgeon.training import Run

Settings = dict[str, Any]
State = Mapping[str, Tensor]
BODY = [name for name in NAMES if name not in HEAD]
OPTIMIZERS: dict[str, tuple[str, Settings]] = {
    "SGD": ("SGD", {}),
    "SGD momentum": ("SGD", {"momentum": 0.9}),
    "SGD weight decay": ("SGD", {"momentum": 0.9, "weight_decay": 0.5}),
    "SGD fused": ("SGD", {"momentum": 0.9, "weight_decay": 0.5, "fused": True}),
    "Adam": ("Adam", {}),
    "Adam L2": ("Adam", {"weight_decay": 0.5}),
    "AdamW loop": ("AdamW", {"weight_decay": 0.5, "foreach": False}),
    "AdamW foreach": ("AdamW", {"weight_decay": 0.5, "foreach": True}),
    "AdamW fused": ("AdamW", {"weight_decay": 0.5, "fused": True}),
    "AdamW amsgrad": ("AdamW", {"weight_decay": 0.5, "amsgrad": True}),
    "NAdam": ("NAdam", {"weight_decay": 0.5}),
    "RAdam": ("RAdam", {"weight_decay": 0.5}),
    "RMSprop": ("RMSprop", {"weight_decay": 0.5, "momentum": 0.9}),
    "Adagrad": ("Adagrad", {"weight_decay": 0.5}),
    "Adafactor": ("Adafactor", {"weight_decay": 0.5}),
    "ASGD": ("ASGD", {"weight_decay": 0.5}),
    "Muon": ("Muon", {"weight_decay": 0.5}),
    "Rprop": ("Rprop", {}),
}
ROWS = ((slice(0, 7),), (slice(7, 8),))
COLUMNS = ((slice(None), slice(0, 4)), (slice(None), slice(4, 6)))


def start(
    model: nn.Module, folder: Path, name: str, blocks: list[str], frozen: list[str], **more: Any
) -> Run:
    """Bind a manifest whose stage "warm-up" trains these blocks, "again" too, carrying."""
    kind, args = OPTIMIZERS[name]
    stages = [
        stage("warm-up", group("new", blocks), frozen=frozen, **more),
        stage("again", group("new", blocks), frozen=frozen, optimizer_state="carry", **more),
        stage("joint", group("new", HEAD), frozen=BODY, optimizer_state="carry", **more),
    ]
    described = {"class": f"torch.optim.{kind}", "args": {"lr": 0.0625, **args}}
    return loaded(model, folder, *stages, optimizer=described, eval_modules=["norm"]).bind(model)


class Oracle(nn.Module):
    """The network with fc's weight and bias as separate tensors, joined in the forward pass."""

    def __init__(self, model: nn.Module, weight: Any, bias: Any, dim: int) -> None:
        super().__init__()
        self.body, self.norm, self.dim = copy.deepcopy(model.body), copy.deepcopy(model.norm), dim
        self.weights = nn.ParameterList(model.fc.weight.detach()[i].clone() for i in weight)
        self.biases = nn.ParameterList(model.fc.bias.detach()[i].clone() for i in bias)
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.body(inputs)))
        weight = torch.cat(list(self.weights), self.dim)
        return nn.functional.linear(hidden, weight, torch.cat(list(self.biases)))


def oracle_optimizer(name: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    kind, args = OPTIMIZERS[name]
    made: torch.optim.Optimizer = getattr(torch.optim, kind)(list(parameters), lr=0.0625, **args)
    return made


def clipped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for inputs, labels in batches(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 0.05)
        optimizer.step()


Loop = Callable[[nn.Module, torch.optim.Optimizer, int], None]
LOOPS: Mapping[str, Loop] = {"plain": train, "clipped": clipped}


def row_trained(name: str, loop: str, folder: Path, steps: int = 8) -> tuple[State, State, State]:
    """Train row 7 of fc alone; return the state_dict before, after, and as the oracle has it."""
    biases = [] if name == "Muon" else ["fc.bias[7:8]"]  # Muon takes matrices only
    rest = ["fc.weight[0:7]", "fc.bias[0:7]" if biases else "fc.bias"]
    model = network().eval()
    before, oracle = copied(model), Oracle(model, ROWS, ROWS, 0).eval()
    run = start(model, folder, name, ["fc.weight[7:8]", *biases], [*BODY, *rest])
    trained = [oracle.weights[1], *([oracle.biases[1]] if biases else [])]
    expected = oracle_optimizer(name, [parameter.requires_grad_() for parameter in trained])
    for stage_name in ("warm-up", "again") if loop == "carried" else ("warm-up",):
        LOOPS.get(loop, train)(model, run.start(stage_name)[0], steps)
        LOOPS.get(loop, train)(oracle, expected, steps)
    due = dict(before)
    for own, new in (("fc.weight", oracle.weights[1]), ("fc.bias", oracle.biases[1])):
        due[own] = torch.cat([before[own][:7], new.detach()])
    return before, copied(model), due


LOOPED = ["plain", "clipped", "carried"]


@pytest.mark.parametrize("loop", LOOPED)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_are_exact(tmp_path: Path, name: str, loop: str) -> None:
    before, after, due = row_trained(name, loop, tmp_path)
    torch.testing.assert_close(after, due, rtol=0, atol=0)
    assert not torch.equal(after["fc.weight"][7:], before["fc.weight"][7:])


@pytest.mark.parametrize(("name", "loop"), [*zip(OPTIMIZERS, cycle(LOOPED), strict=False)])
def test_columns_are_exact(tmp_path: Path, name: str, loop: str) -> None:
    model = network().eval()
    before, oracle = copied(model), Oracle(model, COLUMNS, [...], 1).eval()
    rest = [*BODY, "fc.weight[:,0:4]", "fc.bias"]
    run = start(model, tmp_path, name, ["fc.weight[:,4:6]"], rest)
    expected = oracle_optimizer(name, [oracle.weights[1].requires_grad_()])
    for stage_name in ("warm-up", "again") if loop == "carried" else ("warm-up",):
        LOOPS.get(loop, train)(model, run.start(stage_name)[0], 8)
        LOOPS.get(loop, train)(oracle, expected, 8)
    assert torch.equal(model.fc.weight[:, :4], before["fc.weight"][:, :4])
    assert not torch.equal(model.fc.weight[:, 4:], before["fc.weight"][:, 4:])
    # A clip norm over a strided gradient adds up in another order.
    tolerances = {"rtol": 1e-4, "atol": 1e-6} if loop == "clipped" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(model.fc.weight[:, 4:], oracle.weights[1].data, **tolerances)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "Muon"])
def test_rows_trained_later_have_a_state_of_their_own(tmp_path: Path, name: str) -> None:
    model = network().eval()
    oracle = Oracle(model, ROWS, ROWS, 0).eval()
    blocks = ["fc.bias[7:8]", "fc.weight[7:8]"]
    run = start(model, tmp_path, name, blocks, [*BODY, "fc.bias[0:7]", "fc.weight[0:7]"])
    new, old = [oracle.biases[1], oracle.weights[1]], [oracle.biases[0], oracle.weights[0]]
    # In two groups: torch's fused SGD fails where only some of a group have momentum.
    expected = oracle_optimizer(name, new)
    expected.add_param_group({"params": old})
    for stage_name, parameters in (("warm-up", new), ("joint", old)):
        for parameter in parameters:
            parameter.requires_grad_()
        train(model, run.start(stage_name)[0], 8)
        train(oracle, expected, 8)
    assert torch.equal(model.fc.weight, torch.cat(list(oracle.weights)))
    assert torch.equal(model.fc.bias, torch.cat(list(oracle.biases)))
