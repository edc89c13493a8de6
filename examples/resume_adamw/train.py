"""AdamW goes on after a seventh output becomes eight, as if nothing had happened to the seven."""

from __future__ import annotations

import subprocess
import sys

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn

from surgeon.training import Manifest

EPOCHS = 10


class Network(nn.Module):
    """A linear classifier of 8 x 8 digits, each output against the rest."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(64, classes, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images)


def digits(*, test: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 64) of whole numbers and digits (N,) below eight; every fifth is a test."""
    data = load_digits()
    target = torch.tensor(data.target)
    chosen = (target < 8) & ((torch.arange(len(target)) % 5 == 0) == test)
    return torch.tensor(data.data)[chosen], target[chosen]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> list[Tensor]:
    """Train with the hinge loss of each output; return the weights before and after each step.

    Its gradient is a sum of pixels, so of whole numbers: exact, whatever the order of summation.
    """
    images, target = digits(test=False)
    torch.manual_seed(seed)
    weights = [model.fc.weight.detach().clone()]
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            logits = model(images[batch])
            sign = 2 * nn.functional.one_hot(target[batch], 8)[:, : logits.shape[1]] - 1
            torch.relu(1 - sign * logits).sum().backward()
            optimizer.step()
            weights.append(model.fc.weight.detach().clone())
    return weights


@torch.no_grad()
def accuracies(model: nn.Module) -> list[float]:
    """Return the accuracy on the digits below seven among seven outputs, and on all among all."""
    images, target = digits(test=True)
    logits, old = model(images), target < 7
    of_seven = (logits[old, :7].argmax(1) == target[old]).double().mean().item()
    return [of_seven, (logits.argmax(1) == target).double().mean().item()]


def surgeon(*arguments: str) -> None:
    """Run a surgeon command as a shell would, and show it."""
    print(f"\n$ surgeon {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "surgeon", *arguments], check=True)


def main() -> None:
    torch.set_num_threads(1)  # the fastest for networks this small
    torch.manual_seed(0)
    model = Network(7)
    settings = {"lr": 0.001, "weight_decay": 0.01}
    optimizer = torch.optim.AdamW(model.named_parameters(), **settings)
    train(model, optimizer, seed=1)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "in.pt")
    never_operated = train(model, optimizer, seed=2)
    rows = [["never operated on", *accuracies(model)[:1], None, True, 0.0]]

    for state in ("carry", "reset"):
        files = ["in.pt", f"{state}.safetensors"]
        surgeon("apply", "recipe.json", *files, "--set", f"state={state}", "--force")
        model = Network(8)
        model.load_state_dict(load_file(f"{state}.safetensors"), strict=True)
        run = Manifest.load(f"{state}.manifest.json").bind(model)
        weights = train(model, run.start("on")[0], seed=2)
        apart = [
            (a[:7] - b).abs().max().item() for a, b in zip(weights, never_operated, strict=True)
        ]
        rows.append([state, *accuracies(model), max(apart) == 0, max(apart)])
        first = (weights[1][7] - weights[0][7]).abs().max().item()
        assert abs(first - settings["lr"]) < 1e-5, f"the new row's first step is {first}"

    headers = ["state", "of seven", "of eight", "old rows bit-equal", "largest difference"]
    print()
    print(tabulate(rows, headers=headers, floatfmt=("", ".3f", ".3f", "", ".1e")))
    if [row[3] for row in rows] != [True, True, False]:
        sys.exit("carried state has to make no difference, and a reset one has to")


if __name__ == "__main__":
    main()
