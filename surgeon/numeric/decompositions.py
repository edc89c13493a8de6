"""Decompositions of matrices: by NumPy, or by torch on a device that was asked for.

On a device the last bits are the device's: which is why nobody gets it unasked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from surgeon.base.deferred import np
from surgeon.base.errors import UsageError
from surgeon.numeric.dtypes import Array

# Inherited by workers that are forked while it is set; each of them starts the device on its own.
_device = ""


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Decompose on a device of torch's, such as "cuda" or "cuda:1", inside; "" is NumPy.

    Raises UsageError where there is no such device.
    """
    global _device
    before = _device
    if device:
        _require(device)
    _device = device
    try:
        yield
    finally:
        _device = before


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Return U, the singular values in falling order, and V, transposed; all of the smaller side.

    Raises numpy.linalg.LinAlgError where it does not converge.
    """
    if not _device:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    import torch

    try:
        found = torch.linalg.svd(torch.from_numpy(matrix).to(_device), full_matrices=False)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise np.linalg.LinAlgError(str(error)) from None
    left, values, right = (part.cpu().numpy() for part in found)
    return left, values, right


def qr(matrix: Array) -> tuple[Array, Array]:
    """Return Q and R, of the smaller side."""
    if not _device:
        orthonormal, upper = np.linalg.qr(matrix)
        return orthonormal, upper
    import torch

    found = torch.linalg.qr(torch.from_numpy(matrix).to(_device))
    orthonormal, upper = (part.cpu().numpy() for part in found)
    return orthonormal, upper


def _require(device: str) -> None:
    if not re.fullmatch(r"cuda(:\d{1,3})?", device):
        raise UsageError(f"device: '{device}' is none; say cuda, or cuda:1 for the second one")
    try:
        import torch
    except ImportError:
        raise UsageError(f"device: '{device}' needs torch, which is not installed") from None
    # Asked for in this way, the driver is not started, which no forked worker would survive.
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    if int(device.partition(":")[2] or 0) >= count:
        raise UsageError(f"device: torch finds no '{device}' here ({count} such devices)")
