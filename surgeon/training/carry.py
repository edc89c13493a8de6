"""What a stage takes over: the state of the stage before, or what came through the surgery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from surgeon.base.regions import Region
from surgeon.training.cover import Block, ResolvedStage
from surgeon.training.errors import ManifestError
from surgeon.training.held import Held, State, carried, hold
from surgeon.training.saved_state import OpenState, OptimizerSettings
from surgeon.training.started import Started


@dataclass(frozen=True)
class Before:
    """What there is before a stage starts.

    `started` is the stage that was trained last, `saved` the state from before the surgery, and
    `trained` what any stage before has trained since then, by parameter.
    """

    started: Started | None
    saved: OpenState | None
    trained: Mapping[str, Sequence[Region]]
    is_first: bool


def held_of(
    stage: ResolvedStage,
    blocks: Sequence[Block],
    kind: OptimizerSettings,
    parameters: Mapping[str, nn.Parameter],
    before: Before,
) -> list[Held]:
    """Hold the blocks of a group, with the state that they go on with where the stage carries.

    What no stage before has trained has the state that came through the surgery.
    """
    if stage.stage.optimizer_state == "reset":
        return [hold(block, parameters[block.name], {}) for block in blocks]
    earlier = _of_stage(stage.stage.name, kind, before)
    if before.saved is not None:
        for name in {block.name for block in blocks} & before.saved.regions.keys():
            since = before.trained.get(name, ())
            own = before.saved.earlier(name, parameters[name], since, kind)
            earlier.setdefault(name, []).extend(own)
    return [
        held
        for block in blocks
        for held in carried(block, parameters[block.name], earlier.get(block.name, ()))
    ]


def _of_stage(
    name: str, kind: OptimizerSettings, before: Before
) -> dict[str, list[tuple[Held, State]]]:
    """Return what the stage before held, and the state it has by now, by parameter."""
    found: dict[str, list[tuple[Held, State]]] = {}
    if before.started is None:
        _require_a_source(name, before)
        return found
    optimizer = before.started.optimizer
    if type(optimizer) is not kind.optimizer:
        raise ManifestError(
            f"optimizer_state: 'carry' cannot turn the state of {type(optimizer).__name__} into "
            f"that of {kind.optimizer.__name__}"
        )
    for held in before.started.held:
        state = dict(optimizer.state.get(held.parameter, {}))
        found.setdefault(held.name, []).append((held, state))
    return found


def _require_a_source(name: str, before: Before) -> None:
    if not before.is_first:
        raise ManifestError(
            "optimizer_state: 'carry' goes on with the state of the stage before, and this run has "
            "started none; save run.state_dict() when that stage ends, then here "
            f"run.load_state_dict(SAVED) and run.start('{name}')"
        )
    if before.saved is None:
        raise ManifestError(
            "optimizer_state: 'carry' goes on with the state of the run before the surgery, and "
            "there is none beside the checkpoint; apply the recipe again with --optimizer FILE, or "
            'let the stage "reset" it'
        )
