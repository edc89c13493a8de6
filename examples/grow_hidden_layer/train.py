"""A classifier with four hidden units, and with twenty more."""

from __future__ import annotations

import subprocess
import sys

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn

from surgeon.training import Manifest


class Network(nn.Module):
    """A classifier of 8 x 8 digits with one hidden layer."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, units)
        self.fc = nn.Linear(units, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.hidden(images)))


def digits(*, test: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 64) in [0, 1] and their classes (N,); every fifth is for tests."""
    data = load_digits()
    chosen = (torch.arange(len(data.target)) % 5 == 0) == test
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    return images[chosen], torch.tensor(data.target)[chosen]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    images, classes = digits(test=False)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), classes[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    images, classes = digits(test=True)
    return (model(images).argmax(1) == classes).double().mean().item()


def surgeon(*arguments: str) -> None:
    """Run a surgeon command as a shell would, and show it."""
    print(f"\n$ surgeon {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "surgeon", *arguments], check=True)


def main() -> None:
    torch.set_num_threads(1)  # the fastest for networks this small
    torch.manual_seed(0)
    old = Network(units=4)
    train(old, torch.optim.AdamW(old.parameters(), lr=0.01), epochs=25)
    torch.save(old.state_dict(), "in.pt")
    surgeon("plan", "recipe.json", "in.pt")
    surgeon("apply", "recipe.json", "in.pt", "out.safetensors", "--force")

    new = Network(units=24)
    new.load_state_dict(load_file("out.safetensors"), strict=True)
    rows = [["4 units", accuracy(old)], ["24 units, 20 of them new", accuracy(new)]]
    with torch.no_grad():
        images = digits(test=True)[0]
        torch.testing.assert_close(old(images), new(images))  # new columns are zero

    run = Manifest.load("out.manifest.json").bind(new)
    for stage in run.stages:
        optimizer, _ = run.start(stage.name)
        print(run.report(), end="\n\n")
        train(new, optimizer, epochs=stage.duration["epochs"])
        run.check()
    rows.append(["24 units, the new ones trained", accuracy(new)])

    with torch.no_grad():
        assert torch.equal(new.hidden.weight[:4], old.hidden.weight), "an old row has moved"
        assert torch.equal(new.hidden.bias[:4], old.hidden.bias), "an old bias has moved"
        assert torch.equal(new.fc.weight[:, :4], old.fc.weight), "an old column has moved"
        assert torch.equal(new.fc.bias, old.fc.bias), "the bias of fc has moved"
    print(tabulate(rows, headers=["", "accuracy"], floatfmt=".3f"))
    assert rows[0][1] == rows[1][1] < rows[2][1] - 0.03


if __name__ == "__main__":
    main()
