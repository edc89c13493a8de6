"""Two networks that were trained apart, and their average."""

from __future__ import annotations

import copy
import subprocess
import sys

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn

STRENGTH = 0.4  # of the noise on the images


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def digits(*, test: bool) -> tuple[Tensor, Tensor]:
    """Return noisy images (N, 64) and their classes (N,); every other one is for tests."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    images += STRENGTH * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    chosen = (torch.arange(len(images)) % 2 == 0) == test
    return images[chosen], torch.tensor(data.target)[chosen]


def train(model: nn.Module, part: slice, epochs: int) -> None:
    """Train on a part of the digits."""
    images, classes = (values[part] for values in digits(test=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
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
    first = network()
    train(first, slice(None), epochs=3)
    second, stranger = copy.deepcopy(first), network()
    train(first, slice(0, None, 2), epochs=20)
    train(second, slice(1, None, 2), epochs=20)
    train(stranger, slice(1, None, 2), epochs=20)
    torch.save(first.state_dict(), "first.pt")
    torch.save(second.state_dict(), "second.pt")
    torch.save(stranger.state_dict(), "stranger.pt")

    surgeon("plan", "recipe.json", "first.pt", "second.pt")
    for other, output in (("second", "average"), ("stranger", "apart")):
        surgeon(
            "apply", "recipe.json", "first.pt", f"{other}.pt", f"{output}.safetensors", "--force"
        )

    states = {name: torch.load(f"{name}.pt") for name in ("first", "second", "stranger")}
    states["(first + second) / 2"] = average = load_file("average.safetensors")
    states["(first + stranger) / 2"] = load_file("apart.safetensors")
    found = {}
    for name, state in states.items():
        model = network()
        model.load_state_dict(state, strict=True)
        found[name] = accuracy(model)
    for name, values in average.items():
        mean = (states["first"][name].double() + states["second"][name].double()) / 2
        assert torch.equal(values, mean.float()), f"{name} is not the mean, rounded once"
    print(tabulate(found.items(), headers=["network", "accuracy"], floatfmt=".3f"))
    assert found["(first + second) / 2"] > max(found["first"], found["second"])
    assert found["(first + stranger) / 2"] < found["(first + second) / 2"]


if __name__ == "__main__":
    main()
