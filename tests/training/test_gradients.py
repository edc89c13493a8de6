"""Looking at gradients: per group, layer and row block, as a table and as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small import NAMES, batches, group, loaded, network, stage
from torch import Tensor, nn

from surgeon.training import ManifestError, Run

BLOCKS = stage(
    "blocks",
    group("new", ["fc.weight[7:8]", "fc.bias[7:8]"]),
    group("columns", ["body.weight[:,2:4]", "norm.weight"]),
    frozen=["fc.weight[0:7]", "fc.bias[0:7]", "body.weight[:,0:2]", "body.bias", "norm.bias"],
)
WHOLE = stage("whole", group("all", NAMES))


def backward(model: nn.Module) -> None:
    inputs, labels = batches(1)[0]
    nn.functional.cross_entropy(model(inputs), labels).backward()


def started(model: nn.Module, folder: Path, name: str = "blocks") -> Run:
    run = loaded(model, folder, BLOCKS, WHOLE).bind(model)
    run.start(name)
    return run


def plain_gradients() -> dict[str, Tensor]:
    """What a backward pass through the network without any manifest leaves."""
    model = network()
    backward(model)
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def test_every_blocks_norm_is_that_of_its_part_of_the_gradient(tmp_path: Path) -> None:
    model, full = network(), plain_gradients()
    run = started(model, tmp_path)
    backward(model)
    found = {block.block: block.norm for block in run.gradients().blocks}
    assert found == pytest.approx(
        {
            "fc.weight[7:8]": full["fc.weight"][7:].norm().item(),
            "fc.bias[7:8]": full["fc.bias"][7:].norm().item(),
            "body.weight[:,2:4]": full["body.weight"][:, 2:].norm().item(),
            "norm.weight": full["norm.weight"].norm().item(),
        },
        rel=1e-5,
    )


def test_groups_and_layers_add_up(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path)
    backward(model)
    found = run.gradients()
    norms = {block.block: block.norm or 0.0 for block in found.blocks}
    new = (norms["fc.weight[7:8]"] ** 2 + norms["fc.bias[7:8]"] ** 2) ** 0.5
    assert found.groups["new"] == pytest.approx(new)
    assert list(found.layers) == ["fc", "body", "norm"]
    assert found.layers["fc"] == pytest.approx(new)
    assert found.norm == pytest.approx(sum(norm**2 for norm in norms.values()) ** 0.5)


def test_the_whole_norm_is_the_one_that_is_clipped(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path, "whole")
    backward(model)
    expected = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    assert run.gradients().norm == pytest.approx(expected.item())


def test_gradients_that_were_replaced_are_the_ones_measured(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path)
    backward(model)
    model.fc.weight.grad = torch.full_like(model.fc.weight, 2.0)
    norms = {block.block: block.norm for block in run.gradients().blocks}
    assert norms["fc.weight[7:8]"] == pytest.approx(2 * 6**0.5)


def test_a_parameter_outside_of_the_graph_has_no_norm(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path, "whole")
    model.body(batches(1)[0][0]).sum().backward()
    found = run.gradients()
    assert found.layers["fc"] is None
    rows = [line.split() for line in str(found).splitlines()]
    assert ["layer", "fc", "none"] in rows


def test_the_table_and_the_document_say_the_same(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path)
    backward(model)
    found = run.gradients()
    document = json.loads(json.dumps(found.as_json()))
    assert document["groups"] == found.groups
    assert document["blocks"][0] == {
        "block": "fc.weight[7:8]",
        "group": "new",
        "layer": "fc",
        "elements": 6,
        "norm": found.blocks[0].norm,
    }
    lines = str(found).splitlines()
    assert lines[:2] == [
        "stage blocks",
        "of     name                elements  gradient norm",
    ]
    assert lines[3].split() == ["group", "new", f"{found.groups['new']:.4g}"]


def test_half_precision_is_measured_in_single(tmp_path: Path) -> None:
    model = network().to(torch.bfloat16)
    run = started(model, tmp_path, "whole")
    model(batches(1)[0][0].bfloat16()).sum().backward()
    gradient = model.fc.weight.grad
    assert gradient is not None
    norms = {block.block: block.norm for block in run.gradients().blocks}
    assert norms["fc.weight"] == pytest.approx(gradient.double().norm().item(), rel=1e-5)


def test_there_are_none_before_a_backward_pass(tmp_path: Path) -> None:
    run = started(network(), tmp_path)
    with pytest.raises(ManifestError, match=r"stage 'blocks': there are no gradients; call it"):
        run.gradients()


def test_nothing_can_be_looked_at_before_a_start(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, BLOCKS).bind(model)
    for look in (run.gradients, run.report, run.check, run.state_dict):
        with pytest.raises(ManifestError, match=r"^out\.manifest\.json: no stage was started$"):
            look()
