"""The story of a recipe: open, plan, write, manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.base.errors import PlanError, UsageError, WriteError, listed
from surgeon.base.units import parse_size
from surgeon.draft import ADAPTER_WEIGHTS, Outside, Tensors
from surgeon.formats import Checkpoint, open_checkpoint
from surgeon.formats.checkpoint import Record
from surgeon.manifest import build as manifest
from surgeon.model_folder.files import Besides, besides, config_of
from surgeon.ops.shared import torch_module
from surgeon.output import publish
from surgeon.output.execute import COPY_BUFFER, Executor, Options, Written
from surgeon.output.layout import OutputFile, index_of, lay_out, lay_out_shards
from surgeon.output.linking import untouched
from surgeon.recipe import Recipe, plan, read_json
from surgeon.recipe.plan import Plan

if TYPE_CHECKING:
    from surgeon.manifest.optimizer_state import OptimizerState

DEFAULT_SHARD_SIZE = "5GB"
_FOLDER_MANIFEST = "surgeon.manifest.json"
_FOLDER_OPTIMIZER = "surgeon.optimizer.safetensors"


@dataclass(frozen=True)
class Opened:
    """A recipe with its checkpoints, open, and the plan that they make.

    `state_beside` is an optimizer's state that lies beside the input and that nobody asked for.
    """

    recipe: Recipe
    input: Checkpoint
    models: Mapping[str, Checkpoint]
    outside: Mapping[str, Checkpoint]
    plan: Plan
    stages: manifest.Training
    state: OptimizerState | None
    state_notes: tuple[str, ...]
    besides: Besides
    state_beside: Path | None = None

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


@dataclass(frozen=True)
class Result:
    """What `apply` wrote, for the report."""

    output: Path
    manifest: Path
    files: tuple[OutputFile, ...]
    written: Written
    optimizer: Path | None
    besides: Besides | None


def bind_models(recipe: Recipe, extra: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
    """Return {model name: location} from the recipe and the command line.

    Raises UsageError where a model that the recipe leaves open is not given.
    """
    bound: dict[str, str | None] = {}
    for name, location in recipe.models.items():
        bound[name] = _beside(recipe, location) if location is not None else None
    for name, location in named.items():
        bound[name] = location
    waiting = [name for name, location in bound.items() if location is None]
    for number, location in enumerate(extra):
        name = waiting[number] if number < len(waiting) else str(number - len(waiting) + 1)
        if bound.get(name) is not None:
            raise UsageError(f"model '{name}' is given twice")
        bound[name] = location
    missing = [name for name, location in bound.items() if location is None]
    if missing:
        raise UsageError(
            *(f"model '{name}' must be given: --model {name}=PATH" for name in missing)
        )
    return {name: location for name, location in bound.items() if location is not None}


def _beside(recipe: Recipe, location: str) -> str:
    """Return where a path of the recipe leads: from the recipe's folder, else from here."""
    place, _, inside = location.partition("#")
    for path in (recipe.folder / place, Path(place)):
        if os.path.exists(path):  # noqa: PTH110 (Path.exists raises for names that are too long)
            return f"{path}#{inside}" if inside else str(path)
    return location


@contextmanager
def opened(
    recipe: Recipe,
    source: str,
    locations: Mapping[str, str],
    optimizer: str | None = None,
    *,
    allow_code: bool = False,
) -> Iterator[Opened]:
    """Open all checkpoints of a recipe and plan it; reads headers only.

    Without `allow_code`, a recipe whose `match` names a module is refused.
    `optimizer` is where the state of the input's optimizer is. Without it, a state that the input
    holds beside the model is taken where a stage carries it; "none" leaves that behind.
    """
    with ExitStack() as stack:

        def open_one(location: str) -> Checkpoint:
            checkpoint = open_checkpoint(location)
            stack.callback(checkpoint.close)
            return checkpoint

        checkpoint = open_one(source)
        models = {name: open_one(location) for name, location in locations.items()}
        others: dict[str, Checkpoint] = {}

        def open_outside(location: str) -> Tensors:
            if location not in others:
                others[location] = open_one(_beside(recipe, location))
            return others[location].tensors

        outside = Outside(
            open_model=open_outside,
            read_json=lambda location: read_json(Path(_beside(recipe, location)), location),
            build_module=torch_module.build if allow_code else torch_module.refuse,
            read_config=lambda name: config_of(models[name] if name else checkpoint),
            location=lambda name: locations.get(name, ""),
        )
        made = plan.make(
            recipe,
            checkpoint.tensors,
            {name: model.tensors for name, model in models.items()},
            outside,
            checkpoint.metadata,
        )
        if not made.tensors:
            raise PlanError(f"{recipe.label}: no tensor is left to write")
        stages = manifest.resolve(recipe, made, checkpoint, models)
        first = stages.stages[0]
        is_needed = first["optimizer_state"] == "carry"
        is_used = any(stage["optimizer_state"] == "carry" for stage in stages.stages)
        state: OptimizerState | None = None
        notes: list[str] = []
        if optimizer is not None or checkpoint.contents is not None:
            from surgeon.manifest import optimizer_state  # most runs have none

            state, notes = optimizer_state.of_run(
                optimizer, checkpoint, made.tensors, stack, is_used=is_used, is_needed=is_needed
            )
        if is_needed and state is None:
            raise PlanError(
                f"{recipe.label}: training: stage '{first['name']}' carries an optimizer's state, "
                "and there is none; --optimizer FILE says where it is"
            )
        beside: Path | None = _optimizer_of(checkpoint.path)
        if beside and beside.exists() and optimizer is None and state is None:
            notes = [*notes, f"{beside} is not carried; --optimizer {beside} does that"]
        else:
            beside = None
        yield Opened(
            recipe, checkpoint, models, others, made, stages, state, tuple(notes),
            besides(recipe, checkpoint, made), beside,
        )  # fmt: skip


def layouts(opened: Opened, output: Path | None, *, link: bool = False) -> list[OutputFile]:
    """Return the layout of every file that an output has; raises UsageError on a contradiction.

    With `link`, files of the input that the recipe leaves as they are stay whole.
    """
    made, wanted = opened.plan, opened.recipe.output.get("shard_size")
    if link and "metadata" in opened.recipe.output:
        raise UsageError(
            f"{opened.recipe.label}: output.metadata goes into every file, and --link leaves files "
            "as they are"
        )
    if output is None or _is_file(output):
        for key in ("shard_size", "config"):
            if output is not None and key in opened.recipe.output:
                raise UsageError(
                    f"{opened.recipe.label}: output.{key} is for model folders, and {output} is "
                    "one file"
                )
        if link:
            raise UsageError(f"--link is for model folders, and {output} is one file")
        return [lay_out(made.tensors, made.metadata, output.name if output else "out.safetensors")]
    # transformers refuses a file without this entry, which its own save_pretrained writes.
    metadata = {"format": "pt", **made.metadata}
    shard_size = parse_size(wanted or DEFAULT_SHARD_SIZE)
    linked = untouched(opened.input, made.tensors) if link else []
    homes = opened.input.shards if link else None
    return lay_out_shards(made.tensors, metadata, shard_size, _weights_file(opened), linked, homes)


def write(
    opened: Opened, output: Path, options: Options, *, force: bool, link: bool = False
) -> Result:
    """Write the planned output and its manifest; raises before anything appears at `output`."""
    _require_free(output, force)
    _require_state_is_safe(opened, output)
    files = layouts(opened, output, link=link)
    if not _is_file(output):
        opened.besides.check()
    executor = Executor(options)
    notes = executor.check(opened.plan.checks, sum(file.size_bytes for file in files))
    with publish.writing(output):
        if _is_file(output):
            path, written = _write_file(opened, output, files, executor)
        else:
            path, written = _write_folder(opened, output, files, executor)
    if _is_file(output) and opened.plan.sidecars:
        files_beside = ", ".join(opened.plan.sidecars)
        notes.append(f"{output} is one file; only a folder as output gets {files_beside}")
    state = _optimizer_of(output) if opened.state else None
    folder = None if _is_file(output) else opened.besides
    written.notes += notes + (folder.notes if folder else [])
    return Result(output, path, tuple(files), written, state, folder)


def _weights_file(opened: Opened) -> str:
    """Return what a folder's weights are called: an adapter's stay an adapter's."""
    source = opened.input
    if source.folder and source.weight_files[0].stem == Path(ADAPTER_WEIGHTS).stem:
        return ADAPTER_WEIGHTS
    return opened.plan.weights_file


def _is_file(output: Path) -> bool:
    return output.suffix == ".safetensors"


def _optimizer_of(output: Path) -> Path:
    """Return where the optimizer's state lies that belongs to an output."""
    if _is_file(output):
        return output.with_suffix(".optimizer.safetensors")
    return output / _FOLDER_OPTIMIZER


def _require_free(output: Path, force: bool) -> None:
    """Raise where the output exists without `force`, or is of the wrong kind.

    An optimizer's state that lies beside it counts: where this run has none, it goes.
    """
    beside = [output.with_suffix(".manifest.json"), _optimizer_of(output)]
    for path in (output, *beside) if _is_file(output) else (output,):
        if not path.exists() and not path.is_symlink():
            continue
        if not force:
            raise UsageError(f"{path}: exists; --force replaces it")
        if path.is_dir() == _is_file(output):
            kind = "a folder" if path.is_dir() else "a file"
            raise UsageError(f"{path}: is {kind} and cannot be replaced by the other")
    if not output.absolute().parent.is_dir():
        raise WriteError(f"{output}: there is no folder {output.absolute().parent}")


def _require_state_is_safe(opened: Opened, output: Path) -> None:
    """Raise where the output replaces an optimizer's state that the user may still need."""
    there, ours = opened.state_beside, _optimizer_of(output)
    if there is not None and opened.state is None and ours.exists() and there.samefile(ours):
        raise UsageError(
            f"{there}: is the state of the input's optimizer, and would go with the input; "
            f"--optimizer {there} carries it, --optimizer none leaves it behind"
        )


def _write_file(
    opened: Opened, output: Path, files: Sequence[OutputFile], executor: Executor
) -> tuple[Path, Written]:
    beside = output.with_suffix(".manifest.json")
    with ExitStack() as stack:
        descriptor, publish_output = stack.enter_context(publish.file(output))
        written = executor.write({descriptor: files[0]})
        executor.verify_records(_records(opened), files, written.checksums)
        publishing, state = [publish_output], None
        if opened.state:
            path = _optimizer_of(output)
            descriptor, publish_state = stack.enter_context(publish.file(path))
            state = _write_state(opened.state, path.name, descriptor, executor)
            publishing.insert(0, publish_state)
        descriptor, publish_manifest = stack.enter_context(publish.file(beside))
        _write_text(
            descriptor, manifest.text(_manifest(opened, output.name, files, written, state))
        )
        os.fsync(descriptor)  # whatever can fail does so before the output is replaced
        for publish_one in [*publishing, publish_manifest]:
            publish_one()
        # Last: a run that is killed before has lost nothing, and the new manifest names no state.
        if not opened.state:
            publish.remove(_optimizer_of(output))
    return beside, written


def _write_folder(
    opened: Opened, output: Path, files: Sequence[OutputFile], executor: Executor
) -> tuple[Path, Written]:
    with publish.folder(output) as (folder, publish_folder), ExitStack() as stack:
        opened.besides.write(folder, {_FOLDER_MANIFEST, _FOLDER_OPTIMIZER})
        descriptors = {}
        copied = []
        for file in files:
            path = folder / file.name
            if file.source and publish.link(file.source, path):
                handle = stack.enter_context(path.open("rb", buffering=0))
            else:
                copied += [file.name] if file.source else []
                file = replace(file, source=None)
                handle = stack.enter_context(path.open("xb+", buffering=0))
            descriptors[handle.fileno()] = file
        written = executor.write(descriptors)
        if copied:
            written.notes.append(f"cannot be linked here, so copied: {listed(copied)}")
        executor.verify_records(_records(opened), files, written.checksums)
        weights, state = files[0].name, None
        if len(files) > 1:
            weights = f"{_weights_file(opened)}.index.json"
            (folder / weights).write_text(index_of(files), "utf-8")
        if opened.state:
            handle = stack.enter_context((folder / _FOLDER_OPTIMIZER).open("xb+", buffering=0))
            state = _write_state(opened.state, _FOLDER_OPTIMIZER, handle.fileno(), executor)
        text = manifest.text(_manifest(opened, weights, files, written, state))
        (folder / _FOLDER_MANIFEST).write_text(text, "utf-8", "backslashreplace")
        publish_folder()
    return output / _FOLDER_MANIFEST, written


def _write_state(
    state: OptimizerState, name: str, descriptor: int, executor: Executor
) -> dict[str, Any]:
    """Write the optimizer's state; return what the manifest says of it."""
    file = state.layout(name)
    written = executor.write({descriptor: file})
    executor.verify_records(state.records, [file], written.checksums)
    digest = hashlib.sha256()
    for start in range(0, file.size_bytes, COPY_BUFFER):
        digest.update(os.pread(descriptor, COPY_BUFFER, start))
    return {"file": name, "sha256": digest.hexdigest(), "parameters": list(state.parameters)}


def _write_text(descriptor: int, text: str) -> None:
    # A file's name may hold bytes that are not UTF-8; what replaces them is JSON's escape of them.
    with open(descriptor, "w", -1, "utf-8", "backslashreplace", closefd=False) as handle:
        handle.write(text)


def _manifest(
    opened: Opened,
    file: str,
    files: Sequence[OutputFile],
    written: Written,
    state: dict[str, Any] | None,
) -> dict[str, Any]:
    return manifest.build(
        opened.recipe,
        opened.plan,
        {**opened.outside, "input": opened.input, **opened.models},
        opened.stages,
        file=file,
        files=files,
        checksums=written.checksums,
        optimizer_state=state,
    )


def _records(opened: Opened) -> list[Record]:
    checkpoints = (opened.input, *opened.models.values(), *opened.outside.values())
    return [record for checkpoint in checkpoints for record in checkpoint.records]
