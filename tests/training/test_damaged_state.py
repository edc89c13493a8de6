"""A state of a run that is not what was saved: refused with the key, or it trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import NAMES, group, loaded, network, stage, train

from surgeon.training import Manifest, ManifestError

ROWS = stage(
    "rows",
    group("new", ["fc.weight[7:8]", "fc.bias[7:8]", "body.weight"]),
    frozen=["fc.weight[0:7]", "fc.bias[0:7]", "body.bias", "norm.weight", "norm.bias"],
    scheduler={"class": "torch.optim.lr_scheduler.StepLR", "args": {"step_size": 3}},
)
ALL = stage("all", group("all", NAMES), frozen=[])
ADAM = {"class": "torch.optim.AdamW", "args": {"lr": 0.1, "betas": [0.9, 0.99]}}
DELETED = object()
ODD = [None, True, -1, float("inf"), "x", [], {}, [1], [[0, 1]], {"a": 1}, torch.zeros(2),
       torch.zeros(()), b"x", object(), 2**70, DELETED]  # fmt: skip
Path_ = tuple[Any, ...]


def saved_state(folder: Path) -> tuple[Manifest, Any]:
    model = network()
    manifest = loaded(model, folder, ROWS, ALL, optimizer=ADAM)
    run = manifest.bind(model)
    optimizer, _ = run.start("rows")
    train(model, optimizer, 2)
    return manifest, run.state_dict()


def places(value: Any, place: Path_ = ()) -> Iterator[Path_]:
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items if isinstance(value, dict | list) else ():
        yield from places(item, (*place, key)) if isinstance(item, dict | list) else [(*place, key)]


def mutant(state: Any, place: Path_, value: object) -> Any:
    made = copy.deepcopy(state)
    inside = made
    for key in place[:-1]:
        inside = inside[key]
    if value is DELETED:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return made


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("begun",), ["later"], "begun: there is no stage 'later'"),
        (("groups", 0, "settings", "lr"), None, "groups: 'new': settings.lr: None is not a number"),
        (("groups", 0, "settings", "betas"), [1], "settings.betas: [1] is not a list of 2"),
        (("groups", 0, "settings", "amsgrad"), True, "settings.amsgrad: True in the state, False"),
        (("state", 0, "region", 0), [8, 7], "state[0].region: [8, 7] is not [start, stop]"),
        (("state", 0, "state", "exp_avg"), DELETED, "'exp_avg' of the state is missing"),
        (("state", 0, "state", "more"), 1, "'more' is unknown"),
        (("state", 0, "state", "step"), "x", "'step' of the state is a str"),
        (("scheduler", "last_epoch"), DELETED, "scheduler.last_epoch: is missing"),
        (("scheduler", "gamma"), "x", "scheduler.gamma: 'x' is not a number"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, place: Path_, value: Any, problem: str) -> None:
    manifest, state = saved_state(tmp_path)
    with pytest.raises(ManifestError) as raised:
        manifest.bind(network()).load_state_dict(mutant(state, place, value))
    assert problem in str(raised.value)


@pytest.mark.slow
def test_every_value_anywhere_is_refused_or_trains(tmp_path: Path) -> None:
    manifest, state = saved_state(tmp_path)
    refused = 0
    mutants = [(place, value) for place in places(state) for value in ODD]
    for place, value in mutants:
        model = network()
        try:
            optimizer, _ = manifest.bind(model).load_state_dict(mutant(state, place, value))
        except ManifestError:
            refused += 1
        else:
            train(model, optimizer, 1)
    assert refused > 0.9 * len(mutants)
