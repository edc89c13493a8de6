"""The part of a parameter that lies in this process: all of it, or a rank's share of a DTensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from surgeon.base.regions import Region, whole
from surgeon.training.errors import ManifestError


def is_sharded(tensor: Tensor) -> bool:
    """Say whether a tensor is a DTensor, as `fully_shard` makes them, without importing those."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return the elements that lie in this process, in the tensor's own memory."""
    if not is_sharded(tensor):
        return tensor.detach()
    sharded: Any = tensor.detach()
    lying_here: Tensor = sharded.to_local()
    return lying_here


def owned(name: str, parameter: Tensor) -> Region:
    """Return the region that lies in this process; a rank may own no row of a tensor.

    Raises ManifestError where it is no region, as with tensor-parallel and FSDP shards combined.
    """
    if not is_sharded(parameter):
        return whole(parameter.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = parameter
    kinds = {type(placement).__name__ for placement in sharded.placements}
    if strange := kinds - {"Shard", "Replicate"}:
        raise ManifestError(
            f"'{name}' is sharded as {', '.join(sorted(strange))}; of such a parameter no block "
            "can be trained, only all of it"
        )
    shape, offset = compute_local_shape_and_global_offset(
        sharded.shape, sharded.device_mesh, sharded.placements
    )
    return tuple((start, start + size) for start, size in zip(offset, shape, strict=True))


def within(region: Region, owner: Region) -> Region:
    """Return the part of a region that lies in another; of size 0 where nothing of it does."""
    begins = [
        min(max(start, first), last)
        for (start, _), (first, last) in zip(region, owner, strict=True)
    ]
    ends = [min(stop, last) for (_, stop), (_, last) in zip(region, owner, strict=True)]
    return tuple((begin, max(begin, end)) for begin, end in zip(begins, ends, strict=True))


def index(region: Region, owner: Region) -> tuple[slice, ...]:
    """Return where a region is in a tensor that holds the elements of `owner`."""
    inside = within(region, owner)
    return tuple(
        slice(a - first, b - first) for (a, b), (first, _) in zip(inside, owner, strict=True)
    )


def alike(block: Tensor, region: Region, parameter: Tensor) -> Tensor:
    """Return this process's part of a region as the same kind of tensor as the whole parameter."""
    if not is_sharded(parameter):
        return block
    from torch.distributed.tensor import DTensor

    sharded: Any = parameter
    shape = torch.Size(stop - start for start, stop in region)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        block, sharded.device_mesh, sharded.placements, run_check=False, shape=shape, stride=stride
    )


def swap_storage(held: nn.Parameter, block: Tensor) -> None:
    """Let an optimizer's parameter have other memory, on another device if need be."""
    held.grad = None
    if is_sharded(held):
        # As FSDP2 does itself when a module moves; `.data` would keep the old local tensor.
        sharded: Any = held
        sharded._local_tensor = block
    else:
        held.data = block
