"""Read a file of optimizer state by the model's names where the file has the checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.base.regions import parsed, spelled, split_block
from surgeon.training.errors import ManifestError
from surgeon.training.followed import PlacedState
from surgeon.training.layout import Place
from surgeon.training.live import Live


@dataclass(frozen=True)
class _Slice:
    """A tensor that is asked for its parts, as safetensors' own slices are."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        """Return the shape of the whole."""
        return list(self.tensor.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        return self.tensor[index]


class PlacedTensors:
    """The tensors of a file of state, put together as the model's parameters are.

    What is kept per element goes to its place in the parameter. What is kept once, such as a count
    of steps, belongs to the region there.
    """

    def __init__(self, file: Any, stated: PlacedState, live: Live) -> None:
        self._file = file
        self._shapes = {name: tuple(p.shape) for name, p in live.parameters.items()}
        self._parts: dict[str, list[tuple[str, Place | None]]] = {}
        self._last: tuple[str, Tensor] | None = None  # one block after the other is read of it
        for name, part, place in self._found(stated):
            self._parts.setdefault(name, []).append((part, place))

    def _found(self, stated: PlacedState) -> Iterator[tuple[str, str, Place | None]]:
        """Yield the model's name of each tensor, the file's, and its place where it is a part."""
        blocks = {block for block in stated.listed if block not in stated.places}
        for full in self._file.keys():  # noqa: SIM118 (it is no dict)
            block, _, key = full.rpartition("/")
            name, slices = split_block(block) if block in blocks else (block, None)
            place = stated.places.get(name)
            if place is None:
                yield full, full, None
                continue
            shape = tuple(self._file.get_slice(full).get_shape())
            own = self._shapes[place.name]
            if shape == place.shape and shape:
                yield f"{place.name}/{key}", full, place
            elif not shape or shape == (1,):
                region = place.part(parsed(slices, place.shape))
                yield f"{spelled(place.name, region, own)}/{key}", full, None
            else:
                raise ManifestError(
                    f"optimizer_state: '{full}' is {shape} and '{name}' {place.shape}: how it lies "
                    f"in '{place.name}' is not known; leave the state behind (surgeon apply "
                    "--optimizer none)"
                )

    def keys(self) -> list[str]:
        """Return the tensors' names."""
        return list(self._parts)

    def get_slice(self, name: str) -> _Slice:
        """Return what a tensor's parts are read from."""
        return _Slice(self.get_tensor(name))

    def get_tensor(self, name: str) -> Tensor:
        """Return a tensor, zero where the file says nothing of it."""
        parts = self._parts[name]
        if len(parts) == 1 and parts[0][1] is None:
            value: Tensor = self._file.get_tensor(parts[0][0])
            return value
        if self._last and self._last[0] == name:
            return self._last[1]
        made: Tensor | None = None
        for full, place in parts:
            assert place is not None
            value = self._file.get_tensor(full)
            if made is None:
                made = torch.zeros(self._shapes[place.name], dtype=value.dtype)
            kept = [dim for dim in place.dims if dim is not None]
            there = made[tuple(slice(*side) for side in place.region)]
            order = [*kept, *(dim for dim in range(made.ndim) if dim not in kept)]
            own = there.permute(order)
            own.copy_(value.reshape(own.shape))
        assert made is not None
        self._last = name, made
        return made


def placed(file: Any, stated: object, live: Live) -> Any:
    """Return a file's tensors by the names that the model has."""
    return PlacedTensors(file, stated, live) if isinstance(stated, PlacedState) else file
