"""The state of the earlier run's optimizer, as it came through the surgery.

It is read by name and region, and never through the optimizer's own load_state_dict, which checks
no shapes, restores the old learning rates, and goes by the order of parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from surgeon.base.files import sha256_of
from surgeon.base.regions import Region, remainder, spelled, whole, without
from surgeon.manifest.model import Group, Json, Manifest, StateFile
from surgeon.training.construct import optimizer_of
from surgeon.training.cover import Block, ResolvedStage, blocks_of
from surgeon.training.errors import ManifestError
from surgeon.training.held import Held, State, hold
from surgeon.training.live import Live
from surgeon.training.placed_state import placed
from surgeon.training.sharded import alike, index, owned, within

# The keys and values of what is kept once per block.
Scalars = tuple[tuple[str, float], ...]
_APPLY_AGAIN = "apply the recipe again, or let the stage reset the state"


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer that is to go on with a state: its class, arguments and group."""

    optimizer: type[Optimizer]
    args: Json
    group: Group


@dataclass(frozen=True)
class OpenState:
    """An open file of state: which regions of which parameters it is for, and its tensors.

    `keys` are those of what is kept, by parameter, or by block such as `fc.weight[0:7]`.
    """

    name: str
    regions: Mapping[str, Sequence[Region]]
    keys: Mapping[str, Sequence[str]]
    tensors: Any

    def earlier(
        self, name: str, parameter: nn.Parameter, since: Sequence[Region], kind: OptimizerSettings
    ) -> Iterator[tuple[Held, State]]:
        """Yield what an optimizer would hold of a parameter, each part with its state.

        What was trained `since` is left out. Raises ManifestError where the file does not have
        what the optimizer keeps, or has it in another shape.
        """
        for region, scalars in self._parts(name, parameter):
            pieces = [region]
            for taken in since:
                pieces = [part for piece in pieces for part in without(piece, taken)]
            for piece in pieces:
                held = Held(name, piece, parameter)
                yield held, self._state(held, {**self._own_keys(name), **scalars}, kind)

    def require_kind(self, kind: OptimizerSettings, live: Live) -> None:
        """Raise ManifestError where the optimizer keeps other things than the file has."""
        seen: set[frozenset[str]] = set()
        for name, regions in self.regions.items():
            blocks = [spelled(name, region, live.parameters[name].shape) for region in regions]
            keys = frozenset(key for owner in (name, *blocks) for key in self.keys.get(owner, ()))
            if keys not in seen:
                seen.add(keys)
                held = Held(name, whole(live.parameters[name].shape), live.parameters[name])
                self._require_keys(held, made_state(held, kind), keys, kind)

    def _own_keys(self, owner: str) -> dict[str, str]:
        return {key: f"{owner}/{key}" for key in self.keys.get(owner, ())}

    def _parts(
        self, name: str, parameter: nn.Parameter
    ) -> Iterator[tuple[Region, Mapping[str, str]]]:
        """Yield the regions with state, and the names of what each has of its own.

        A parameter that was put together from several has a step count for each. Where those are
        equal it is one again: an optimizer is faster with few tensors.
        """
        shape = parameter.shape
        equal: dict[Scalars, list[Region]] = {}
        own: dict[Scalars, Mapping[str, str]] = {}
        for region in self.regions.get(name, ()):
            block = spelled(name, region, shape)
            names = self._own_keys(block) if block != name else {}
            values = tuple((k, self.tensors.get_tensor(full).item()) for k, full in names.items())
            equal.setdefault(values, []).append(region)
            own.setdefault(values, names)
        for values, regions in equal.items():
            fewer = remainder(shape, remainder(shape, regions))
            for region in fewer if len(fewer) < len(regions) else regions:
                yield region, own[values]

    def _state(self, held: Held, names: Mapping[str, str], kind: OptimizerSettings) -> State:
        """Return the state that the optimizer itself makes, with the saved values in it."""
        state = made_state(held, kind)
        self._require_keys(held, state, names.keys(), kind)
        for key, fresh in state.items():
            value = self._value(held, names[key])
            if not isinstance(fresh, Tensor):
                state[key] = value.item()
            elif fresh.shape != value.shape or not self._is_cut(held, names[key]):
                raise ManifestError(
                    f"optimizer_state: '{names[key]}' is {tuple(value.shape)} in {self.name} for "
                    f"{_spelled(held)}, and {kind.optimizer.__name__} keeps {tuple(fresh.shape)}; "
                    f"{_APPLY_AGAIN}"
                )
            else:
                with torch.no_grad():
                    fresh.copy_(value)  # keeps dtype, device and strides
        return state

    def _require_keys(
        self, held: Held, state: State, keys: Collection[str], kind: OptimizerSettings
    ) -> None:
        if missing := [key for key in state if key not in keys]:
            raise ManifestError(
                f"optimizer_state: {kind.optimizer.__name__} keeps {', '.join(map(repr, missing))} "
                f"of '{held.name}', and {self.name} has {', '.join(map(repr, keys)) or 'nothing'}; "
                "take the optimizer and the settings of the earlier run, or leave its state "
                "behind (surgeon apply --optimizer none)"
            )

    def _value(self, held: Held, name: str) -> Tensor:
        """Read a tensor: of one that is as large as the parameter, this process's part."""
        shape = tuple(held.parameter.shape)
        part = self.tensors.get_slice(name)
        stored = tuple(part.get_shape())
        if stored != shape or not shape:
            value: Tensor = self.tensors.get_tensor(name)
            return value
        here = within(held.region, owned(held.name, held.parameter))
        return alike(part[index(here, whole(shape))], held.region, held.parameter)

    def _is_cut(self, held: Held, name: str) -> bool:
        """Say whether a tensor of the shape of a block is it: not by chance, as a wrong one may."""
        shape = tuple(held.parameter.shape)
        is_part = held.region != whole(shape)
        return not is_part or self.tensors.get_slice(name).get_shape() in (list(shape), [])


def _spelled(held: Held) -> str:
    return f"'{spelled(held.name, held.region, held.parameter.shape)}'"


def made_state(held: Held, kind: OptimizerSettings) -> State:
    """Return what an optimizer keeps of a block after a step on zeros: its keys and shapes."""
    like = hold(Block(held.name, held.region), held.parameter, {}).parameter
    probe = nn.Parameter(torch.zeros_like(like))
    probe.grad = torch.zeros_like(probe)
    members = [Held(held.name, held.region, probe)]
    optimizer = optimizer_of(kind.optimizer, kind.args, [(kind.group, members)])
    try:
        optimizer.step()
    except Exception as error:  # whatever an optimizer of any library needs for a step
        raise ManifestError(
            f"optimizer_state: {kind.optimizer.__name__} cannot take up a saved state: {error}"
        ) from error
    return {key: value for key, value in optimizer.state[probe].items() if value is not None}


def of_run(
    manifest: Manifest, live: Live, optimizer: type[Optimizer], args: Json
) -> OpenState | None:
    """Open the file of state that the manifest names, if it names one and a stage carries state.

    Raises ManifestError where it is not that file, or of an optimizer that keeps other things.
    """
    stated = manifest.optimizer_state
    if stated is None or all(stage.optimizer_state == "reset" for stage in manifest.stages):
        return None
    saved = _opened(stated, manifest, live)
    saved.require_kind(
        OptimizerSettings(optimizer, args, Group(name="default", params=(), settings={})), live
    )
    return saved


def trained_before(
    stage: str, stages: Mapping[str, ResolvedStage], begun: Collection[str]
) -> Mapping[str, Sequence[Region]]:
    """Return what the stages before one train, by parameter.

    Those are the ones in front of it in the manifest, and those that this process has begun.
    """
    order = list(stages)
    since: dict[str, list[Region]] = {}
    for name in {*order[: order.index(stage)], *begun}:
        for _, blocks in stages[name].groups:
            for block in blocks:
                since.setdefault(block.name, []).append(block.region)
    return since


def _opened(stated: StateFile, manifest: Manifest, live: Live) -> OpenState:
    path = manifest.path.parent / stated.file
    try:
        if sha256_of([path]) != stated.sha256:
            raise ManifestError(
                f"optimizer_state: {path} is not the file that the manifest was written for; "
                f"{_APPLY_AGAIN}"
            )
        tensors: Any = placed(safe_open(path, "pt"), stated, live)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ManifestError(
            f"optimizer_state: {path} cannot be read: {reason}; {_APPLY_AGAIN}"
        ) from None
    except (SafetensorError, ValueError) as error:
        raise ManifestError(f"optimizer_state: {path}: {error}") from None
    regions: dict[str, list[Region]] = {}
    for part in blocks_of(stated.parameters, "optimizer_state", manifest, live):
        regions.setdefault(part.name, []).append(part.region)
    keys: dict[str, list[str]] = {}
    for name in tensors.keys():  # noqa: SIM118 (it is no dict)
        owner, _, key = name.rpartition("/")
        keys.setdefault(owner, []).append(key)
    return OpenState(path.name, regions, keys, tensors)
