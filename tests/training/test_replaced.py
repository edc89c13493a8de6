"""Modules that are replaced, copied or changed by others while a stage is being trained."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from small import HEAD, NAMES, Network, batches, group, loaded, network, stage, train
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from surgeon.training import ManifestError, Run, update_batch_norm

FROZEN_NORM = stage("head", group("head", HEAD), eval_modules=["norm"])
ALL = stage("all", group("all", NAMES), frozen=[])


def started(folder: Path, name: str = "head") -> tuple[Network, Run, torch.optim.Optimizer]:
    model = network()
    run = loaded(model, folder, FROZEN_NORM, ALL).bind(model)
    return model, run, run.start(name)[0]


def test_a_replaced_module_is_refused_at_the_next_step(tmp_path: Path) -> None:
    model, run, optimizer = started(tmp_path)
    train(model, optimizer, 1)
    model.fc = nn.Linear(6, 8)
    with pytest.raises(ManifestError, match=r"'fc\.weight' is another parameter than when"):
        train(model, optimizer, 1)
    with pytest.raises(ManifestError, match=r"'fc\.weight' is another parameter"):
        run.check()


def test_a_frozen_norm_that_was_converted_is_refused(tmp_path: Path) -> None:
    model, _, optimizer = started(tmp_path)
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    with pytest.raises(ManifestError, match="'norm' is another module than when the stage was"):
        train(model, optimizer, 1)


def test_a_trained_norm_may_be_converted(tmp_path: Path) -> None:
    model, _, optimizer = started(tmp_path, "all")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    before = model.norm.weight.clone()
    train(converted, optimizer, 2)
    assert not torch.equal(model.norm.weight, before)


def test_wrapping_a_module_is_no_replacement(tmp_path: Path) -> None:
    model, _, optimizer = started(tmp_path)
    inner, model.fc = model.fc, nn.Sequential(model.fc)  # type: ignore[assignment]
    before = inner.weight.clone()
    train(model, optimizer, 2)
    assert not torch.equal(inner.weight, before)


def test_the_optimizer_of_a_stage_that_has_ended_is_refused(tmp_path: Path) -> None:
    model, run, optimizer = started(tmp_path)
    run.start("all")
    with pytest.raises(ManifestError, match="that of a stage that has ended"):
        train(model, optimizer, 1)


@pytest.mark.parametrize("trained", [["0.weight[3:5]"], ["1.weight"]])
def test_an_embedding_that_rescales_frozen_rows_is_refused(
    tmp_path: Path, trained: list[str]
) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Linear(3, 2, bias=False))
    frozen = ["0.weight[0:3]", "1.weight"] if len(trained[0]) > 8 else ["0.weight"]
    run = loaded(model, tmp_path, stage("new", group("new", trained), frozen=frozen)).bind(model)
    with pytest.raises(ManifestError, match=r"'0\.weight' is frozen, .* max_norm of '0' changes"):
        run.start("new")
    model[0].max_norm = None
    run.start("new")


def test_an_average_keeps_frozen_statistics(tmp_path: Path) -> None:
    model, _, optimizer = started(tmp_path)
    averaged = AveragedModel(model)
    train(model, optimizer, 2)
    averaged.update_parameters(model)
    averaged.train()(batches(1)[0][0])
    assert torch.equal(averaged.module.norm.running_mean, network().norm.running_mean)
    torch.testing.assert_close(averaged.module.fc.weight, model.fc.weight)


@pytest.mark.parametrize("update", [update_bn, lambda data, model: update_batch_norm(model, data)])
def test_frozen_statistics_are_not_reset_by_halves(tmp_path: Path, update) -> None:  # type: ignore[no-untyped-def]
    model, _, _ = started(tmp_path)
    for each in (model, copy.deepcopy(model)):
        with pytest.raises(ManifestError, match="statistics of a BatchNorm1d are frozen"):
            update([inputs for inputs, _ in batches(2)], each)
