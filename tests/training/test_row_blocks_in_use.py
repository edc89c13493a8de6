"""Row blocks under what training loops do: closures, scaling, moves, loads, copies, wrappers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import HEAD, NAMES, batches, copied, group, loaded, network, stage, train
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from surgeon.training import ManifestError

BODY = [name for name in NAMES if name not in HEAD]
ROWS = stage(
    "rows",
    group("new", ["fc.weight[7:8]", "fc.bias[7:8]"]),
    frozen=[*BODY, "fc.weight[0:7]", "fc.bias[0:7]"],
    eval_modules=["norm"],
)
COLUMNS = stage(
    "columns",
    group("new", ["fc.weight[:,4:6]"]),
    frozen=[*BODY, "fc.weight[:,0:4]", "fc.bias"],
    eval_modules=["norm"],
)
HALVES = stage(
    "halves",
    group("old", ["fc.weight[0:7]", "fc.bias"], lr=0.03125),
    group("new", ["fc.weight[7:8]"], lr=0.125),
    frozen=BODY,
)
JOINT = stage("joint", group("all", HEAD), frozen=BODY)
ADAMW = {"class": "torch.optim.AdamW", "args": {"lr": 0.0625, "weight_decay": 0.5}}
Optimizer = torch.optim.Optimizer
Frozen = {"rows": lambda weight: weight[:7], "columns": lambda weight: weight[:, :4]}


def started(
    model: nn.Module, folder: Path, name: str = "rows", optimizer: Any = ADAMW
) -> Optimizer:
    stages = ROWS, COLUMNS, HALVES, JOINT
    return loaded(model, folder, *stages, optimizer=optimizer).bind(model).start(name)[0]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def closures(model: nn.Module, optimizer: Optimizer) -> None:
    """The backward pass inside of the step, as Lightning has it."""
    for batch in batches(5):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        assert optimizer.step(closure) is not None


def named_closures(model: nn.Module, optimizer: Optimizer) -> None:
    for batch in batches(5):
        optimizer.zero_grad()
        optimizer.step(closure=lambda batch=batch: loss_of(model, batch).backward())


def scaled(model: nn.Module, optimizer: Optimizer) -> None:
    """AMP: gradients are scaled, unscaled through the optimizer, clipped through the model."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for batch in batches(5):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch)).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1e6)
        scaler.step(optimizer)
        scaler.update()


def replaced(model: nn.Module, optimizer: Optimizer) -> None:
    """DDP puts views of its buckets where the gradients were."""
    for batch in batches(5):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad, old = parameter.grad.clone(), parameter.grad
                old.fill_(float("nan"))
        optimizer.step()


def zeroed_by_the_model(model: nn.Module, optimizer: Optimizer) -> None:
    for batch in batches(5):
        model.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    model.zero_grad()
    optimizer.step()


def zeroed_in_place(model: nn.Module, optimizer: Optimizer) -> None:
    for batch in batches(5):
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, batch).backward()
        optimizer.step()


def accumulated(model: nn.Module, optimizer: Optimizer) -> None:
    """Half a batch at a time."""
    for inputs, labels in batches(5):
        optimizer.zero_grad()
        for part in (slice(0, 8), slice(8, 16)):
            (loss_of(model, (inputs[part], labels[part])) / 2).backward()
        optimizer.step()


def moved(model: nn.Module, optimizer: Optimizer) -> None:
    """A trainer's `.to(device)` swaps every parameter's storage, before and between steps."""
    for batch in batches(5):
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        optimizer.step()


def reloaded(model: nn.Module, optimizer: Optimizer) -> None:
    """A load in place between steps."""
    for batch in batches(5):
        model.load_state_dict(copied(model))
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()


LOOPS = [
    *(closures, named_closures, scaled, replaced, zeroed_by_the_model, zeroed_in_place),
    *(accumulated, moved, reloaded),
]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["rows", "columns"])
@pytest.mark.parametrize("loop", LOOPS)
def test_loops_train_the_block_as_a_plain_loop_does(
    tmp_path: Path, loop: Callable[[nn.Module, Optimizer], None], name: str, fused: bool
) -> None:
    optimizer = {**ADAMW, "args": {**ADAMW["args"], "fused": fused}}
    model, plain = network(), network()
    before = copied(model)
    train(plain, started(plain, tmp_path, name, optimizer), 5)
    if loop is zeroed_by_the_model:
        loop(plain, torch.optim.SGD(plain.parameters(), lr=0.0))
    loop(model, started(model, tmp_path, name, optimizer))
    assert torch.equal(Frozen[name](model.fc.weight), Frozen[name](before["fc.weight"]))
    assert not torch.equal(model.fc.weight, before["fc.weight"])
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_lbfgs_evaluates_where_it_says(tmp_path: Path, name: str) -> None:
    lbfgs = {"class": "torch.optim.LBFGS", "args": {"line_search_fn": "strong_wolfe"}}
    model = network()
    before = copied(model)
    optimizer = started(model, tmp_path, name, lbfgs)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batches(1)[0])
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    assert loss_of(model, batches(1)[0]) < losses[0] - 0.01
    assert torch.equal(Frozen[name](model.fc.weight), Frozen[name](before["fc.weight"]))


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_frozen_elements_count_in_no_clip_norm(tmp_path: Path, name: str) -> None:
    model = network()
    optimizer = started(model, tmp_path, name)
    loss_of(model, batches(1)[0]).backward()
    own = [parameter for entry in optimizer.param_groups for parameter in entry["params"]]
    expected = clip_grad_norm_(own, 1e9)
    torch.testing.assert_close(clip_grad_norm_(model.parameters(), 0.05), expected)
    torch.testing.assert_close(clip_grad_norm_(own, 1e9), torch.tensor(0.05), rtol=1e-3, atol=0)


def test_two_groups_of_one_parameter_have_rates_of_their_own(tmp_path: Path) -> None:
    model = network().eval()
    before = copied(model)
    sgd = {"class": "torch.optim.SGD", "args": {"lr": 1.0}}
    optimizer = started(model, tmp_path, "halves", sgd)
    loss_of(model, batches(1)[0]).backward()
    gradient = model.fc.weight.grad.clone()
    optimizer.step()
    rates = torch.tensor([0.03125] * 7 + [0.125])[:, None]
    assert torch.equal(model.fc.weight, before["fc.weight"] - rates * gradient)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_clears_the_whole_parameters_gradient(tmp_path: Path, set_to_none: bool) -> None:
    model = network()
    optimizer = started(model, tmp_path)
    loss_of(model, batches(1)[0]).backward()
    optimizer.zero_grad(set_to_none)
    gradient = model.fc.weight.grad
    assert gradient is None if set_to_none else not gradient.any()


def test_a_dtype_change_between_steps_is_followed(tmp_path: Path) -> None:
    model = network()
    optimizer = started(model, tmp_path, optimizer={"class": "torch.optim.SGD", "args": {}})
    train(model, optimizer, 1)
    model.double()
    before = copied(model)
    model(batches(1)[0][0].double()).square().sum().backward()
    optimizer.step()
    assert torch.equal(model.fc.weight[:7], before["fc.weight"][:7])
    assert not torch.equal(model.fc.weight[7:], before["fc.weight"][7:])


def test_a_replaced_parameter_is_refused(tmp_path: Path) -> None:
    model = network()
    optimizer = started(model, tmp_path)
    model.load_state_dict(copied(model), assign=True)
    with pytest.raises(ManifestError, match=r"'fc\.weight' is another parameter than when the"):
        optimizer.step()


@pytest.mark.parametrize("act", ["step", "check"])
def test_whole_parameters_that_were_replaced_are_refused(tmp_path: Path, act: str) -> None:
    model = network()
    run = loaded(model, tmp_path, stage("head", group("head", HEAD))).bind(model)
    optimizer, _ = run.start("head")
    train(model, optimizer, 1)
    model.load_state_dict(copied(model), assign=True)
    with pytest.raises(ManifestError) as caught:
        (optimizer.step if act == "step" else run.check)()
    place = "out.manifest.json: stage 'head': " if act == "check" else ""
    assert sorted(caught.value.problems) == [
        f"{place}'{name}' is another parameter than when the stage was started (load_state_dict "
        "with assign=True replaces parameters, and so does another module in its place); load or "
        "replace, then start"
        for name in HEAD
    ]
    optimizer, _ = run.start("head")
    train(model, optimizer, 1)


def test_a_parameter_that_optimizer_and_model_both_changed_is_trained(tmp_path: Path) -> None:
    # As accelerate does where it shards a model that already has an optimizer.
    model = network()
    run = loaded(model, tmp_path, stage("head", group("head", HEAD))).bind(model)
    optimizer, _ = run.start("head")
    model.fc.weight = nn.Parameter(model.fc.weight.detach().clone())
    held = [p for p in optimizer.param_groups[0]["params"] if p.ndim == 1]
    optimizer.param_groups[0]["params"] = [*held, model.fc.weight]
    before = copied(model)
    train(model, optimizer, 1)
    assert not torch.equal(model.fc.weight, before["fc.weight"])


def test_gradients_that_were_worked_on_are_used(tmp_path: Path) -> None:
    model = network()
    optimizer = started(model, tmp_path, optimizer={"class": "torch.optim.SGD", "args": {"lr": 1}})
    before = copied(model)
    loss_of(model, batches(1)[0]).backward()
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(model.fc.weight[7:], before["fc.weight"][7:] - 1)


def test_gradients_cleared_in_part_are_refused(tmp_path: Path) -> None:
    model = network()
    optimizer = started(model, tmp_path)
    loss_of(model, batches(1)[0]).backward()
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = None
    with pytest.raises(ManifestError, match=r"clear gradients with zero_grad\(\)"):
        loss_of(model, batches(1)[0]).backward()


def test_a_sparse_gradient_is_refused(tmp_path: Path) -> None:
    model = nn.Embedding(8, 3, sparse=True)
    wanted = stage("rows", group("new", ["weight[7:8]"]), frozen=["weight[0:7]"])
    loaded(model, tmp_path, wanted).bind(model).start("rows")
    with pytest.raises(ManifestError, match="'weight' has a sparse gradient; row blocks need"):
        model(torch.tensor([7])).sum().backward()


def test_a_channels_last_parameter_is_trained_in_part(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 3, bias=False).to(memory_format=torch.channels_last)
    wanted = stage("rows", group("new", ["weight[3:4]"]), frozen=["weight[0:3]"])
    before = model.weight.detach().clone()
    described = {"class": "torch.optim.AdamW", "args": {"fused": True, "weight_decay": 0.5}}
    optimizer, _ = (
        loaded(nn.Conv2d(3, 4, 3, bias=False), tmp_path, wanted, optimizer=described)
        .bind(model)
        .start("rows")
    )
    model(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight[:3], before[:3])
    assert not torch.equal(model.weight[3:], before[3:])


@pytest.mark.parametrize("same_run", [True, False])
def test_a_later_stage_trains_all_rows_again(tmp_path: Path, same_run: bool) -> None:
    model = network()
    manifest = loaded(model, tmp_path, ROWS, JOINT)
    run = manifest.bind(model)
    earlier, _ = run.start("rows")
    optimizer, _ = (run if same_run else manifest.bind(model)).start("joint")
    before = copied(model)
    train(model, optimizer, 1)
    assert bool((model.fc.weight != before["fc.weight"]).any(1).all())
    with pytest.raises(ManifestError, match=r"a part of 'fc\.weight' in a stage that has ended"):
        earlier.step()


@pytest.mark.parametrize("copies", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_model_are_plain(tmp_path: Path, copies: Any) -> None:
    model = network()
    optimizer = started(model, tmp_path)
    loss_of(model, batches(1)[0]).backward()
    copied_model = copies(model)
    copied_model.zero_grad()
    loss_of(copied_model, batches(1)[0]).backward()
    assert copied_model.fc.weight.grad[:7].any()
    train(model, optimizer, 2)


def test_an_optimizers_state_can_be_saved_and_loaded(tmp_path: Path) -> None:
    model = network()
    optimizer = started(model, tmp_path)
    train(model, optimizer, 3)
    weights, state = copied(model), copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 3)
    resumed = network()
    resumed.load_state_dict(weights)
    again = started(resumed, tmp_path)
    again.load_state_dict(state)
    train(resumed, again, 3)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)
