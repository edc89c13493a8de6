"""Whether an optimizer's state goes along with a surgery, and which."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.base.errors import PlanError
from surgeon.draft import Tensors
from surgeon.formats import Checkpoint
from surgeon.manifest.model import Stage
from surgeon.manifest.names import optimizer_of
from surgeon.recipe import Recipe

if TYPE_CHECKING:
    from surgeon.manifest.optimizer_state import OptimizerState


@dataclass(frozen=True)
class Carried:
    """The state that goes along, if any; `left_beside` is one that nobody asked for."""

    state: OptimizerState | None
    notes: tuple[str, ...]
    left_beside: Path | None


def carry(
    recipe: Recipe,
    stages: Sequence[Stage],
    optimizer: str | None,
    checkpoint: Checkpoint,
    planned: Tensors,
    stack: ExitStack,
) -> Carried:
    """Find the state that was given or lies with the input; raises PlanError where one is missing.

    What is opened for it is closed with the stack.
    """
    first = stages[0]
    is_needed = first.optimizer_state == "carry"
    is_used = any(stage.optimizer_state == "carry" for stage in stages)
    state: OptimizerState | None = None
    notes: list[str] = []
    if optimizer is not None or checkpoint.contents is not None:
        from surgeon.manifest import optimizer_state  # most runs have none

        state, notes = optimizer_state.of_run(
            optimizer, checkpoint, planned, stack, is_used=is_used, is_needed=is_needed
        )
    if is_needed and state is None:
        raise PlanError(
            f"{recipe.label}: training: stage '{first.name}' carries an optimizer's state, "
            "and there is none; --optimizer FILE says where it is"
        )
    beside = optimizer_of(checkpoint.path)
    if not beside.exists() or optimizer is not None or state is not None:
        return Carried(state, tuple(notes), None)
    notes = [*notes, f"{beside} is not carried; --optimizer {beside} does that"]
    return Carried(state, tuple(notes), beside)
