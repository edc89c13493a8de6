"""Whether an optimizer's state goes along with a surgery, and which."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.base.errors import PlanError
from surgeon.draft import Tensors
from surgeon.formats import Checkpoint
from surgeon.manifest.build import Training
from surgeon.manifest.names import state_beside
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
    training: Training,
    optimizer: str | None,
    checkpoint: Checkpoint,
    planned: Tensors,
    stack: ExitStack,
    *,
    order: str | None = None,
) -> Carried:
    """Find the state that was given or lies with the input; raises PlanError where one is missing.

    What is opened for it is closed with the stack.
    """
    stages = training.stages
    first = stages[0]
    is_needed = first.optimizer_state == "carry"
    is_used = any(stage.optimizer_state == "carry" for stage in stages)
    state: OptimizerState | None = None
    notes: list[str] = list(training.notes)
    if optimizer is not None or order or checkpoint.contents is not None:
        from surgeon.manifest import optimizer_state  # most runs have none

        state, about = optimizer_state.of_run(
            optimizer, checkpoint, planned, stack, is_used=is_used, is_needed=is_needed,
            order=order,
        )  # fmt: skip
        notes += about
    beside = state_beside(checkpoint.path)
    if is_needed and state is None:
        lies = f"none but {beside}, which nobody asked for; --optimizer {beside} takes it along"
        raise PlanError(
            f"{recipe.label}: training: stage '{first.name}' carries an optimizer's state, and "
            f"there is {lies if beside else 'none; --optimizer FILE says where it is'}"
        )
    if not beside or optimizer is not None or state is not None:
        return Carried(state, tuple(notes), None)
    notes = [*notes, f"{beside} is not carried; --optimizer {beside} does that"]
    return Carried(state, tuple(notes), beside)
