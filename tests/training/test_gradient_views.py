"""The gradients of row blocks are those that the optimizer uses, whoever puts them where."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from small import NAMES, batches, group, loaded, network, saved, stage
from test_distributed import on_two_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from surgeon.training import Manifest, ManifestError, Run

ROWS = ["fc.weight[7:8]", "fc.bias[7:8]"]
FROZEN = ["fc.weight[0:7]", "fc.bias[0:7]", *(name for name in NAMES if "fc" not in name)]
LR, LARGEST = 0.5, 0.05
PLAIN = {"class": "torch.optim.SGD", "args": {"lr": LR}}
STAGES = (
    stage("rows", group("rows", ROWS), frozen=FROZEN),
    stage("all", group("all", NAMES), frozen=[]),
)


def bound(folder: Path, model: nn.Module) -> Run:
    return loaded(network(), folder, *STAGES, optimizer=PLAIN).bind(model)


def expected(steps: int, largest: float = LARGEST) -> dict[str, torch.Tensor]:
    """Train row 7 by hand: the full gradient's row, clipped by the norm of that row alone."""
    model = network().eval()
    for inputs, labels in batches(steps):
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        rows = [(p, p.grad[7:8]) for p in (model.fc.weight, model.fc.bias) if p.grad is not None]
        norm = sum(float(gradient.square().sum()) for _, gradient in rows) ** 0.5
        for parameter, gradient in rows:
            with torch.no_grad():
                parameter[7:8] -= LR * min(1.0, largest / (norm + 1e-6)) * gradient
    return dict(model.state_dict())


def scaled_step(
    run_model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batch: Any,
    replace: nn.Module | None = None,
) -> None:
    inputs, labels = batch
    optimizer.zero_grad()
    scaler.scale(nn.functional.cross_entropy(run_model(inputs), labels)).backward()
    if replace is not None:
        for parameter in replace.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
    scaler.unscale_(optimizer)
    members = [p for entry in optimizer.param_groups for p in entry["params"]]
    nn.utils.clip_grad_norm_(members, LARGEST)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_gradients_that_were_replaced_are_unscaled_and_clipped(
    tmp_path: Path, is_replaced: bool
) -> None:
    model = network().eval()
    optimizer, _ = bound(tmp_path, model).start("rows")
    scaler = torch.amp.GradScaler("cpu")
    for batch in batches(3):
        scaled_step(model, optimizer, scaler, batch, model if is_replaced else None)
    torch.testing.assert_close(dict(model.state_dict()), expected(3))


def on_a_rank(rank: int, folder: Path, wanted: Any, accumulates: bool) -> None:
    model = network().eval()
    optimizer, _ = Manifest.load(folder / "out.manifest.json").bind(model).start("rows")
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    scaler = torch.amp.GradScaler("cpu")
    half = slice(8 * rank, 8 * rank + 8)
    for inputs, labels in batches(3):
        own = (inputs[half], labels[half])
        if accumulates:
            optimizer.zero_grad()
            with wrapped.no_sync():
                scaler.scale(nn.functional.cross_entropy(wrapped(own[0]), own[1]) / 2).backward()
            scaler.scale(nn.functional.cross_entropy(wrapped(own[0]), own[1]) / 2).backward()
            scaler.unscale_(optimizer)
            members = [p for entry in optimizer.param_groups for p in entry["params"]]
            nn.utils.clip_grad_norm_(members, LARGEST)
            scaler.step(optimizer)
            scaler.update()
        else:
            scaled_step(wrapped, optimizer, scaler, own)
    torch.testing.assert_close(dict(model.state_dict()), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("accumulates", [False, True])
def test_bucket_views_under_a_scaler(tmp_path: Path, accumulates: bool) -> None:
    saved(network(), tmp_path, *STAGES, optimizer=PLAIN)
    on_two_ranks(tmp_path, on_a_rank, expected(3), accumulates)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_model_and_optimizer_raises_at_its_step(tmp_path: Path, copied: Any) -> None:
    model = network()
    optimizer, _ = bound(tmp_path, model).start("rows")
    other, its = copied((model, optimizer))
    inputs, labels = batches(1)[0]
    nn.functional.cross_entropy(other(inputs), labels).backward()
    with pytest.raises(ManifestError, match="a copy of an optimizer that holds row blocks"):
        its.step()


def test_a_copy_of_whole_parameters_trains_as_the_first(tmp_path: Path) -> None:
    model = network()
    optimizer, _ = bound(tmp_path, model).start("all")
    pairs = [(model, optimizer), copy.deepcopy((model, optimizer))]
    for each, its in pairs:
        inputs, labels = batches(1)[0]
        nn.functional.cross_entropy(each(inputs), labels).backward()
        its.step()
    torch.testing.assert_close(pairs[0][0].state_dict(), pairs[1][0].state_dict(), rtol=0, atol=0)
