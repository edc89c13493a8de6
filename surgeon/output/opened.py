"""A recipe with its checkpoints open: all that is known before the output is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.draft import Tensors
from surgeon.formats import Checkpoint
from surgeon.manifest.build import Training
from surgeon.model_folder.files import FolderFiles
from surgeon.recipe import Recipe
from surgeon.recipe.plan import Plan

if TYPE_CHECKING:
    from surgeon.manifest.optimizer_state import OptimizerState


@dataclass(frozen=True)
class Opened:
    """A recipe with its checkpoints, open, and the plan that they make.

    `state_beside` is an optimizer's state that lies beside the input and that nobody asked for.
    `allow_code` lets modelling code of the input's folder be run, where `match` asks for its class.
    """

    recipe: Recipe
    input: Checkpoint
    models: Mapping[str, Checkpoint]
    outside: Mapping[str, Checkpoint]
    plan: Plan
    stages: Training
    state: OptimizerState | None
    state_notes: tuple[str, ...]
    folder_files: FolderFiles
    state_beside: Path | None = None
    allow_code: bool = False

    @property
    def checkpoints(self) -> dict[str, Checkpoint]:
        """Every checkpoint by the name that notes and the manifest call it by."""
        return {**self.outside, "input": self.input, **self.models}

    @property
    def written_tensors(self) -> Tensors:
        """Everything that is written: the model's tensors, and those of its optimizer's state."""
        return {**self.plan.tensors, **(self.state.tensors if self.state else {})}

    @property
    def notes(self) -> list[str]:
        """Everything that the user should know about the inputs and the steps."""
        about = [("input", self.input), *self.models.items(), *self.outside.items()]
        notes = [f"{name}: {note}" for name, opened in about for note in opened.notes]
        notes += [f"{step.op}: {note}" for step in self.plan.steps for note in step.notes]
        return notes + list(self.state_notes)
