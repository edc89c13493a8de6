"""A digit classifier of seven classes gets an eighth: train, inspect, plan, apply, train on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from surgeon.training import Manifest

RECIPE = Path(__file__).with_name("recipe.json")


class Network(nn.Module):
    """A feed-forward classifier of 8 x 8 digits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.fc = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))


def digits(classes: int, *, test: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 64) in [0, 1] and labels (N,) below `classes`; every fifth is for tests."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    chosen = (labels < classes) & ((torch.arange(len(labels)) % 5 == 0) == test)
    return images[chosen], labels[chosen]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, classes: int, epochs: int) -> None:
    """Train with cross-entropy in batches of 64."""
    images, labels = digits(classes, test=False)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, classes: int, outputs: int) -> float:
    """Return the share of test digits below `classes` that win among the first `outputs`."""
    images, labels = digits(classes, test=True)
    return (model(images)[:, :outputs].argmax(1) == labels).double().mean().item()


def surgeon(*arguments: str) -> None:
    """Run a surgeon command as a shell would, and show it."""
    print(f"\n$ surgeon {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "surgeon", *arguments], check=True)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = os.path.relpath(RECIPE, folder)
    os.chdir(folder)
    torch.manual_seed(0)

    print("Stage 1: seven classes")
    old = Network(7)
    train(old, torch.optim.SGD(old.parameters(), lr=0.1, momentum=0.9), classes=7, epochs=20)
    torch.save(old.state_dict(), "in.pt")
    before = accuracy(old, classes=7, outputs=7)

    surgeon("inspect", "in.pt")
    surgeon("plan", recipe, "in.pt")
    surgeon("apply", recipe, "in.pt", "out.safetensors", "--force")

    print("\nStage 2: eight classes")
    new = Network(8)
    new.load_state_dict(load_file("out.safetensors"), strict=True)
    after = accuracy(new, classes=7, outputs=7)
    run = Manifest.load("out.manifest.json").bind(new)
    for stage in run.stages:
        optimizer, _ = run.start(stage.name)
        for group in optimizer.param_groups:
            count = sum(parameter.numel() for parameter in group["params"])
            print(f"{stage.name}: group {group['name']}, {count} elements, lr {group['lr']:g}")
        train(new, optimizer, classes=8, epochs=stage.duration["epochs"])

    print(f"\naccuracy on the seven old classes, before the surgery:  {before:.4f}")
    print(f"accuracy on the seven old classes, after the surgery:   {after:.4f}")
    print(f"accuracy on all eight classes, after training on:       {accuracy(new, 8, 8):.4f}")
    if before != after:
        sys.exit("the surgery changed what the old outputs say")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo"))
