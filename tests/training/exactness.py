"""Print the exactness matrix: row blocks against an oracle of separate tensors; `make exactness`.

Exits with 1 unless, in every cell, all that is frozen kept its bits and what is trained has the
oracle's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tabulate import tabulate
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))  # as pytest has it for the tests of this folder

from small import copied, network, train
from test_row_blocks import (
    BODY,
    LOOPS,
    OPTIMIZERS,
    ROWS,
    Oracle,
    oracle_optimizer,
    start,
)

COLUMNS = {"plain": "plain", "clipped": "clip norm 0.05", "carried": "carried"}
STEPS = 8


def cell(name: str, loop: str, folder: Path) -> str:
    """Train row 7 of fc by itself; return 'exact', or the largest difference from what is due."""
    biases = [] if name == "Muon" else ["fc.bias[7:8]"]  # Muon takes matrices only
    rest = ["fc.weight[0:7]", "fc.bias[0:7]" if biases else "fc.bias"]
    model = network().eval()
    before, oracle = copied(model), Oracle(model, ROWS, ROWS, 0).eval()
    run = start(model, folder, name, ["fc.weight[7:8]", *biases], [*BODY, *rest])
    trained = [oracle.weights[1], *([oracle.biases[1]] if biases else [])]
    expected = oracle_optimizer(name, [parameter.requires_grad_() for parameter in trained])
    for stage in ("warm-up", "again") if loop == "carried" else ("warm-up",):
        LOOPS.get(loop, train)(model, run.start(stage)[0], STEPS)
        LOOPS.get(loop, train)(oracle, expected, STEPS)
    after = model.state_dict()
    due = dict(before)
    for own, new in (("fc.weight", oracle.weights[1]), ("fc.bias", oracle.biases[1])):
        due[own] = torch.cat([before[own][:7], new.detach()])
    if torch.equal(due["fc.weight"], before["fc.weight"]):
        return "did not move"
    if all(torch.equal(after[own], due[own]) for own in due):
        return "exact"
    return f"{max(_difference(after[own], due[own]) for own in due):.1e}"


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def main() -> int:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        rows = [
            [name, *(cell(name, loop, Path(folder)) for loop in COLUMNS)] for name in OPTIMIZERS
        ]
    print(tabulate(rows, headers=["optimizer", *COLUMNS.values()]))
    return int(any(text != "exact" for _, *cells in rows for text in cells))


if __name__ == "__main__":
    sys.exit(main())
