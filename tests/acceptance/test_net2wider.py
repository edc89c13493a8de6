"""Net2Wider on a perceptron and on a small convolutional network with BatchNorm.

Both compute what they did, to 1e-14 in float64; and in training no copy stays equal to its source.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.network import Bench

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The fastest for networks this small, above all where others are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def perceptron(hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 10), nn.ReLU(), nn.Linear(10, 4)
    )


def convolutional(channels: int) -> nn.Sequential:
    """One layer is widened that a convolution reads, and one that a linear layer does."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 4),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network by its width, what makes it wider, the inputs, and which layers hold copies."""

    make: Any
    steps: tuple[Json, ...]
    inputs: tuple[int, ...]
    widened: dict[str, str]


def wider(target: list[str], *consumers: Any) -> Json:
    return {"op": "widen", "target": target, "rows": 12, "init": "net2wider",
            "consumers": list(consumers)}  # fmt: skip


CASES = {
    "perceptron": Case(perceptron, (wider(["0"], "2"),), (6,), {"0": "2"}),
    "convolutional": Case(
        convolutional,
        (wider(["0", "1"], "3"), wider(["3", "4"], {"target": "8", "block": 4})),
        (1, 8, 8),
        {"0": "3", "3": "8"},
    ),
}
WIDTH = 8


def inputs(case: Case, count: int = 64) -> Tensor:
    return torch.randn(count, *case.inputs, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, case: Case, steps: int, **settings: Any) -> nn.Module:
    """Learn which of the first four numbers of an input is largest."""
    data = inputs(case).to(next(model.parameters()).dtype)
    classes = data.flatten(1)[:, :4].argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data), classes).backward()
        optimizer.step()
    return model


def both(bench: Bench, case: Case, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    old = trained(case.make(WIDTH).to(dtype), case, 5, lr=0.01)
    new = case.make(WIDTH + 12).to(dtype)
    new.load_state_dict(bench.given(old.state_dict()).operate(*case.steps).tensors)
    return old, new


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_the_network_computes_what_it_did(bench: Bench, name: str, training: bool) -> None:
    old, new = both(bench, CASES[name], torch.float64)
    data = inputs(CASES[name]).double()
    found, expected = (model.train(training)(data) for model in (new, old))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


def pairs(weight: Tensor) -> list[tuple[int, int]]:
    """Every two rows that are equal: sources and their copies, and copies among themselves."""
    rows = weight.detach().flatten(1)
    return [(i, j) for j in range(len(rows)) for i in range(j) if torch.equal(rows[i], rows[j])]


def distances(weight: Tensor, found: list[tuple[int, int]]) -> list[float]:
    """How far two rows are apart, by the length of the first."""
    rows = weight.detach().flatten(1)
    return [((rows[i] - rows[j]).norm() / rows[i].norm()).item() for i, j in found]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_copy_equals_its_source_after_training(
    bench: Bench, name: str, dtype: torch.dtype
) -> None:
    case = CASES[name]
    _, new = both(bench, case, dtype)
    copies = {layer: pairs(new.get_parameter(f"{layer}.weight")) for layer in case.widened}
    trained(new, case, 200, lr=0.01)
    for layer, found in copies.items():
        assert len(found) >= 12
        # Rounding alone would part them by some 1e-16; 0.01 is the least that was measured.
        assert min(distances(new.get_parameter(f"{layer}.weight"), found)) > 1e-3


def test_with_equal_shares_copies_stay_equal(bench: Bench) -> None:
    """What the unequal shares are for: the same training, after evening them out."""
    case = CASES["perceptron"]
    _, new = both(bench, case, torch.float64)
    found = pairs(new.get_parameter("0.weight"))
    with torch.no_grad():
        for first, second in found:
            new.get_parameter("2.weight")[:, second] = new.get_parameter("2.weight")[:, first]
    trained(new, case, 200, lr=0.01)
    assert max(distances(new.get_parameter("0.weight"), found)) < 1e-12
