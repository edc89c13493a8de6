"""What a stage says of itself: groups, settings, what is frozen, how many elements."""

from __future__ import annotations

import json
from pathlib import Path

from small import HEAD, group, loaded, network, stage

BODY = ["body.bias", "body.weight", "norm.bias", "norm.weight"]
STEP = {"class": "torch.optim.lr_scheduler.StepLR", "args": {"step_size": 1, "gamma": 0.5}}
WARM_UP = stage(
    "warm-up",
    group("new", ["fc.bias[7:8]", "fc.weight[7:8]"], lr=0.5, nesterov=True),
    frozen=[*BODY, "fc.bias[0:7]", "fc.weight[0:7]"],
    eval_modules=["norm"],
    scheduler=STEP,
)
JOINT = stage("joint", group("head", HEAD), group("body", BODY))


def test_the_report_counts_elements(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, WARM_UP).bind(model)
    run.start("warm-up")
    found = run.report()
    assert (found.trained_elements, found.frozen_elements) == (7, 30 + 12 + 49)
    assert found.groups[0].params == ("fc.bias[7:8]", "fc.weight[7:8]")
    assert found.frozen[-1] == "fc.weight[0:7]"
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert found.trained_elements + found.frozen_elements == everything


def test_settings_are_those_of_the_moment(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, WARM_UP).bind(model)
    optimizer, scheduler = run.start("warm-up")
    assert run.report().groups[0].settings["lr"] == 0.5
    optimizer.step()
    assert scheduler is not None
    scheduler.step()
    settings = run.report().groups[0].settings
    assert (settings["lr"], settings["momentum"], settings["nesterov"]) == (0.25, 0.9, True)


def test_the_report_reads_as_a_table(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, WARM_UP).bind(model)
    run.start("warm-up")
    assert str(run.report()) == (
        "stage warm-up: SGD, StepLR\n"
        "group     elements   lr  weight_decay  settings                     parameters\n"
        "new              7  0.5           0.5  momentum=0.9, nesterov=True  "
        "'fc.bias[7:8]', 'fc.weight[7:8]'\n"
        "(frozen)        91                                                  "
        "'body.bias', 'body.weight', 'norm.bias', 'norm.weight', 'fc.bias[0:7]' and 1 more\n"
        "in evaluation mode: 'norm'"
    )


def test_a_stage_that_freezes_nothing_says_nothing_of_it(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, JOINT).bind(model)
    run.start("joint")
    assert "frozen" not in str(run.report())
    assert [line.split()[0] for line in str(run.report()).splitlines()[2:]] == ["head", "body"]


def test_the_document_is_plain_data(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, WARM_UP).bind(model)
    run.start("warm-up")
    document = json.loads(json.dumps(run.report().as_json()))
    assert document["trained_elements"] == 7
    assert document["groups"][0]["settings"]["weight_decay"] == 0.5
    assert document["eval_modules"] == ["norm"]
