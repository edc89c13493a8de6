"""What an optimizer holds for a stage, and the state that each part of it brings along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.base.regions import Region, intersection, whole, without
from surgeon.training.blocks import BlockParameter
from surgeon.training.cover import Block
from surgeon.training.errors import ManifestError
from surgeon.training.sharded import alike, index, is_sharded, local, owned, within

State = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Held:
    """One parameter of an optimizer: the model's own, or one that stands for a block of it."""

    name: str
    region: Region
    parameter: nn.Parameter
    state: State = field(default_factory=dict)
    is_copy: bool = False


def hold(block: Block, parameter: nn.Parameter, state: State) -> Held:
    """Return what the optimizer is to hold for a block; a part of a parameter is a leaf of its own.

    A contiguous block is a view of the model's parameter. Any other has a contiguous copy, which
    `RowBlocks` writes back: a fused kernel given a strided view writes into its neighbours.
    """
    if block.region == whole(parameter.shape):
        return Held(block.name, block.region, parameter, state)
    view = local(parameter)[index(block.region, owned(block.name, parameter))]
    is_copy = not view.is_contiguous()
    if is_copy:
        view = view.clone(memory_format=torch.contiguous_format)
    leaf = BlockParameter(alike(view, block.region, parameter))
    return Held(block.name, block.region, leaf, state, is_copy)


def carried(
    block: Block, parameter: nn.Parameter, earlier: Sequence[tuple[Held, State]]
) -> Iterator[Held]:
    """Hold a block in the pieces that the stage before held, each with its own state.

    Elements trained before keep their state, step count included; all others start clean. Those
    cannot share one optimizer parameter: zero moments under an old step count make Adam's first
    updates up to 6.6 times too long.
    """
    rest = [block.region]
    for held, state in earlier:
        shared = intersection(block.region, held.region) if state else None
        if shared is not None:
            part = _state_of(shared, held, state, parameter)
            yield hold(Block(block.name, shared), parameter, part)
            rest = [piece for region in rest for piece in without(region, shared)]
    for region in rest:
        yield hold(Block(block.name, region), parameter, {})


def _state_of(
    region: Region, held: Held, state: Mapping[str, Any], parameter: nn.Parameter
) -> State:
    """Return the state of some of the elements that an optimizer's parameter stands for.

    Tensors of the parameter's shape, and factored ones with dimensions of size 1, are cut to the
    region; scalars are copied. Raises ManifestError for state of any other shape.
    """
    shape = [stop - start for start, stop in held.region]
    part: State = {}
    for key, value in state.items():
        if isinstance(value, (list, tuple, dict)):
            raise _cannot_carry(held, key, type(value).__name__)
        if not isinstance(value, Tensor):
            part[key] = value
        elif value.numel() == 1 and value.ndim != len(shape):
            part[key] = value.clone()
        elif value.ndim != len(shape) or any(
            size not in (1, expected) for size, expected in zip(value.shape, shape, strict=True)
        ):
            raise _cannot_carry(held, key, f"of shape {tuple(value.shape)}")
        elif region == held.region:
            part[key] = value.clone()
        elif is_sharded(value) and list(value.shape) != shape:
            raise _cannot_carry(held, key, f"sharded, of shape {tuple(value.shape)}")
        else:
            part[key] = _cut(value, region, held, parameter)
    return part


def _cut(value: Tensor, region: Region, held: Held, parameter: nn.Parameter) -> Tensor:
    mine = within(held.region, owned(held.name, parameter))
    places = (
        slice(None) if size == 1 else place
        for size, place in zip(value.shape, index(region, mine), strict=True)
    )
    cut = local(value)[tuple(places)].clone(memory_format=torch.contiguous_format)
    return alike(cut, region, parameter)


def _cannot_carry(held: Held, key: str, what: str) -> ManifestError:
    return ManifestError(
        f"optimizer_state: 'carry' cannot carry '{key}' ({what}) of '{held.name}', which is not "
        "kept per element; reset it"
    )
