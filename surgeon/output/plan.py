"""Everything that a run will write, known before the first byte: the OutputPlan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import SurgeonError, UsageError, WriteError
from surgeon.base.units import parse_size
from surgeon.draft import ADAPTER_WEIGHTS
from surgeon.formats.checkpoint import Record
from surgeon.manifest.names import FOLDER_MANIFEST, FOLDER_OPTIMIZER, optimizer_of
from surgeon.model_folder.files import MODEL_CONFIG
from surgeon.output.free import is_input, manifest_at, require_apart, require_replaceable
from surgeon.output.layout import OutputFile, index_of, lay_out, lay_out_shards
from surgeon.output.linking import untouched
from surgeon.output.opened import Opened
from surgeon.remote.paths import require_writable

DEFAULT_SHARD_SIZE = "5GB"
# Suffixes of files that surgeon does not write, and that nobody means a folder by.
_OTHER_FORMATS = {
    ".pt", ".pth", ".ckpt", ".bin", ".jit", ".pkl", ".pickle", ".npz", ".npy", ".h5", ".hdf5",
    ".keras", ".onnx", ".gguf", ".msgpack",
}  # fmt: skip
# What only a model folder has, among the keys of a recipe's `output`.
_FOLDER_KEYS = ("shard_size", "config", "chat_template")


@dataclass(frozen=True)
class OutputPlan:
    """What will be there, file by file, and what has to hold before it is.

    `folder` is where the files go, each by its name; `is_folder` says that they are a model folder,
    which appears as one. `weights` are the model's tensor files, and `checkpoint` the one of them,
    or the index of several, that the manifest is of. `texts` are whole small files, `carried` the
    input's own; `brought` are those that a folder has from surgeon.
    `obsolete` is a state that an earlier run left at the place where this one has none.
    `replaced` are the names that may go from a folder that is there; what else it holds stays.
    """

    opened: Opened
    path: Path
    folder: Path
    is_folder: bool
    weights: tuple[OutputFile, ...]
    checkpoint: str
    state: OutputFile | None = None
    texts: Mapping[str, str] | None = None
    carried: Mapping[str, Path] | None = None
    brought: frozenset[str] = frozenset()
    obsolete: Path | None = None
    replaced: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def tensor_files(self) -> tuple[OutputFile, ...]:
        """Every safetensors file: the weights, then the optimizer's state."""
        return (*self.weights, self.state) if self.state else self.weights

    @property
    def records(self) -> list[Record]:
        """The byte runs of inputs whose checksums their files state."""
        about = self.opened.checkpoints.values()
        found = [record for checkpoint in about for record in checkpoint.records]
        return found + list(self.opened.state.records if self.opened.state else ())

    def without_content(self) -> OutputPlan:
        """Return what is written without checksums: no file has a fingerprint of its content."""
        weights = tuple(file.without_content() for file in self.weights)
        return replace(self, weights=weights, state=self.state and self.state.without_content())

    @property
    def config_changes(self) -> list[dict[str, Any]]:
        """What changes in the folder's config: {key, before, after} each."""
        return self.opened.folder_files.changes if self.is_folder else []


class Output(Protocol):
    """A kind of output: says what it takes, and what it will consist of."""

    def require_free(self, opened: Opened, *, force: bool, force_any: bool = False) -> None:
        """Raise UsageError or WriteError where the output may not be written there."""
        ...

    def plan(self, opened: Opened, *, link: bool = False) -> OutputPlan:
        """Return what will be written; raises for every contradiction that headers show."""
        ...


def output_at(path: Path) -> Output:
    """Return the kind of output that a path asks for; raises UsageError for another format's."""
    from difflib import get_close_matches  # where there is an output: it takes as long as a header

    require_writable(path)
    suffix = path.suffix.lower()
    if suffix in _OTHER_FORMATS or (
        suffix != ".safetensors" and get_close_matches(suffix, [".safetensors"], cutoff=0.8)
    ):
        raise UsageError(
            f"{path}: surgeon writes safetensors; say {path.with_suffix('.safetensors')} for one "
            f"file, or {path.with_suffix('')} for a model folder"
        )
    return FileOutput(path) if path.suffix == ".safetensors" else FolderOutput(path)


def assumed_output(opened: Opened) -> Output:
    """Return what is planned where no output is given: a file, unless only a folder can be."""
    wanted = opened.recipe.output.keys() & set(_FOLDER_KEYS)
    is_folder = bool(wanted) or opened.plan.class_asked_at is not None
    return FolderOutput(Path("out")) if is_folder else FileOutput(Path("out.safetensors"))


@dataclass(frozen=True)
class FileOutput:
    """One safetensors file, with its manifest and optimizer state beside it."""

    path: Path

    def require_free(self, opened: Opened, *, force: bool, force_any: bool = False) -> None:
        require_apart(self.path, opened)
        require_replaceable(self.path, opened, force=force, force_any=force_any)
        _require_parent(self.path)
        _require_state_is_safe(opened, optimizer_of(self.path))

    def plan(self, opened: Opened, *, link: bool = False) -> OutputPlan:
        made, path = opened.plan, self.path
        _require_linkable_metadata(opened, link)
        for key in _FOLDER_KEYS:
            if key in opened.recipe.output:
                raise UsageError(
                    f"{opened.recipe.label}: output.{key} is for model folders, and {path} is one "
                    "file"
                )
        if made.class_asked_at:
            raise UsageError(
                f"{made.class_asked_at}: 'transformers' is for model folders, and "
                f"{path} is one file"
            )
        if link:
            raise UsageError(f"--link is for model folders, and {path} is one file")
        state = optimizer_of(path)
        notes: tuple[str, ...] = ()
        if made.sidecars or made.tokenizer:
            beside = ", ".join([*made.sidecars, *(["the tokenizer"] if made.tokenizer else [])])
            notes = (f"{path} is one file; only a folder as output gets {beside}",)
        weights = (lay_out(made.tensors, made.metadata, path.name),)
        return OutputPlan(
            opened,
            path,
            folder=path.parent,
            is_folder=False,
            weights=weights,
            checkpoint=path.name,
            state=_state_file(opened, state.name),
            obsolete=None if opened.state else state,
            notes=notes,
        )


@dataclass(frozen=True)
class FolderOutput:
    """A model folder: weights and their index, the config, what is carried along."""

    path: Path

    def require_free(self, opened: Opened, *, force: bool, force_any: bool = False) -> None:
        require_apart(self.path, opened)
        require_replaceable(self.path, opened, force=force, force_any=force_any)
        _require_parent(self.path)
        _require_state_is_safe(opened, self.path / FOLDER_OPTIMIZER)

    def plan(self, opened: Opened, *, link: bool = False) -> OutputPlan:
        made, beside = opened.plan, opened.folder_files
        _require_linkable_metadata(opened, link)
        beside.check()
        said = _held_to_class(opened)
        shard_size = parse_size(opened.recipe.output.get("shard_size") or DEFAULT_SHARD_SIZE)
        linked = untouched(opened.input, made.tensors) if link else []
        homes = opened.input.shards if link else None
        name = _weights_file(opened)
        # transformers refuses a file without "format", which its own save_pretrained writes.
        metadata = {"format": "pt", **made.metadata}
        files = lay_out_shards(made.tensors, metadata, shard_size, name, linked, homes)
        checkpoint = files[0].name if len(files) == 1 else f"{name}.index.json"
        texts = dict(beside.texts)
        if len(files) > 1:
            texts[checkpoint] = index_of(files)
        ours = {FOLDER_MANIFEST, FOLDER_OPTIMIZER, *texts}
        carried = {name: path for name, path in beside.carried.items() if name not in ours}
        return OutputPlan(
            opened,
            self.path,
            folder=self.path,
            is_folder=True,
            weights=tuple(files),
            checkpoint=checkpoint,
            state=_state_file(opened, FOLDER_OPTIMIZER),
            texts=texts,
            carried=carried,
            brought=frozenset({*_brought(self.path, opened, carried), *texts} - {checkpoint}),
            notes=(*beside.notes, *said),
        )


def _held_to_class(opened: Opened) -> tuple[str, ...]:
    """Hold what will be written to the class that its config names, where a step asks for it."""
    place, followed = opened.plan.class_asked_at, opened.folder_files.followed
    if place is None:
        return ()
    if followed is None or not followed.config or opened.folder_files.config_name != MODEL_CONFIG:
        raise UsageError(f"{place}: 'transformers' goes by config.json, and there is none")
    from surgeon.model_folder.transformers_class import require_class

    try:
        return require_class(
            followed.config, opened.plan.tensors, opened.input.folder, allow_code=opened.allow_code
        )
    except SurgeonError as error:
        raise error.at(place) from None


def _brought(path: Path, opened: Opened, carried: Collection[str]) -> set[str]:
    """Return which carried files are in a folder since surgeon brought them there.

    In place they are the user's own, but for those that an earlier run brought.
    """
    if not is_input(path, opened):
        return {*carried}
    earlier = manifest_at(path)
    return {*carried} & {*(earlier.carried if earlier else ())}


def _state_file(opened: Opened, name: str) -> OutputFile | None:
    """Return the optimizer's state's file, hashed whole: the manifest pins it so."""
    state = opened.state
    return replace(lay_out(state.tensors, state.metadata, name), is_hashed=True) if state else None


def _weights_file(opened: Opened) -> str:
    """Return what a folder's weights are called: an adapter's stay an adapter's."""
    source = opened.input
    if source.folder and source.weight_files[0].stem == Path(ADAPTER_WEIGHTS).stem:
        return ADAPTER_WEIGHTS
    return opened.plan.weights_file


def _require_linkable_metadata(opened: Opened, link: bool) -> None:
    if link and "metadata" in opened.recipe.output:
        raise UsageError(
            f"{opened.recipe.label}: output.metadata goes into every file, and --link leaves files "
            "as they are"
        )


def _require_parent(path: Path) -> None:
    if isinstance(path, Elsewhere):
        return  # object storage has no folders that would have to be there
    parent = path.absolute().parent
    if not parent.is_dir():
        raise WriteError(f"{path}: there is no folder {parent}")


def _require_state_is_safe(opened: Opened, ours: Path) -> None:
    """Raise where the output replaces an optimizer's state that the user may still need."""
    there = opened.state_beside
    if there is not None and opened.state is None and ours.exists() and there.samefile(ours):
        raise UsageError(
            f"{there}: is the state of the input's optimizer, and would go with the input; "
            f"--optimizer {there} carries it, --optimizer none leaves it behind"
        )
