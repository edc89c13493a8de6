"""The story of a recipe: open, plan, write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from surgeon.base.collection import collection_paused, spared_from_collection
from surgeon.base.errors import PlanError
from surgeon.draft import Tensors
from surgeon.formats import Checkpoint, open_checkpoint
from surgeon.formats.remains import settled
from surgeon.manifest import build as manifest
from surgeon.manifest.carry import carry
from surgeon.model_folder.carried import Carry
from surgeon.model_folder.files import folder_files
from surgeon.model_folder.outside import outside_of
from surgeon.output.execute import Options
from surgeon.output.opened import Opened
from surgeon.output.plan import OutputPlan, assumed_output, output_at
from surgeon.output.publish import writing
from surgeon.output.replacing import with_replaced
from surgeon.output.write import Result
from surgeon.output.write import write as write_planned
from surgeon.recipe import Recipe, plan
from surgeon.recipe.locations import beside_recipe
from surgeon.remote.paths import forget


@contextmanager
def opened(
    recipe: Recipe,
    source: str | Checkpoint,
    locations: Mapping[str, str | Checkpoint],
    optimizer: str | None = None,
    *,
    optimizer_order: str | None = None,
    allow_code: bool = False,
    carry_files: Carry = "small",
) -> Iterator[Opened]:
    """Open all checkpoints of a recipe and plan it; reads headers only.

    Without `allow_code`, a recipe whose `match` names a module, or code of the folder's own, is
    refused. What is open stays open.
    `optimizer` is where the state of the input's optimizer is. Without it, a state that the input
    holds beside the model is taken where a stage carries it; "none" leaves that behind.
    `optimizer_order` says how a state without names is told: "strict", or a JSON list of names.
    `carry_files` says which files besides the weights go along into a folder.
    """
    with ExitStack() as stack:

        def open_one(location: str | Checkpoint) -> Checkpoint:
            if isinstance(location, Checkpoint):
                return location
            checkpoint = open_checkpoint(location)
            stack.callback(checkpoint.close)
            return checkpoint

        checkpoint = open_one(source)
        models = {name: open_one(location) for name, location in locations.items()}
        others: dict[str, Checkpoint] = {}

        def open_outside(location: str) -> Tensors:
            if location not in others:
                others[location] = open_one(beside_recipe(recipe, location))
            return others[location].tensors

        outside = outside_of(
            recipe, checkpoint, models, locations, open_outside, allow_code=allow_code
        )
        theirs = {name: model.tensors for name, model in models.items()}
        planning = stack.enter_context(ExitStack())
        planning.enter_context(collection_paused())
        made = plan.make(recipe, checkpoint.tensors, theirs, outside, checkpoint.metadata)
        if not made.tensors:
            raise PlanError(f"{recipe.label}: no tensor is left to write")
        stages = manifest.resolve(recipe, made, checkpoint, models)
        carried = carry(
            recipe, stages, optimizer, checkpoint, made.tensors, stack, order=optimizer_order
        )
        beside = folder_files(recipe, checkpoint, made, carry_files, models)
        stack.enter_context(spared_from_collection())
        planning.close()
        yield Opened(
            recipe, checkpoint, models, others, made, stages, carried.state, carried.notes,
            beside, carried.left_beside, allow_code,
        )  # fmt: skip


def output_plan(
    made: Opened,
    output: Path | None,
    *,
    force: bool = False,
    force_any: bool = False,
    link: bool = False,
) -> OutputPlan:
    """Return everything that will be written; raises for all that `write` would refuse.

    Without `output`, a single file is assumed, or a folder where the recipe asks for what only a
    folder has; whether that may be written anywhere is left open. `force` lets go what surgeon
    wrote, and the input where it is the output; `force_any` any checkpoint that nothing reads.
    """
    if output is None:
        made.folder_files.check()
        return assumed_output(made).plan(made)
    kind = output_at(output)
    forget(output)
    note = settled(output)
    with writing(output):
        kind.require_free(made, force=force, force_any=force_any)
    with collection_paused():
        planned = kind.plan(made, link=link)
    with writing(output):
        planned = with_replaced(planned, force_any=force_any)
    return replace(planned, notes=(f"{output}: {note}", *planned.notes)) if note else planned


def write(
    made: Opened,
    output: Path,
    options: Options,
    *,
    force: bool = False,
    force_any: bool = False,
    link: bool = False,
) -> Result:
    """Write the output and its manifest; raises before anything appears at `output`."""
    planned = output_plan(made, output, force=force, force_any=force_any, link=link)
    return write_planned(planned, options)
