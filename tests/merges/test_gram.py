"""Inner products of operands: the operands themselves stay as they are."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from tests.network import Bench, assert_identical


def test_what_is_held_whole_can_be_a_model_of_a_relative_merge(bench: Bench) -> None:
    """A decomposition is kept, read-only, while its tensor is written."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 6, 5, dtype=torch.float64, generator=generator)
    tsv = {"op": "tsv", "models": ["b", "c"]}
    stock = {"op": "model_stock", "models": ["m", "c"]}
    bench.given({"w": a}, b={"w": b}, c={"w": c})
    between = bench.operate(tsv).tensors
    at_once = bench.operate({**tsv, "into": "m"}, stock).tensors
    assert_identical(at_once, bench.given({"w": a}, m=between).operate(stock).tensors)


IN_A_PROCESS = """
import numpy as np
from surgeon.merges.shared.gram import Vectors, gram

class Two:
    tensors = None, None
    are_compiled = False

    def blocks(self, working):
        generator = np.random.default_rng(0)
        for _ in range(4):
            yield generator.standard_normal((2, 128 * 1024))

for kind in ("tensor", "row", "column"):
    print(gram(Two(), Vectors.of(kind, (512, 1024))).tobytes().hex())
"""


def test_sums_do_not_depend_on_the_threads_of_blas() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "2", "4")
    }  # fmt: skip
    assert len(found) == 1
