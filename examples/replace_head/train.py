"""A classifier of the digits 0 to 4, and its successor for the digits 5 to 9."""

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
    """A feed-forward classifier of 8 x 8 digits into five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.middle = nn.Sequential(nn.Linear(64, 16), nn.ReLU())
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.middle(self.bottom(images)))


def digits(first: int, *, test: bool) -> tuple[Tensor, Tensor]:
    """Return images (N, 64) of five digits and their classes (N,); every fifth is for tests."""
    data = load_digits()
    target = torch.tensor(data.target) - first
    chosen = (target >= 0) & (target < 5) & ((torch.arange(len(target)) % 5 == 0) == test)
    return torch.tensor(data.data, dtype=torch.float32)[chosen] / 16, target[chosen]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, epochs: int) -> None:
    model.train()
    images, classes = digits(first, test=False)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), classes[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, first: int) -> float:
    images, classes = digits(first, test=True)
    return (model.eval()(images).argmax(1) == classes).double().mean().item()


def changed(model: nn.Module, earlier: dict[str, Tensor]) -> set[str]:
    """Return the modules in which something has moved, running statistics included."""
    now = model.state_dict()
    return {name.split(".")[0] for name in now if not torch.equal(now[name], earlier[name])}


def surgeon(*arguments: str) -> None:
    """Run a surgeon command as a shell would, and show it."""
    print(f"\n$ surgeon {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "surgeon", *arguments], check=True)


def main() -> None:
    torch.set_num_threads(1)  # the fastest for networks this small
    torch.manual_seed(0)
    old = Network()
    train(old, torch.optim.SGD(old.parameters(), lr=0.1, momentum=0.9), first=0, epochs=10)
    print(f"accuracy on the digits 0 to 4: {accuracy(old, first=0):.3f}")
    torch.save(old.state_dict(), "in.pt")
    surgeon("plan", "recipe.json", "in.pt")
    surgeon("apply", "recipe.json", "in.pt", "out.safetensors", "--force")

    model = Network()
    model.load_state_dict(load_file("out.safetensors"), strict=True)
    run = Manifest.load("out.manifest.json").bind(model)
    rows = [["(the surgery)", "", "", accuracy(model, first=5)]]
    for stage in run.stages:
        earlier = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer, _ = run.start(stage.name)
        train(model, optimizer, first=5, epochs=stage.duration["epochs"])
        run.check()
        moved = changed(model, earlier)
        rates = {group["name"]: round(group["lr"], 9) for group in optimizer.param_groups}
        spelled = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        rows.append([stage.name, spelled, " ".join(sorted(moved)), accuracy(model, first=5)])
        if stage is run.stages[0]:
            assert moved == {"fc"}
            assert rates == {"fc": 0.2}
        else:
            assert moved == {"fc", "middle"}
            assert rates == {"fc": 0.2, "middle": 0.02}

    headers = ["stage", "learning rates", "what has moved", "accuracy on 5 to 9"]
    print(tabulate(rows, headers=headers, floatfmt=".3f"))
    assert rows[-1][-1] > rows[1][-1] > rows[0][-1], "unfreezing did not pay"


if __name__ == "__main__":
    main()
