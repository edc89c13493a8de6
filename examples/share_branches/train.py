"""Which of two digits is larger? A network with a branch for each, and with a shared one."""

from __future__ import annotations

import subprocess
import sys

import torch
from safetensors.torch import load_model
from sklearn.datasets import load_digits
from tabulate import tabulate
from torch import Tensor, nn

from surgeon.training import Manifest


class Network(nn.Module):
    """Two branches, and a head that compares what they see."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.left = self.branch()
        self.right = self.left if shared else self.branch()
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def branch(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, pairs: Tensor) -> Tensor:
        seen = torch.cat([self.left(pairs[:, 0]), self.right(pairs[:, 1])], dim=1)
        return self.head(seen).squeeze(1)


def pairs(*, test: bool) -> tuple[Tensor, Tensor]:
    """Return pairs of images (N, 2, 64), and whether the left digit is larger (N,)."""
    data = load_digits()
    chosen = (torch.arange(len(data.target)) % 5 == 0) == test
    images = torch.tensor(data.data, dtype=torch.float32)[chosen] / 16
    target = torch.tensor(data.target)[chosen]
    left, right = torch.randint(len(target), (2, 2000), generator=torch.Generator().manual_seed(0))
    different = target[left] != target[right]
    left, right = left[different], right[different]
    return torch.stack([images[left], images[right]], 1), (target[left] > target[right]).float()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    images, larger = pairs(test=False)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(
                model(images[batch]), larger[batch]
            ).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    images, larger = pairs(test=True)
    return ((model(images) > 0) == larger.bool()).double().mean().item()


def elements(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def surgeon(*arguments: str) -> None:
    """Run a surgeon command as a shell would, and show it."""
    print(f"\n$ surgeon {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "surgeon", *arguments], check=True)


def main() -> None:
    torch.set_num_threads(1)  # the fastest for networks this small
    torch.manual_seed(0)
    old = Network(shared=False)
    train(old, torch.optim.AdamW(old.parameters(), lr=0.01), epochs=10)
    torch.save(old.state_dict(), "in.pt")
    surgeon("plan", "recipe.json", "in.pt")
    surgeon("apply", "recipe.json", "in.pt", "out.safetensors", "--force")

    new = Network(shared=True)
    load_model(new, "out.safetensors", strict=True)  # knows about shared tensors
    rows = [["two branches", elements(old), accuracy(old)]]
    rows.append(["one, shared", elements(new), accuracy(new)])

    run = Manifest.load("out.manifest.json").bind(new)
    for stage in run.stages:
        optimizer, _ = run.start(stage.name)
        print(run.report(), end="\n\n")
        train(new, optimizer, epochs=stage.duration["epochs"])
        run.check()
    rows.append(["one, trained on", elements(new), accuracy(new)])

    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sum(parameter.numel() for parameter in held) == elements(new), "trained twice"
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layers = (new.head[0], new.left[2], new.left[0])
    found = [rates[id(layer.weight)] for layer in layers]
    torch.testing.assert_close(found, [0.01, 0.003, 0.0009])
    assert new.right[2].weight is new.left[2].weight, "the branches came apart"
    print(tabulate(rows, headers=["", "parameters", "accuracy"], floatfmt=".3f"))
    assert rows[2][2] > rows[0][2], "sharing did not pay"


if __name__ == "__main__":
    main()
