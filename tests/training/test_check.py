"""`run.check()`: what is frozen is still, bit by bit, what it was when the stage started."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import HEAD, copied, group, loaded, network, stage, train
from torch import nn

from surgeon.training import ManifestError, Run

BODY = ["body.bias", "body.weight", "norm.bias", "norm.weight"]
ROWS = stage(
    "rows",
    group("new", ["fc.weight[7:8]", "fc.bias[7:8]", "body.weight[:,2:4]"]),
    frozen=["fc.weight[0:7]", "fc.bias[0:7]", "body.weight[:,0:2]", "body.bias", *BODY[2:]],
    eval_modules=["norm"],
)
JOINT = stage("joint", group("all", [*HEAD, *BODY]), frozen=[])


def started(model: nn.Module, folder: Path) -> Run:
    run = loaded(model, folder, ROWS, JOINT).bind(model)
    train(model, run.start("rows")[0])
    return run


def moved(run: Run) -> list[str]:
    with pytest.raises(ManifestError) as raised:
        run.check()
    return [problem.split("'")[3] for problem in raised.value.problems]


def test_training_leaves_nothing_to_complain_of(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path)
    run.check()
    train(model, run.start("joint")[0])
    run.check()


def test_all_that_moved_is_listed(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path)
    with torch.no_grad():
        model.fc.weight[3, 2] += 1e-3
        model.body.weight[0, 0] = 1.0
        model.body.bias.neg_()
        model.norm.running_mean += 1
        model.norm.num_batches_tracked += 1
    assert moved(run) == [
        "fc.weight[0:7]",
        "body.weight[:,0:2]",
        "body.bias",
        "norm.running_mean",
        "norm.num_batches_tracked",
    ]


def test_the_error_names_the_stage(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path)
    model.norm.weight.data[0] = 7.0
    with pytest.raises(ManifestError) as raised:
        run.check()
    assert str(raised.value) == (
        "out.manifest.json: stage 'rows': 'norm.weight' is frozen, and has moved; something "
        "else than the optimizer that start() returned writes to it"
    )


def test_the_smallest_change_is_seen(tmp_path: Path) -> None:
    model = network()
    model.body.bias.data[1] = 0.0
    run = started(model, tmp_path)
    model.body.bias.data[1] = -0.0
    assert moved(run) == ["body.bias"]


def test_weights_that_were_replaced_are_looked_at(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path)
    model.body.bias = nn.Parameter(model.body.bias.detach().clone())
    run.check()
    model.body.bias = nn.Parameter(model.body.bias.detach() + 1)
    assert moved(run) == ["body.bias"]
    model.load_state_dict(dict(copied(model)), assign=True)
    with pytest.raises(ManifestError, match=r"'fc\.weight' is another parameter than when"):
        run.check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_every_dtype_has_a_fingerprint(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Module()
    model.a, model.b = (nn.Parameter(torch.ones(3, 2, dtype=dtype)) for _ in range(2))
    model.empty = nn.Parameter(torch.ones(0, 2, dtype=dtype))
    wanted = stage("s", group("a", ["a"]), frozen=["b", "empty"])
    run = loaded(model, tmp_path, wanted).bind(model)
    run.start("s")
    run.check()
    model.b.data[2, 1] = 1.5
    assert moved(run) == ["b"]


def test_a_later_stage_starts_from_what_is_there(tmp_path: Path) -> None:
    model = network()
    run = started(model, tmp_path)
    model.body.bias.data[0] = 5.0
    run.start("rows")
    run.check()
