"""Matrices that torch decomposes give what NumPy's do, but for the last bits; and it is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surgeon.base.errors import UsageError
from surgeon.numeric import decompositions
from surgeon.numeric.decompositions import on_device, qr, svd
from surgeon.output.execute import Options


@pytest.fixture
def torch_device(monkeypatch):
    """What stands in for a device here: torch on the processor."""
    monkeypatch.setattr(decompositions, "_require", lambda device: None)
    return "cpu"


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (1, 1)])
def test_decompositions_on_a_device_are_the_matrix_s(torch_device, shape):
    matrix = np.random.default_rng(1).standard_normal(shape)
    with on_device(torch_device):
        left, values, right = svd(matrix)
        orthonormal, upper = qr(matrix)
    np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-12)
    np.testing.assert_allclose((left * values) @ right, matrix, atol=1e-12)
    np.testing.assert_allclose(orthonormal @ upper, matrix, atol=1e-12)
    assert not np.tril(upper, -1).any()


@pytest.mark.parametrize("op", ["tsv", "isotropic", "rotate"])
def test_merge_on_a_device_is_the_merge_and_its_manifest_says_so(bench, torch_device, op):
    random = torch.Generator().manual_seed(2)
    ours, theirs = (torch.randn(6, 4, generator=random).double() for _ in range(2))
    merge = {"op": op, "models": ["other"]}
    bench.given({"w": ours}, other={"w": theirs})
    expected = bench.operate(merge)["w"]
    made = bench.operate(merge, options=Options(device=torch_device))
    np.testing.assert_allclose(made["w"], expected, rtol=1e-10)
    assert made.manifest["device"] == "cpu"


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu", "cuda:x", "cpu"])
def test_device_that_is_not_there_is_refused(device):
    if torch.cuda.is_available():
        pytest.skip("there are such devices")
    with pytest.raises(UsageError, match=f"device: .*'{device}'"), on_device(device):
        pass
