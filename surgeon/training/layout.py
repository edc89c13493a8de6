"""Follow the layout that transformers has in memory where a checkpoint has another on disk.

Since transformers 5 a model may hold as one parameter what its checkpoint has apart: of Mixtral,
`experts.3.w1.weight` is rows of `experts.gate_up_proj`. What lies where is found by having
transformers' own conversion, as `save_pretrained` does it, work on tensors without data.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from surgeon.base.regions import Region, whole


@dataclass(frozen=True)
class Place:
    """Where a tensor of the checkpoint lies in one of the model's: a region of it.

    `dims` are the dimensions there that the tensor's own are; None for one of size 1.
    """

    name: str
    region: Region
    dims: tuple[int | None, ...]
    shape: tuple[int, ...]

    def part(self, region: Region) -> Region:
        """Return where a region of the tensor lies."""
        there = list(self.region)
        for dim, (start, stop) in zip(self.dims, region, strict=True):
            if dim is not None:
                first = there[dim][0]
                there[dim] = (first + start, first + stop)
        return tuple(there)

    def is_whole(self, tensor: Tensor) -> bool:
        """Say whether it is all of the model's tensor, dimension by dimension."""
        dims = tuple(range(tensor.ndim))
        return (
            self.shape == tuple(tensor.shape)
            and self.region == whole(self.shape)
            and all(own in (dim, None) for own, dim in zip(self.dims, dims, strict=True))
        )


# By the names in a checkpoint; None where a tensor is none of the model's, nor a region of one.
Layout = Mapping[str, Place | None]


class _WithoutCopies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Has copies stay views of what they are copies of."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.clone.default:
            return torch.ops.aten.alias.default(args[0])
        return function(*args, **(kwargs or {}))


def layout_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> Layout:
    """Return where what `save_pretrained` would write lies in a model's tensors.

    Empty for a model that is not transformers', and where transformers cannot convert it back.
    """
    if not (revert := _conversion_of(inner := _inside(model))):
        return {}
    by_tensor: dict[int, Tensor] = {}
    apart = {
        name: by_tensor.setdefault(id(t), torch.empty(t.shape, dtype=t.dtype, device="meta"))
        for name, t in tensors.items()
    }
    try:
        with _WithoutCopies():  # type: ignore[no-untyped-call]
            found = revert(inner, dict(apart))
    except Exception:  # what a conversion of any architecture needs of values or of a quantiser
        return {}
    names: dict[int, str] = {}
    for name, tensor in apart.items():
        names.setdefault(_storage(tensor), name)
    layout: dict[str, Place | None] = {}
    for name, tensor in found.items():
        owner = names.get(_storage(tensor))
        # A tied tensor has several names; its own comes first.
        owner = name if apart.get(name) is tensor else owner
        layout[name] = None if owner is None else _place(tensor, owner, apart[owner])
    return layout


def _inside(model: nn.Module) -> nn.Module:
    """Return the module that is wrapped as a whole, by torch.compile or for several devices."""
    while True:
        held = model._modules
        inner = held.get("_orig_mod") or (held.get("module") if len(held) == 1 else None)
        if inner is None:
            return model
        model = inner


def _conversion_of(model: nn.Module) -> Any:
    """Return transformers' function from what is in memory to what is on disk, if it is for it."""
    known = sys.modules.get("transformers.modeling_utils")
    if known is None or not isinstance(model, known.PreTrainedModel):
        return None
    try:
        return import_module("transformers.core_model_loading").revert_weight_conversion
    except (ImportError, AttributeError):  # before transformers 5 the two had the same layout
        return None


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _place(view: Tensor, name: str, parameter: Tensor) -> Place | None:
    """Return the region that a view is of a contiguous tensor; None where it is none."""
    sizes, strides = tuple(parameter.shape), parameter.stride()
    if view is parameter:
        return Place(name, whole(sizes), tuple(range(len(sizes))), sizes)
    offset = view.storage_offset()
    starts: list[int] = []
    for size, stride in zip(sizes, strides, strict=True):
        starts.append(offset // stride if size > 1 else 0)
        offset -= starts[-1] * stride
    region = [(start, start + 1) for start in starts]
    dims: list[int | None] = []
    for size, stride in zip(view.shape, view.stride(), strict=True):
        fitting = [d for d, s in enumerate(strides) if s == stride and sizes[d] > 1]
        dim = None if size == 1 else next(iter(fitting), -1)
        if dim is not None:
            if dim < 0 or dim in dims or starts[dim] + size > sizes[dim]:
                return None
            region[dim] = (starts[dim], starts[dim] + size)
        dims.append(dim)
    return None if offset else Place(name, tuple(region), tuple(dims), tuple(view.shape))
