"""Classes of torch.optim that are not there, or do not take what a recipe gives them."""

from __future__ import annotations

import pytest

from surgeon.base.errors import UsageError
from surgeon.recipe import torch_classes
from surgeon.recipe.torch_table import OPTIMIZERS, SCHEDULERS

STEP = "torch.optim.lr_scheduler.StepLR"


def training(optimizer="torch.optim.AdamW", args=None, group=None, scheduler=None, given=None):
    stage = {"name": "s", "groups": [{"name": "g", "params": ["x"], **(group or {})}]}
    if scheduler:
        stage["scheduler"] = {"class": scheduler, "args": given or {}}
    return {"optimizer": {"class": optimizer, "args": args or {}}, "stages": [stage]}


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (training("torch.optim.Adamw"), "training.optimizer.class: torch.optim has no class 'Ad"),
        (
            training(args={"learning_rate": 0.1}),
            "training.optimizer.args.learning_rate: torch.optim.AdamW takes no 'learning_rate'",
        ),
        (training(args={"params": []}), "args.params: torch.optim.AdamW takes no 'params'"),
        (training(group={"beta": 1}), "stages[0].groups[0].beta: torch.optim.AdamW takes no 'be"),
        (training(scheduler=STEP), f"stages[0].scheduler.args: {STEP} needs 'step_size'"),
        (
            training(scheduler="torch.optim.lr_scheduler.StepsLR"),
            "stages[0].scheduler.class: torch.optim.lr_scheduler has no class 'StepsLR'",
        ),
        (training(scheduler=STEP, given={"step_sizes": 3}), "did you mean 'step_size'?"),
    ],
)
def test_what_torch_does_not_take_is_an_error_of_the_recipe(bench, section, problem):
    with pytest.raises(UsageError) as raised:
        bench.recipe(training=section)
    assert problem in str(raised.value)


def test_what_torch_takes_passes(bench):
    group = {"lr_scale": 2.0, "betas": [0.9, 0.99], "weight_decay": 0}
    section = training(args={"lr": 0.1}, group=group, scheduler=STEP, given={"step_size": 3})
    assert bench.recipe(training=section).training == section
    assert torch_classes.notes(section) == []


def test_other_classes_are_noted(bench):
    section = training("lion_pytorch.Lion", {"anything": 1}, {"beta": 1}, "my.Scheduler")
    bench.recipe(training=section)
    first, second = torch_classes.notes(section)
    assert first.startswith("lion_pytorch.Lion is none of torch.optim's classes")
    assert second.startswith("my.Scheduler is none")


def test_every_class_that_people_use_is_there():
    assert {"SGD", "Adam", "AdamW", "Adafactor", "RMSprop", "LBFGS"} <= OPTIMIZERS.keys()
    assert {"StepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau"} <= SCHEDULERS.keys()
