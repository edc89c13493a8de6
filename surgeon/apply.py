"""The story of a recipe: open, plan, write, manifest."""

from __future__ import annotations

import os
import shutil
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon import manifest, plan, publish
from surgeon.draft import Outside
from surgeon.errors import PlanError, UsageError, WriteError
from surgeon.execute import Executor, Options, Written
from surgeon.formats import Checkpoint, open_checkpoint
from surgeon.formats.checkpoint import Record
from surgeon.layout import OutputFile, index_of, lay_out, lay_out_shards
from surgeon.lazy import Stored, forms
from surgeon.plan import Plan
from surgeon.recipe import Recipe, read_json
from surgeon.units import parse_size

DEFAULT_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class Opened:
    """A recipe with its checkpoints, open, and the plan that they make."""

    recipe: Recipe
    input: Checkpoint
    models: Mapping[str, Checkpoint]
    plan: Plan
    stages: manifest.Training

    @property
    def notes(self) -> list[str]:
        """Everything that the user should know about the inputs and the steps."""
        about = [("input", self.input), *self.models.items()]
        notes = [f"{name}: {note}" for name, opened in about for note in opened.notes]
        return notes + [f"{step.op}: {note}" for step in self.plan.steps for note in step.notes]


@dataclass(frozen=True)
class Result:
    """What `apply` wrote, for the report."""

    output: Path
    manifest: Path
    files: tuple[OutputFile, ...]
    written: Written


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
def opened(recipe: Recipe, source: str, locations: Mapping[str, str]) -> Iterator[Opened]:
    """Open all checkpoints of a recipe and plan it; reads headers only."""
    with ExitStack() as stack:

        def open_one(location: str) -> Checkpoint:
            checkpoint = open_checkpoint(location)
            stack.callback(checkpoint.close)
            return checkpoint

        checkpoint = open_one(source)
        models = {name: open_one(location) for name, location in locations.items()}
        outside = Outside(
            open_model=lambda location: open_one(_beside(recipe, location)).tensors,
            read_json=lambda location: read_json(Path(_beside(recipe, location)), location),
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
        yield Opened(recipe, checkpoint, models, made, stages)


def layouts(opened: Opened, output: Path | None) -> list[OutputFile]:
    """Return the layout of every file that an output has; raises UsageError on a contradiction."""
    made, wanted = opened.plan, opened.recipe.output.get("shard_size")
    if output is None or _is_file(output):
        if output is not None and wanted is not None:
            raise UsageError(
                f"{opened.recipe.label}: output.shard_size is for model folders, and {output} is "
                "one file"
            )
        return [lay_out(made.tensors, made.metadata, output.name if output else "out.safetensors")]
    # transformers refuses a file without this entry, which its own save_pretrained writes.
    metadata = {"format": "pt", **made.metadata}
    return lay_out_shards(made.tensors, metadata, parse_size(wanted or DEFAULT_SHARD_SIZE))


def write(opened: Opened, output: Path, options: Options, *, force: bool) -> Result:
    """Write the planned output and its manifest; raises before anything appears at `output`."""
    _require_free(output, force)
    files = layouts(opened, output)
    executor = Executor(options)
    notes = executor.check(opened.plan.checks)
    with publish.writing(output):
        if _is_file(output):
            path, written = _write_file(opened, output, files, executor)
        else:
            path, written = _write_folder(opened, output, files, executor)
    written.notes = notes
    return Result(output, path, tuple(files), written)


def _is_file(output: Path) -> bool:
    return output.suffix == ".safetensors"


def _require_free(output: Path, force: bool) -> None:
    """Raise where the output exists without `force`, or is of the wrong kind."""
    beside = output.with_suffix(".manifest.json")
    for path in (output, beside) if _is_file(output) else (output,):
        if not path.exists() and not path.is_symlink():
            continue
        if not force:
            raise UsageError(f"{path}: exists; --force replaces it")
        if path.is_dir() == _is_file(output):
            kind = "a folder" if path.is_dir() else "a file"
            raise UsageError(f"{path}: is {kind} and cannot be replaced by the other")
    if not output.absolute().parent.is_dir():
        raise WriteError(f"{output}: there is no folder {output.absolute().parent}")


def _write_file(
    opened: Opened, output: Path, files: Sequence[OutputFile], executor: Executor
) -> tuple[Path, Written]:
    beside = output.with_suffix(".manifest.json")
    with publish.file(output) as (descriptor, publish_output):
        written = executor.write({descriptor: files[0]})
        executor.verify_records(_used_records(opened), files, written.checksums)
        with publish.file(beside) as (beside_descriptor, publish_manifest):
            text = manifest.text(_manifest(opened, output.name, files, written))
            _write_text(beside_descriptor, text)
            os.fsync(beside_descriptor)  # whatever can fail does so before the output is replaced
            publish_output()
            publish_manifest()
    return beside, written


def _write_folder(
    opened: Opened, output: Path, files: Sequence[OutputFile], executor: Executor
) -> tuple[Path, Written]:
    with publish.folder(output) as (folder, publish_folder), ExitStack() as stack:
        _carry_along(opened.input, folder)
        descriptors = {}
        for file in files:
            handle = stack.enter_context((folder / file.name).open("xb+", buffering=0))
            descriptors[handle.fileno()] = file
        written = executor.write(descriptors)
        executor.verify_records(_used_records(opened), files, written.checksums)
        weights = files[0].name
        if len(files) > 1:
            weights = "model.safetensors.index.json"
            (folder / weights).write_text(index_of(files), "utf-8")
        text = manifest.text(_manifest(opened, weights, files, written))
        (folder / "surgeon.manifest.json").write_text(text, "utf-8", "backslashreplace")
        publish_folder()
    return output / "surgeon.manifest.json", written


def _write_text(descriptor: int, text: str) -> None:
    # A file's name may hold bytes that are not UTF-8; what replaces them is JSON's escape of them.
    with open(descriptor, "w", -1, "utf-8", "backslashreplace", closefd=False) as handle:
        handle.write(text)


def _manifest(
    opened: Opened, file: str, files: Sequence[OutputFile], written: Written
) -> dict[str, Any]:
    return manifest.build(
        opened.recipe,
        opened.plan,
        {"input": opened.input, **opened.models},
        opened.stages,
        file=file,
        files=files,
        checksums=written.checksums,
    )


def _used_records(opened: Opened) -> list[Record]:
    """Return the byte runs with stated checksums that some written tensor is made of."""
    used: dict[int, list[int]] = {}
    for tensor in opened.plan.tensors.values():
        for form in forms(tensor):
            if isinstance(form, Stored):
                used.setdefault(id(form.file), []).append(form.offset)
    starts = {file: sorted(offsets) for file, offsets in used.items()}

    def is_used(record: Record) -> bool:
        offsets = starts.get(id(record.file), [])
        first = bisect_left(offsets, record.offset)
        return first < len(offsets) and offsets[first] < record.offset + record.size_bytes

    checkpoints = (opened.input, *opened.models.values())
    return [
        record for opened_one in checkpoints for record in opened_one.records if is_used(record)
    ]


def _carry_along(source: Checkpoint, folder: Path) -> None:
    """Copy what an input folder holds besides its weights, such as config and tokenizer."""
    if source.folder is None:
        return
    weights = {path.name for path in source.weight_files} | {"surgeon.manifest.json"}
    for item in sorted(source.folder.iterdir()):
        if item.name in weights or item.name.startswith("."):
            continue
        if item.is_dir():
            shutil.copytree(item, folder / item.name)
        else:
            shutil.copyfile(item, folder / item.name)
