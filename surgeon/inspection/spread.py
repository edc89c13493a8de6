"""Sizes and values of every layer, for a picture: read once, block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from surgeon.base.errors import CheckpointError
from surgeon.formats import open_checkpoint
from surgeon.inspection.inspect import Entry, inspected
from surgeon.inspection.layers import depth, layer_and_module
from surgeon.inspection.watching import Watch, unwatched
from surgeon.lazy import BLOCK, LazyTensor, Scratch, upcast_blocks
from surgeon.numeric import histograms
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.pictures.spread import Layer, Spread

if TYPE_CHECKING:
    from surgeon.pictures.figures import Figure

_FLOAT32 = np.dtype(np.float32)
_KINDS = ("float", "int", "bool")


@dataclass
class _Found:
    sizes: dict[str, int] = field(default_factory=dict)
    counts: Array = field(default_factory=lambda: np.zeros((2, histograms.BINS), np.int64))


def spread(name: str, entries: Iterable[Entry], *, watch: Watch = unwatched) -> Spread:
    """Read all tensors and return how large each layer is, and how its values are spread.

    A tied tensor counts with its owner. Values are counted as float32 has them; codes of quantised
    formats have none.
    """
    owned = [entry for entry in entries if entry.owner is None]
    # Before the numbered layers, in them by their numbers, after them.
    owned.sort(key=lambda entry: depth(entry.name))
    found: dict[str, _Found] = {}
    scratch = Scratch()
    with watch(sum(entry.tensor.spec.size_bytes for entry in owned)) as done:
        for entry in owned:
            layer = found.setdefault(layer_and_module(entry.name)[0], _Found())
            spec = entry.tensor.spec
            layer.sizes[spec.dtype] = layer.sizes.get(spec.dtype, 0) + spec.size_bytes
            if DTYPES[spec.dtype].kind in _KINDS:
                layer.counts += _counts(entry.tensor, scratch)
            if done:
                done(spec.size_bytes)
    return Spread(name, [Layer(label, one.sizes, one.counts) for label, one in found.items()])


def of_location(location: str, names: Collection[str], header_sha256: str) -> Spread:
    """Open a checkpoint again and read tensors of it, by their names.

    Raises CheckpointError where it has another header by now.
    """
    opened = open_checkpoint(location, lambda known: [name for name in known if name in names])
    try:
        if opened.header_sha256 != header_sha256:
            raise CheckpointError(f"{opened.path}: has changed since it was inspected")
        entries = inspected(opened.tensors, (), stats=False)
        return spread(location, [entry for entry in entries if entry.name in names])
    finally:
        opened.close()


def plot(name: str, entries: Iterable[Entry], path: Path, *, watch: Watch = unwatched) -> Figure:
    """Draw what `spread` finds into a file."""
    return spread(name, entries, watch=watch).plot(path)


def _counts(tensor: LazyTensor, scratch: Scratch) -> Array:
    counts = np.zeros((2, histograms.BINS), np.int64)
    for start in range(0, tensor.spec.count, BLOCK):
        stop = min(start + BLOCK, tensor.spec.count)
        with scratch.scope(), np.errstate(over="ignore", invalid="ignore"):
            (block,) = upcast_blocks([tensor], start, stop, scratch)
            counts += histograms.counted(block.astype(_FLOAT32, copy=False))
    return counts
