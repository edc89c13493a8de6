"""Lightning: a stage per fit, with the backward pass inside of the optimizer's step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from small import HEAD, NAMES, batches, copied, group, loaded, network, stage, train
from torch import Tensor, nn
from torch.utils.data import DataLoader

from surgeon.training import Run

pytestmark = pytest.mark.slow
BODY = [name for name in NAMES if name not in HEAD]
STEP = {"class": "torch.optim.lr_scheduler.StepLR", "args": {"step_size": 1, "gamma": 0.5}}
ROWS = stage(
    "rows",
    group("new", ["fc.weight[7:8]", "fc.bias[7:8]", "body.weight[:,2:4]"]),
    frozen=["fc.weight[0:7]", "fc.bias[0:7]", "body.weight[:,0:2]", "body.bias", *BODY[2:]],
    eval_modules=["norm"],
)
JOINT = stage("joint", group("all", NAMES), frozen=[], optimizer_state="carry")
ADAMW = {"class": "torch.optim.AdamW", "args": {"lr": 0.0625, "weight_decay": 0.5}}


@pytest.fixture(scope="module")
def lightning() -> Any:
    """Imported for these tests alone: it takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("lightning")


def fit(
    lightning: Any, model: nn.Module, run: Run, name: str, folder: Path, **settings: Any
) -> None:
    class Classifier(lightning.LightningModule):  # type: ignore[misc]
        """The network as a user of Lightning has it, with a run instead of an optimizer."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> dict[str, Any]:
            return run.configure_optimizers(name)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on data loaders, and its imports' own
        trainer.fit(Classifier(), DataLoader(batches(5), batch_size=None))


@pytest.mark.parametrize("clip", [None, 0.05])
def test_two_stages_train_as_a_plain_loop_does(
    lightning: Any, tmp_path: Path, clip: float | None
) -> None:
    model, plain = network(), network()
    before = copied(model)
    manifest = loaded(model, tmp_path, ROWS, JOINT, optimizer=ADAMW)
    run, other = manifest.bind(model), manifest.bind(plain)
    for name in ("rows", "joint"):
        fit(lightning, model, run, name, tmp_path, gradient_clip_val=clip)
        run.check()
        optimizer, _ = other.start(name)
        for inputs, labels in batches(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(inputs), labels).backward()
            if clip:
                own = [p for entry in optimizer.param_groups for p in entry["params"]]
                nn.utils.clip_grad_norm_(own, clip)
            optimizer.step()
        if name == "rows":
            assert torch.equal(model.fc.weight[:7], before["fc.weight"][:7])
            assert torch.equal(model.norm.running_mean, before["norm.running_mean"])
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("duration", "rate"), [({"steps": 5}, 0.5**5), ({"epochs": 1}, 0.5)])
def test_schedulers_step_as_the_duration_says(
    lightning: Any, tmp_path: Path, duration: dict[str, int], rate: float
) -> None:
    model = network()
    wanted = {**ROWS, "scheduler": STEP, "duration": duration}
    run = loaded(model, tmp_path, wanted, optimizer=ADAMW).bind(model)
    fit(lightning, model, run, "rows", tmp_path)
    assert run.report().groups[0].settings["lr"] == pytest.approx(0.0625 * rate)


def test_without_a_scheduler_there_is_an_optimizer_alone(tmp_path: Path) -> None:
    model = network()
    run = loaded(model, tmp_path, ROWS, optimizer=ADAMW).bind(model)
    made = run.configure_optimizers("rows")
    assert list(made) == ["optimizer"]
    train(model, made["optimizer"])
    run.check()
