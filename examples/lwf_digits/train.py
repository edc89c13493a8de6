"""Seven digits become ten without the images of the seven: five ways to train, one table."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn

from surgeon.training import Manifest

OLD = 7  # digits below are the old classes
RECIPE = Path(__file__).with_name("recipe.json")
Accuracies = tuple[float, float]


@dataclass(frozen=True)
class Method:
    """Stages of the manifest, and what they are trained with."""

    stages: tuple[str, ...]
    distils: bool = False
    sees_old_digits: bool = False


METHODS = {
    "fine-tuning": Method(("everything",)),
    "feature extraction": Method(("new rows alone",)),
    "warm-up, fine-tuning": Method(("warm-up", "everything")),
    "LwF": Method(("warm-up", "everything"), distils=True),
    "joint training": Method(("warm-up", "everything"), sees_old_digits=True),
}


class Network(nn.Module):
    """A feed-forward classifier of 8 x 8 digits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.fc = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))


def digits(*, first: int, last: int, test: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 64) in [0, 1] and classes (N,); every fifth is for tests."""
    data = load_digits()
    target = torch.tensor(data.target)
    chosen = (target >= first) & (target <= last) & ((torch.arange(len(target)) % 5 == 0) == test)
    return torch.tensor(data.data, dtype=torch.float32)[chosen] / 16, target[chosen]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    epochs: int,
    distillation: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    images, classes = data
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            logits = model(images[batch])
            loss = nn.functional.cross_entropy(logits, classes[batch])
            if distillation is not None:
                loss = loss + distillation(logits, images[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracies(model: nn.Module) -> Accuracies:
    """Return the accuracy on old digits among the old outputs, and on new among the new ones."""
    old_images, old_classes = digits(first=0, last=OLD - 1, test=True)
    new_images, new_classes = digits(first=OLD, last=9, test=True)
    old = model(old_images)[:, :OLD].argmax(1) == old_classes
    new = model(new_images)[:, OLD:].argmax(1) + OLD == new_classes
    return old.double().mean().item(), new.double().mean().item()


def first_stage(seed: int, folder: Path) -> None:
    """Train on the old digits, then widen: in.pt and out.safetensors in the folder."""
    torch.manual_seed(seed)
    old = Network(OLD)
    optimizer = torch.optim.SGD(old.parameters(), lr=0.05, momentum=0.9)
    train(old, optimizer, digits(first=0, last=OLD - 1, test=False), epochs=40)
    torch.save(old.state_dict(), folder / "in.pt")
    files = [str(RECIPE), str(folder / "in.pt"), str(folder / "out.safetensors")]
    command = [sys.executable, "-m", "surgeon", "apply", *files, "--force", "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def second_stage(method: Method, seed: int, folder: Path) -> Accuracies:
    """Train what first_stage left in the folder; return the accuracies on old and new digits."""
    model = Network(10)
    model.load_state_dict(load_file(folder / "out.safetensors"), strict=True)
    run = Manifest.load(folder / "out.manifest.json").bind(model)
    stages = {stage.name: stage for stage in run.stages}
    for name in method.stages:
        optimizer, _ = run.start(name)
        is_last = name == method.stages[-1]
        first = 0 if method.sees_old_digits and is_last else OLD
        distillation = run.distillation(Network(OLD)) if method.distils and is_last else None
        data = digits(first=first, last=9, test=False)
        torch.manual_seed(seed)  # the same batches for all methods
        train(model, optimizer, data, stages[name].duration["epochs"], distillation)
        run.check()
    return accuracies(model)


def spelled(values: list[float]) -> str:
    mean = f"{statistics.mean(values) * 100:.1f}"
    return f"{mean} ± {statistics.stdev(values) * 100:.1f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many runs to take the mean of")
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)  # the fastest for networks this small
    found: dict[str, list[Accuracies]] = {name: [] for name in METHODS}
    for seed in seeds:
        first_stage(seed, Path())
        for name, method in METHODS.items():
            found[name].append(second_stage(method, seed, Path()))

    rows = [
        [name, *(spelled(list(values)) for values in zip(*runs, strict=True))]
        for name, runs in found.items()
    ]
    headers = ["method", f"old digits, {OLD}-way", f"new digits, {10 - OLD}-way"]
    print(tabulate(rows, headers=headers, disable_numparse=True))
    old = {name: statistics.mean(value for value, _ in runs) for name, runs in found.items()}
    if not old["LwF"] > old["warm-up, fine-tuning"] > old["fine-tuning"] + 0.3:
        sys.exit("distillation did not keep the old digits")


if __name__ == "__main__":
    main()
