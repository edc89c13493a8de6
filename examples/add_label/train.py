"""A multi-label classifier of digits, before it gets a fifth label and after."""

from __future__ import annotations

import subprocess
import sys

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn

from surgeon.training import Manifest

LABELS = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "above four": (5, 6, 7, 8, 9),
    "has a loop": (0, 6, 8, 9),
    "multiple of three": (0, 3, 6, 9),  # the new one
}


def network(labels: int) -> nn.Module:
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Linear(64, 32), nn.ReLU()))
    model.add_module("fc", nn.Linear(32, labels))
    return model


def digits(*, test: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 64) in [0, 1] and labels (N, 5), each 0 or 1; every fifth is for tests."""
    data = load_digits()
    chosen = (torch.arange(len(data.target)) % 5 == 0) == test
    target = torch.tensor(data.target)
    labels = [torch.isin(target, torch.tensor(members)) for members in LABELS.values()]
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    return images[chosen], torch.stack(labels, 1).float()[chosen]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, labels: int, epochs: int) -> None:
    """Train the first `labels` outputs, each with a loss of its own."""
    images, wanted = digits(test=False)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            losses = nn.functional.binary_cross_entropy_with_logits(
                model(images[batch]), wanted[batch, :labels], reduction="none"
            )
            losses.mean(0).sum().backward()
            optimizer.step()


@torch.no_grad()
def accuracies(model: nn.Module) -> list[float]:
    """Return each label's share of test digits that are labelled rightly."""
    images, wanted = digits(test=True)
    logits = model(images)
    return ((logits > 0) == wanted[:, : logits.shape[1]].bool()).double().mean(0).tolist()


def surgeon(*arguments: str) -> None:
    """Run a surgeon command as a shell would, and show it."""
    print(f"\n$ surgeon {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "surgeon", *arguments], check=True)


def main() -> None:
    torch.set_num_threads(1)  # the fastest for networks this small
    torch.manual_seed(0)
    old = network(labels=4)
    train(old, torch.optim.AdamW(old.parameters(), lr=0.01), labels=4, epochs=20)
    torch.save(old.state_dict(), "in.pt")
    surgeon("plan", "recipe.json", "in.pt")
    surgeon("apply", "recipe.json", "in.pt", "out.safetensors", "--force")

    model = network(labels=5)
    model.load_state_dict(load_file("out.safetensors"), strict=True)
    columns = {"before": accuracies(old), "after the surgery": accuracies(model)}
    with torch.no_grad():
        outputs = model(digits(test=True)[0])

    run = Manifest.load("out.manifest.json").bind(model)
    for stage in run.stages:
        optimizer, _ = run.start(stage.name)
        print(run.report(), end="\n\n")
        train(model, optimizer, labels=5, epochs=stage.duration["epochs"])
        run.check()
        columns[f"after {stage.name}"] = accuracies(model)
        if stage.name == "warm-up":
            with torch.no_grad():
                warmed_up = model(digits(test=True)[0])
            assert torch.equal(outputs[:, :4], warmed_up[:, :4]), "an old output has moved"
            assert not torch.equal(outputs[:, 4], warmed_up[:, 4]), "the new row was not trained"

    rows = [
        [label, *(column[i] if i < len(column) else None for column in columns.values())]
        for i, label in enumerate(LABELS)
    ]
    print(tabulate(rows, headers=["accuracy", *columns], floatfmt=".3f"))
    assert columns["before"] == columns["after the surgery"][:4] == columns["after warm-up"][:4]
    new = [column[4] for column in list(columns.values())[1:]]
    assert new == sorted(new), "training the new label did not pay"


if __name__ == "__main__":
    main()
