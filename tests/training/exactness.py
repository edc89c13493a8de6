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

from test_row_blocks import OPTIMIZERS, row_trained

COLUMNS = {"plain": "plain", "clipped": "clip norm 0.05", "carried": "carried"}


def cell(name: str, loop: str, folder: Path) -> str:
    """Train row 7 of fc by itself; return 'exact', or the largest difference from what is due."""
    before, after, due = row_trained(name, loop, folder)
    if torch.equal(after["fc.weight"], before["fc.weight"]):
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
