"""Starting stages of whole parameters: groups, freezing, schedulers, evaluation mode, carrying."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from small import HEAD, NAMES, batches, copied, group, loaded, network, stage, train
from torch import nn

from surgeon.training import ManifestError, Run

HEAD_ONLY = stage("warm-up", group("head", HEAD, lr=0.5), eval_modules=["norm"])
EVERYTHING = stage("joint", group("head", HEAD, lr=0.25), group("default", NAMES[:2] + NAMES[4:]))
CARRY = {**EVERYTHING, "optimizer_state": "carry"}
ADAM = {"class": "torch.optim.Adam", "args": {"lr": 0.125}}


def bound(model: nn.Module, folder: Path, *stages: dict[str, Any], **changes: Any) -> Run:
    return loaded(model, folder, *stages, **changes).bind(model)


def message(run: Run, name: str, **more: Any) -> str:
    with pytest.raises(ManifestError) as raised:
        run.start(name, **more)
    return str(raised.value)


def test_frozen_parameters_do_not_move(tmp_path: Path) -> None:
    model = network()
    before = copied(model)
    optimizer, scheduler = bound(model, tmp_path, HEAD_ONLY).start("warm-up")
    train(model, optimizer)
    assert scheduler is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in HEAD), name


def test_start_freezes_and_clears_gradients(tmp_path: Path) -> None:
    model = network()
    model.fc.bias.requires_grad_(False)
    model(batches(1)[0][0]).sum().backward()
    bound(model, tmp_path, HEAD_ONLY).start("warm-up")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in HEAD)
        assert parameter.grad is None


def test_groups_keep_name_and_settings(tmp_path: Path) -> None:
    tuned = stage("joint", group("head", HEAD, lr=0.25, nesterov=True), group("default", NAMES[:2]))
    tuned["frozen"] = ["norm.bias", "norm.weight"]
    model = network()
    optimizer, _ = bound(model, tmp_path, tuned).start("joint")
    head, rest = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert (head["name"], head["lr"], head["nesterov"], head["momentum"]) == (
        "head",
        0.25,
        True,
        0.9,
    )
    assert (rest["name"], rest["lr"], rest["nesterov"]) == ("default", 0.125, False)
    assert head["params"] == [model.fc.bias, model.fc.weight]


def test_a_stage_switch_restores_the_manifests_learning_rates(tmp_path: Path) -> None:
    halving = {"class": "torch.optim.lr_scheduler.StepLR", "args": {"step_size": 1, "gamma": 0.5}}
    model = network()
    stages = {**HEAD_ONLY, "scheduler": halving}, {**CARRY, "scheduler": halving}
    run = bound(model, tmp_path, *stages)
    optimizer, scheduler = run.start("warm-up")
    assert scheduler is not None
    for _ in range(3):
        train(model, optimizer, 1)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5 / 8
    optimizer, scheduler = run.start("joint")
    assert scheduler is not None
    assert [entry["lr"] for entry in optimizer.param_groups] == [0.25, 0.125]
    assert [entry["initial_lr"] for entry in optimizer.param_groups] == [0.25, 0.125]
    assert scheduler.last_epoch == 0


def test_starting_leaves_the_manifest_as_it_was(tmp_path: Path) -> None:
    model = network()
    run = bound(model, tmp_path, HEAD_ONLY)
    optimizer, _ = run.start("warm-up")
    optimizer.param_groups[0]["lr"] = 9.0
    assert run.start("warm-up")[0].param_groups[0]["lr"] == 0.5


def test_carry_keeps_moments_and_starts_new_parameters_clean(tmp_path: Path) -> None:
    model = network()
    run = bound(model, tmp_path, HEAD_ONLY, CARRY, optimizer=ADAM)
    optimizer, _ = run.start("warm-up")
    train(model, optimizer)
    moments = copy.deepcopy(optimizer.state[model.fc.weight])
    optimizer, _ = run.start("joint")
    state = optimizer.state[model.fc.weight]
    assert state["step"] == 5
    torch.testing.assert_close(state, moments, rtol=0, atol=0)
    assert model.body.weight not in optimizer.state


def test_carry_continues_as_if_there_had_been_no_switch(tmp_path: Path) -> None:
    both = stage("a", group("head", HEAD)), stage("b", group("head", HEAD), optimizer_state="carry")
    switched, unbroken = network(), network()
    run = bound(switched, tmp_path, *both, optimizer=ADAM)
    for name in ("a", "b"):
        train(switched, run.start(name)[0])
    optimizer, _ = bound(unbroken, tmp_path, *both, optimizer=ADAM).start("a")
    for _ in range(2):
        train(unbroken, optimizer)
    torch.testing.assert_close(switched.state_dict(), unbroken.state_dict(), rtol=0, atol=0)


def test_reset_starts_clean(tmp_path: Path) -> None:
    model = network()
    run = bound(model, tmp_path, HEAD_ONLY, EVERYTHING)
    train(model, run.start("warm-up")[0])
    assert not run.start("joint")[0].state


def test_carry_needs_a_stage_before(tmp_path: Path) -> None:
    run = bound(network(), tmp_path, HEAD_ONLY, CARRY)
    assert message(run, "joint") == (
        "out.manifest.json: stage 'joint': optimizer_state: 'carry' goes on with the state of the "
        "stage before, and this run has started none; save run.state_dict() when that stage ends, "
        "then here run.load_state_dict(SAVED) and run.start('joint')"
    )


def test_carry_in_a_new_process_goes_on_as_it_is_told_to(tmp_path: Path) -> None:
    model, other = network(), network()
    run = bound(model, tmp_path, HEAD_ONLY, CARRY, optimizer=ADAM)
    train(model, run.start("warm-up")[0])
    other.load_state_dict(model.state_dict())
    again = bound(other, tmp_path, HEAD_ONLY, CARRY, optimizer=ADAM)
    again.load_state_dict(copy.deepcopy(run.state_dict()))
    train(model, run.start("joint")[0])
    train(other, again.start("joint")[0])
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_carry_in_the_first_stage_needs_the_state_of_the_run_before(tmp_path: Path) -> None:
    run = bound(network(), tmp_path, CARRY)
    assert message(run, "joint").startswith(
        "out.manifest.json: stage 'joint': optimizer_state: 'carry' goes on with the state of the "
        "run before the surgery, and there is none beside the checkpoint; apply the recipe again "
    )


def test_carry_refuses_another_optimizer(tmp_path: Path) -> None:
    run = bound(network(), tmp_path, HEAD_ONLY, CARRY)
    run.start("warm-up")
    assert "the state of SGD into that of Adagrad" in message(
        run, "joint", optimizer=torch.optim.Adagrad
    )


def test_carry_refuses_state_that_is_not_kept_per_element(tmp_path: Path) -> None:
    model = network()
    whole = (
        stage("a", group("head", HEAD)),
        stage("b", group("head", HEAD), optimizer_state="carry"),
    )
    run = bound(model, tmp_path, *whole, optimizer={"class": "torch.optim.LBFGS", "args": {}})
    optimizer, _ = run.start("a")
    optimizer.step(lambda: _backward(model))
    assert "'carry' cannot carry" in message(run, "b")


def _backward(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = model(batches(1)[0][0]).square().sum()
    loss.backward()
    return loss


@pytest.mark.parametrize(
    ("optimizer", "problem"),
    [
        (None, "the manifest names no optimizer; add training.optimizer to the recipe, or start"),
        ({"class": "torch.optim.SDG"}, "optimizer.class: 'torch.optim.SDG' cannot be imported"),
        ({"class": "no.such.Thing"}, "optimizer.class: 'no.such.Thing' cannot be imported"),
        ({"class": "torch.nn.Linear"}, "is not a subclass of torch.optim.optimizer.Optimizer"),
        ({"class": "os.system"}, "is not a subclass of torch.optim.optimizer.Optimizer"),
        ({"class": "torch.optim.SGD", "args": {"lr": -1}}, "SGD: Invalid learning rate: -1"),
        ({"class": "torch.optim.SGD", "args": {"momentun": 1}}, "unexpected keyword argument"),
    ],
)
def test_start_refuses_an_optimizer(
    tmp_path: Path, optimizer: dict[str, Any] | None, problem: str
) -> None:
    model = network()
    run = bound(model, tmp_path, HEAD_ONLY, optimizer=optimizer)
    assert message(run, "warm-up").startswith("out.manifest.json: stage 'warm-up': ")
    assert problem in message(run, "warm-up")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_start_takes_an_optimizer_instead(tmp_path: Path) -> None:
    run = bound(network(), tmp_path, HEAD_ONLY, optimizer=None)
    optimizer, _ = run.start("warm-up", optimizer=torch.optim.Adagrad)
    assert isinstance(optimizer, torch.optim.Adagrad)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_start_refuses_a_setting_that_the_optimizer_lacks(tmp_path: Path) -> None:
    run = bound(network(), tmp_path, stage("warm-up", group("head", HEAD, weight_decai=0)))
    assert message(run, "warm-up") == (
        "out.manifest.json: stage 'warm-up': group 'head': SGD has no setting 'weight_decai'; did "
        "you mean 'weight_decay'?"
    )


def test_start_refuses_a_scheduler_of_another_kind(tmp_path: Path) -> None:
    wanted = {**HEAD_ONLY, "scheduler": {"class": "torch.optim.SGD", "args": {}}}
    run = bound(network(), tmp_path, wanted)
    assert "scheduler.class: 'torch.optim.SGD' is not a subclass" in message(run, "warm-up")


def test_start_names_the_stages_there_are(tmp_path: Path) -> None:
    run = bound(network(), tmp_path, HEAD_ONLY)
    assert message(run, "warmup").endswith("there is no such stage; did you mean 'warm-up'?")


def test_start_trains_what_the_model_holds_by_now(tmp_path: Path) -> None:
    model = network()
    run = bound(model, tmp_path, HEAD_ONLY)
    model.load_state_dict(copied(model), assign=True)
    optimizer, _ = run.start("warm-up")
    assert optimizer.param_groups[0]["params"] == [model.fc.bias, model.fc.weight]
    assert not model.body.weight.requires_grad


def test_start_refuses_a_model_that_has_changed(tmp_path: Path) -> None:
    model = network()
    run = bound(model, tmp_path, HEAD_ONLY)
    model.fc = nn.Linear(6, 9)
    assert "'fc.weight' is (9, 6) in the model and (8, 6) in the manifest" in message(
        run, "warm-up"
    )


def test_start_refuses_a_wrapped_model(tmp_path: Path) -> None:
    class Unconnected(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

    model = network()
    run = loaded(model, tmp_path, HEAD_ONLY).bind(Unconnected(model))
    assert "bind and start the model itself, then wrap it again" in message(run, "warm-up")


def test_frozen_normalisation_keeps_its_statistics(tmp_path: Path) -> None:
    model = network()
    before = copied(model)
    optimizer, _ = bound(model, tmp_path, HEAD_ONLY).start("warm-up")
    model.train()
    train(model, optimizer)
    assert not model.norm.training
    assert model.fc.training
    assert isinstance(model.norm, nn.BatchNorm1d)
    assert list(model.state_dict()) == list(before)
    assert torch.equal(model.norm.running_mean, before["norm.running_mean"])
    assert model.norm.num_batches_tracked == 0


def test_a_later_stage_that_trains_normalisation_moves_its_statistics(tmp_path: Path) -> None:
    model = network()
    run = bound(model, tmp_path, HEAD_ONLY, EVERYTHING)
    run.start("warm-up")
    run.start("joint")
    assert type(model.norm) is nn.BatchNorm1d
    assert model.norm.training


def test_evaluation_mode_stays_for_a_model_that_was_evaluated(tmp_path: Path) -> None:
    model = network()
    run = bound(model, tmp_path, HEAD_ONLY, EVERYTHING)
    run.start("warm-up")
    model.eval()
    run.start("joint")
    assert not model.norm.training


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]


def through_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("copies", [copy.deepcopy, through_pickle, through_torch])
def test_copies_keep_frozen_normalisation_in_evaluation(tmp_path: Path, copies: Any) -> None:
    model = network()
    bound(model, tmp_path, HEAD_ONLY).start("warm-up")
    copied_model = copies(model).train()
    assert not copied_model.norm.training
    assert copied_model.fc.training
    torch.testing.assert_close(copied_model.state_dict(), model.state_dict(), rtol=0, atol=0)
    bound(copied_model, tmp_path, EVERYTHING).start("joint")
    assert copied_model.norm.training
    assert not model.norm.training
