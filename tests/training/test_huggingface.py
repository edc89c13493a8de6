"""Hugging Face's Trainer: a stage per train(), with the run's optimizer and scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small import HEAD, NAMES, Network, batches, copied, group, loaded, network, stage
from torch import Tensor, nn

from surgeon.training import Run

pytestmark = [
    pytest.mark.slow,
    # Of imports, and torch's of data loaders without an accelerator; none of them is ours.
    pytest.mark.filterwarnings("ignore"),
]
BODY = [name for name in NAMES if name not in HEAD]
CONSTANT = {"class": "torch.optim.lr_scheduler.ConstantLR", "args": {"factor": 1.0}}
ROWS = stage(
    "rows",
    group("new", ["fc.weight[7:8]", "fc.bias[7:8]", "body.weight[:,2:4]"]),
    frozen=["fc.weight[0:7]", "fc.bias[0:7]", "body.weight[:,0:2]", "body.bias", *BODY[2:]],
    eval_modules=["norm"],
    scheduler=CONSTANT,
)
JOINT = stage("joint", group("all", NAMES), frozen=[], optimizer_state="carry", scheduler=CONSTANT)
ADAMW = {"class": "torch.optim.AdamW", "args": {"lr": 0.0625, "weight_decay": 0.5}}


class WithLoss(Network):
    """The network as Trainer calls it."""

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        logits = super().forward(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def network_with_loss() -> WithLoss:
    model = WithLoss()
    model.load_state_dict(network().state_dict())
    return model


@pytest.fixture(scope="module")
def transformers() -> Any:
    """Imported for these tests alone: it takes seconds."""
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")


def fit(
    transformers: Any, model: nn.Module, run: Run, name: str, folder: Path, **settings: Any
) -> None:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=16,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        train_sampling_strategy="sequential",
        **settings,
    )
    samples = [
        {"inputs": inputs, "labels": label}
        for batch in batches(5)
        for inputs, label in zip(*batch, strict=True)
    ]
    transformers.Trainer(
        model, arguments, train_dataset=samples, optimizers=run.start(name)
    ).train()


def by_hand(model: nn.Module, run: Run, name: str, clip: float) -> None:
    optimizer, _ = run.start(name)
    for inputs, labels in batches(5):
        optimizer.zero_grad()
        model(inputs, labels)["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


@pytest.mark.parametrize("clip", [1e6, 0.05])
def test_two_stages_train_as_a_plain_loop_does(
    transformers: Any, tmp_path: Path, clip: float
) -> None:
    model, plain = network_with_loss(), network_with_loss()
    before = copied(model)
    manifest = loaded(model, tmp_path, ROWS, JOINT, optimizer=ADAMW)
    run, other = manifest.bind(model), manifest.bind(plain)
    for name in ("rows", "joint"):
        fit(transformers, model, run, name, tmp_path / name, max_grad_norm=clip)
        run.check()
        by_hand(plain, other, name, clip)
        if name == "rows":
            assert torch.equal(model.fc.weight[:7], before["fc.weight"][:7])
            assert torch.equal(model.norm.running_mean, before["norm.running_mean"])
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
