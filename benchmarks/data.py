"""Make the checkpoints that are measured: random normals of fixed seeds, written block by block.

Runs as a process of its own, `python -m benchmarks.data FOLDER SIZE NAME...`: the memory that a
process had at its height counts for the children that it starts later, so what measures stays
small and imports no NumPy.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.llama import Llama, Shape, shards

_BLOCK = 1 << 20
_SPREAD = 0.02
_ITEM_BYTES = {"BF16": 2, "F32": 4}


def main(folder: Path, size: float, names: list[str]) -> None:
    """Make each checkpoint that is missing; one of this name is always complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path, unfinished = folder / name, folder / f".{name}"
        if path.exists():
            continue
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        _MAKERS[name](unfinished, size)
        unfinished.rename(path)


def _model(path: Path, size: float, *, seed: int, dtype: str = "BF16") -> None:
    _write(path, Llama(size).shapes(), seed=seed, dtype=dtype)


def _write(path: Path, shapes: Mapping[str, Shape], *, seed: int, dtype: str = "BF16") -> None:
    """Write a safetensors file of random normals, one block at a time."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * _ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            count = int(np.prod(shape))
            for start in range(0, count, _BLOCK):
                block = generator.standard_normal(min(_BLOCK, count - start), dtype=np.float32)
                block *= np.float32(_SPREAD)
                file.write(_bfloat16(block).data if dtype == "BF16" else block.data)


def _bfloat16(block: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round finite float32 to the nearest bfloat16, ties to even; as bits."""
    bits = block.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _torch_file(path: Path, size: float) -> None:
    """Save the model that `a.safetensors` holds, as torch does."""
    import torch
    from safetensors.torch import load_file

    source = path.with_name(f"{path.name}.source")
    _model(source, size, seed=0)
    torch.save(load_file(source), path)
    source.unlink()


def _folder(path: Path, parts: Iterable[tuple[str, Mapping[str, Shape]]]) -> None:
    """Write shards of these names and shapes, and their index."""
    path.mkdir()
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, (name, shapes) in enumerate(parts):
        _write(path / name, shapes, seed=number)
        weight_map |= dict.fromkeys(shapes, name)
        total_bytes += sum(_ITEM_BYTES["BF16"] * int(np.prod(shape)) for shape in shapes.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def _tiny_folder(path: Path, size: float, *, tensors: int) -> None:
    _folder(path, shards(max(1, round(tensors * size))))


def _sharded_model(path: Path, size: float) -> None:
    _folder(path, Llama(size).sharded())


def _tiny(path: Path, tensors: int, *, seed: int) -> None:
    """Write the first of the same tiny tensors into one file."""
    shapes = {name: shape for _, part in shards(tensors) for name, shape in part.items()}
    _write(path, shapes, seed=seed)


def _distributed(path: Path, size: float) -> None:
    """Save many small tensors as torch.distributed.checkpoint does: a chunk of each."""
    import torch
    import torch.distributed.checkpoint as dcp

    state = {f"layers.{n}.weight": torch.zeros(4, 4) for n in range(max(1, round(12_000 * size)))}
    dcp.save(state, checkpoint_id=path, no_dist=True)


def _small_file(path: Path, size: float) -> None:
    _tiny(path, 200, seed=0)


def _tiny_model(path: Path, size: float, *, seed: int) -> None:
    _tiny(path, max(1, round(16_000 * size)), seed=seed)


_MAKERS: dict[str, Callable[[Path, float], None]] = {
    "a.safetensors": partial(_model, seed=0),
    "b.safetensors": partial(_model, seed=1),
    "c.safetensors": partial(_model, seed=2),
    "d.safetensors": partial(_model, seed=3),
    "float32.safetensors": partial(_model, seed=4, dtype="F32"),
    "a.pt": _torch_file,
    "small.safetensors": _small_file,
    "tiny-a.safetensors": partial(_tiny_model, seed=0),
    "tiny-b.safetensors": partial(_tiny_model, seed=1),
    "tiny-c.safetensors": partial(_tiny_model, seed=2),
    "folder-10k": partial(_tiny_folder, tensors=10_000),
    "folder-100k": partial(_tiny_folder, tensors=100_000),
    "sharded": _sharded_model,
    "distributed": _distributed,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
