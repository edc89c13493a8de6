"""Resuming in the middle of a stage: bit by bit as if training had never stopped."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import HEAD, NAMES, Json, Network, batches, copied, group, loaded, network, stage, train
from torch import Tensor, nn

from surgeon.training import ManifestError, Run

BODY = [name for name in NAMES if name not in HEAD]
ROWS = stage(
    "rows",
    group("new", ["fc.weight[7:8]", "fc.bias[7:8]"], lr=0.125),
    group("columns", ["body.weight[:,2:4]"]),
    frozen=["fc.weight[0:7]", "fc.bias[0:7]", "body.weight[:,0:2]", "body.bias", *BODY[2:]],
    eval_modules=["norm"],
)
JOINT = stage("joint", group("all", NAMES), frozen=[], optimizer_state="carry")
ADAMW: Json = {"class": "torch.optim.AdamW", "args": {"lr": 0.0625, "weight_decay": 0.5}}
OPTIMIZERS: list[tuple[str, Json]] = [
    ("SGD", {"momentum": 0.9, "weight_decay": 0.5}),
    ("SGD", {"momentum": 0.9, "fused": True}),
    ("AdamW", {"weight_decay": 0.5, "fused": True}),
    ("AdamW", {"weight_decay": 0.5, "amsgrad": True, "foreach": True}),
    ("AdamW", {"betas": [0.8, 0.99]}),
    ("Adafactor", {"weight_decay": 0.5}),
    ("NAdam", {}),
    ("ASGD", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
]


class Reordered(nn.Module):
    """The same network with its modules registered the other way round."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.fc = copy.deepcopy(model.fc)
        self.norm = copy.deepcopy(model.norm)
        self.body = copy.deepcopy(model.body)

    forward = Network.forward


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded_state: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded_state


def both_stages(run: Run, model: nn.Module, name: str) -> Any:
    """Train up to the middle of a stage; return its optimizer and scheduler."""
    made = run.start("rows")
    train(model, made[0], 3)
    if name == "joint":
        made = run.start("joint")
        train(model, made[0], 3)
    return made


@pytest.mark.parametrize("other", [copy.deepcopy, Reordered])
@pytest.mark.parametrize("name", ["rows", "joint"])
@pytest.mark.parametrize(("kind", "args"), OPTIMIZERS)
def test_resuming_is_bit_equal_to_never_stopping(
    tmp_path: Path, kind: str, args: Json, name: str, other: Callable[[nn.Module], nn.Module]
) -> None:
    described = {"class": f"torch.optim.{kind}", "args": {"lr": 0.0625, **args}}
    model = network()
    manifest = loaded(model, tmp_path, ROWS, JOINT, optimizer=described)
    run = manifest.bind(model)
    optimizer, _ = both_stages(run, model, name)
    resumed = other(network())
    resumed.load_state_dict(copied(model))
    again, _ = manifest.bind(resumed).load_state_dict(through_a_file(run.state_dict()))
    for training, by in ((model, optimizer), (resumed, again)):
        train(training, by, 4)
    left, right = model.state_dict(), resumed.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_stage_after_resuming_carries_its_state(tmp_path: Path) -> None:
    model = network()
    manifest = loaded(model, tmp_path, ROWS, JOINT, optimizer=ADAMW)
    run = manifest.bind(model)
    both_stages(run, model, "rows")
    resumed = network()
    resumed.load_state_dict(copied(model))
    again = manifest.bind(resumed)
    again.load_state_dict(through_a_file(run.state_dict()))
    for training, of in ((model, run), (resumed, again)):
        train(training, of.start("joint")[0], 3)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


SCHEDULERS: dict[str, Json] = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 4], "gamma": 0.5},
    "CosineAnnealingLR": {"T_max": 8},
    "OneCycleLR": {"max_lr": 0.25, "total_steps": 9},
    "CyclicLR": {"base_lr": 0.0625, "max_lr": 0.25, "step_size_up": 3, "cycle_momentum": False},
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_scheduler_goes_on_where_it_was(tmp_path: Path, kind: str) -> None:
    scheduler = {"class": f"torch.optim.lr_scheduler.{kind}", "args": SCHEDULERS[kind]}
    model = network()
    manifest = loaded(model, tmp_path, {**ROWS, "scheduler": scheduler}, optimizer=ADAMW)
    run = manifest.bind(model)
    made = run.start("rows")

    def stepped(training: nn.Module, by: Any) -> list[Any]:
        settings = []
        for _ in range(3):
            train(training, by[0], 1)
            by[1].step()
            settings.append([(entry["lr"], entry["betas"]) for entry in by[0].param_groups])
        return settings

    stepped(model, made)
    resumed = network()
    resumed.load_state_dict(copied(model))
    again = manifest.bind(resumed).load_state_dict(through_a_file(run.state_dict()))
    assert stepped(resumed, again) == stepped(model, made)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_lbfgs_resumes(tmp_path: Path) -> None:
    described = {"class": "torch.optim.LBFGS", "args": {"lr": 0.5, "max_iter": 3}}
    model = network().eval()
    one_group = {**ROWS, "groups": [group("new", ["fc.weight[7:8]", "body.weight[:,2:4]"])]}
    one_group["frozen"] = [
        "fc.weight[0:7]",
        "fc.bias",
        "body.weight[:,0:2]",
        "body.bias",
        *BODY[2:],
    ]
    manifest = loaded(model, tmp_path, one_group, optimizer=described)
    run = manifest.bind(model)

    def step(training: nn.Module, optimizer: Any) -> None:
        inputs, labels = batches(1)[0]

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(training(inputs), labels)
            loss.backward()
            return loss

        optimizer.step(closure)

    optimizer, _ = run.start("rows")
    step(model, optimizer)
    resumed = network().eval()
    resumed.load_state_dict(copied(model))
    again, _ = manifest.bind(resumed).load_state_dict(through_a_file(run.state_dict()))
    step(model, optimizer)
    step(resumed, again)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_state_names_its_blocks(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, ROWS, JOINT, optimizer=ADAMW).bind(model)
    both_stages(run, model, "rows")
    state = run.state_dict()
    assert (state["stage"], state["begun"]) == ("rows", ["rows"])
    assert [(part["name"], part["region"]) for part in state["state"]] == [
        ("fc.weight", [[7, 8], [0, 6]]),
        ("fc.bias", [[7, 8]]),
        ("body.weight", [[0, 6], [2, 4]]),
    ]
    assert state["state"][0]["state"]["exp_avg"].shape == (1, 6)


def test_loading_copies_the_state(tmp_path: Path) -> None:
    model = network()
    manifest = loaded(model, tmp_path, ROWS, optimizer=ADAMW)
    run = manifest.bind(model)
    both_stages(run, model, "rows")
    state = run.state_dict()
    kept = copy.deepcopy(state["state"])
    resumed = network()
    optimizer, _ = manifest.bind(resumed).load_state_dict(state)
    train(resumed, optimizer, 2)
    for part, earlier in zip(state["state"], kept, strict=True):
        torch.testing.assert_close(part["state"], earlier["state"], rtol=0, atol=0)


# --- What is refused ------------------------------------------------------------------------------


def saved_state(folder: Path, *stages: Json, **more: Any) -> tuple[Any, dict[str, Any]]:
    model = network()
    manifest = loaded(model, folder, *(stages or (ROWS, JOINT)), **{"optimizer": ADAMW, **more})
    run = manifest.bind(model)
    both_stages(run, model, "rows")
    return manifest, copy.deepcopy(run.state_dict())


def refused(manifest: Any, state: Any, **more: Any) -> list[str]:
    model = network()
    before = copied(model)
    with pytest.raises(ManifestError) as raised:
        manifest.bind(model).load_state_dict(state, **more)
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    return [problem.removeprefix("out.manifest.json: ") for problem in raised.value.problems]


def test_states_of_other_shapes_are_refused(tmp_path: Path) -> None:
    manifest, state = saved_state(tmp_path)
    state["state"][0]["state"]["exp_avg"] = torch.zeros(1, 5)
    state["state"][1]["state"]["exp_avg_sq"] = torch.zeros(())
    state["state"][2]["state"]["step"] = torch.zeros(6, 2)
    hint = "; take the state that was saved with this checkpoint, or start the stage anew"
    assert refused(manifest, state) == [
        f"stage 'rows': 'fc.weight[7:8]': 'exp_avg' of the state is (1, 5), expected (1, 6){hint}",
        f"stage 'rows': 'fc.bias[7:8]': 'exp_avg_sq' of the state is (), expected (1,){hint}",
        f"stage 'rows': 'body.weight[:,2:4]': 'step' of the state is (6, 2), expected (){hint}",
    ]


def test_states_of_other_blocks_are_refused(tmp_path: Path) -> None:
    manifest, state = saved_state(tmp_path)
    state["state"][0]["region"] = [[6, 7], [0, 6]]
    assert refused(manifest, state) == [
        "stage 'rows': 'fc.weight[7:8]' is not in the state as this stage trains it"
    ]
    state["state"][0]["region"] = [[7, 8]]
    assert len(refused(manifest, state)) == 1


def test_states_of_more_than_is_trained_are_refused(tmp_path: Path) -> None:
    manifest, state = saved_state(tmp_path)
    state["state"].append({"name": "norm.bias", "region": [[0, 6]], "state": {}})
    assert refused(manifest, state) == [
        "stage 'rows': the state has 'norm.bias' in parts that this stage does not train"
    ]


def test_a_state_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    manifest, state = saved_state(tmp_path)
    state["state"].append(state["state"][0])
    assert "'fc.weight[7:8]' is not in the state as" in refused(manifest, state)[0]


def test_a_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    manifest, state = saved_state(tmp_path)
    assert (
        "stage 'rows': the state is of torch.optim.adamw.AdamW, the optimizer is "
        "torch.optim.sgd.SGD; start the stage anew"
    ) in refused(manifest, state, optimizer=torch.optim.SGD)


def test_settings_that_the_manifest_has_changed_are_refused(tmp_path: Path) -> None:
    _, state = saved_state(tmp_path)
    slower = {**ROWS, "groups": [{**ROWS["groups"][0], "lr": 0.5}, ROWS["groups"][1]]}
    manifest = loaded(network(), tmp_path, slower, optimizer=ADAMW)
    assert refused(manifest, state) == [
        "stage 'rows': group 'new': lr was 0.125 and is 0.5; start the stage anew"
    ]


def test_a_scheduler_that_came_since_is_refused(tmp_path: Path) -> None:
    _, state = saved_state(tmp_path)
    scheduler = {"class": "torch.optim.lr_scheduler.StepLR", "args": {"step_size": 2}}
    manifest = loaded(network(), tmp_path, {**ROWS, "scheduler": scheduler}, optimizer=ADAMW)
    assert refused(manifest, state) == [
        "stage 'rows': the state has no scheduler; start the stage anew"
    ]


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({}, "state: not a state of a run: it has no 'surgeon_run' version"),
        (7, "state: not a state of a run: it has no 'surgeon_run' version"),
        ({"surgeon_run": 2}, "state: is version 2 of a run's state, and this surgeon reads 1"),
        ({"surgeon_run": 1}, "state: not a whole state of a run: scheduler: is missing"),
    ],
)
def test_other_things_are_refused(tmp_path: Path, state: Any, problem: str) -> None:
    manifest, _ = saved_state(tmp_path)
    assert refused(manifest, state) == [problem]


def test_a_state_of_a_stage_that_there_is_not_is_refused(tmp_path: Path) -> None:
    manifest, state = saved_state(tmp_path)
    assert "there is no such stage" in refused(manifest, {**state, "stage": "row"})[0]


# --- The optimizer's own state_dict ---------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizers_own_state_dict_resumes_too(tmp_path: Path, fused: bool) -> None:
    described = {**ADAMW, "args": {**ADAMW["args"], "fused": fused}}
    model = network()
    manifest = loaded(model, tmp_path, ROWS, optimizer=described)
    optimizer, _ = manifest.bind(model).start("rows")
    train(model, optimizer, 3)
    weights, state = copied(model), through_a_file(optimizer.state_dict())
    train(model, optimizer, 3)
    resumed = network()
    resumed.load_state_dict(weights)
    again, _ = manifest.bind(resumed).start("rows")
    again.load_state_dict(state)
    train(resumed, again, 3)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_an_optimizers_own_state_of_other_shapes_is_refused(tmp_path: Path) -> None:
    described = {**ADAMW, "args": {**ADAMW["args"], "fused": True}}
    model = network()
    manifest = loaded(model, tmp_path, ROWS, optimizer=described)
    optimizer, _ = manifest.bind(model).start("rows")
    train(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg"] = torch.zeros(7, 6)
    again, _ = manifest.bind(network()).start("rows")
    with pytest.raises(ManifestError, match=r"'exp_avg' of the state is \(7, 6\), expected"):
        again.load_state_dict(state)
    assert not again.state
