"""Read what torch.save wrote before torch 1.6, through torch's own restricted unpickler."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgeon.formats.checkpoint import Contents, Opaque, spec_of
from surgeon.formats.files import InMemory, InputFile
from surgeon.lazy import LazyTensor, Stored
from surgeon.numeric.dtypes import DTYPES

if TYPE_CHECKING:
    import torch

_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
# Heap corruption in weights_only before 2.10: https://github.com/advisories/GHSA-63cw-57p8-fm3p
_OLDEST_TORCH = (2, 10)
_RESAVE = (
    "load it where it was made and save its weights alone: torch.save(model.state_dict(), ...)"
)
_DTYPES = {f"torch.{row.torch}": row.name for row in DTYPES.values() if row.bits >= 8}
_PIECE = 1 << 20


def is_legacy(start: bytes) -> bool:
    """Tell by the first bytes: a pickle of torch's magic number."""
    return start.startswith(b"\x80") and _MAGIC in start[:24]


def read_legacy(file: InputFile) -> Contents:
    """Load a legacy torch file whole; raises ValueError with the reason it cannot be."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"it is a legacy torch file, which takes torch to read; {_RESAVE}"
        ) from None
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < _OLDEST_TORCH:
        raise ValueError(
            f"it is a legacy torch file, and the unpickler of torch {torch.__version__} has known "
            "holes; install torch >= 2.10"
        )
    try:
        with warnings.catch_warnings(), os.fdopen(os.dup(file.fileno()), "rb") as stream:
            warnings.simplefilter("ignore")
            value = torch.load(stream, map_location="cpu", weights_only=True)
        converted = _Conversion(file.path).plain(value)
    except Exception as error:  # torch raises all kinds where a file is damaged
        raise ValueError(_reason(error)) from None
    return Contents(
        path=file.path,
        value=converted,
        header_sha256=_sha256(file),
        size_bytes=file.size_bytes,
        origins={},
        close=file.close,
        weight_files=(file.path,),
    )


def _sha256(file: InputFile) -> str:
    digest = hashlib.sha256()
    for offset in range(0, file.size_bytes, _PIECE):
        digest.update(file.read(offset, min(_PIECE, file.size_bytes - offset)))
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Return one line of what torch has to say, but not its advice to load without care."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Weights only load failed")]
    line = next((line for line in lines if "GLOBAL" in line or "Unpickler" in line), "")
    line = line or (lines[0] if lines else type(error).__name__)
    line = line.removeprefix("WeightsUnpickler error:").strip()
    return f"torch cannot read this legacy file: {line:.300}; {_RESAVE}"


class _Conversion:
    """From what torch loaded to plain containers, scalars, LazyTensors and Opaques."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors: dict[tuple[object, ...], LazyTensor] = {}
        self._seen: dict[int, object] = {}

    def plain(self, value: object) -> object:
        import torch

        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if id(value) in self._seen:
            return self._seen[id(value)]
        if isinstance(value, dict):
            mapping: dict[object, object] = {}
            self._seen[id(value)] = mapping
            mapping.update((key, self.plain(item)) for key, item in value.items())
            return mapping
        if isinstance(value, list | tuple):
            items = [self.plain(item) for item in value]
            self._seen[id(value)] = items if isinstance(value, list) else tuple(items)
            return self._seen[id(value)]
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | set):
            return value
        return Opaque(f"{type(value).__module__}.{type(value).__qualname__}")

    def _tensor(self, tensor: torch.Tensor) -> LazyTensor | Opaque:
        import torch

        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return Opaque("a tensor", "it is a tensor subclass; save plain tensors instead")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            return Opaque("a tensor", "it is sparse, quantised or nested; save dense tensors")
        if str(tensor.dtype) not in _DTYPES:
            return Opaque("a tensor", f"found dtype {tensor.dtype}, which safetensors lacks")
        if tensor.device.type != "cpu" or tensor.is_conj() or tensor.is_neg():
            return Opaque("a tensor", "it has no plain values on the CPU; save tensor.cpu()")
        spec = spec_of(_DTYPES[str(tensor.dtype)], tuple(tensor.shape))
        view = (
            tensor.untyped_storage().data_ptr(), tensor.storage_offset(), spec, tensor.stride()
        )  # fmt: skip
        if view not in self._tensors:
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            data = np.asarray(flat.numpy(), np.uint8)
            self._tensors[view] = Stored(InMemory(self._path, data), 0, spec)
        return self._tensors[view]
