"""The manifest as data: what `surgeon apply` wrote beside a checkpoint, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from surgeon.base.errors import did_you_mean
from surgeon.formats.checkpoint import strict_json
from surgeon.training.errors import ManifestError

if TYPE_CHECKING:
    from surgeon.training.run import Run

VERSION = 1
OPTIMIZER_STATES = ("reset", "carry")

Value = TypeVar("Value")
Json = Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointFile:
    """A file of the checkpoint that the manifest belongs to, and what pins its contents."""

    file: str
    size_bytes: int
    header_sha256: str


@dataclass(frozen=True)
class TensorEntry:
    """What the manifest says of one tensor; the dtype is a safetensors name, such as `BF16`."""

    shape: tuple[int, ...]
    dtype: str
    lineage: tuple[Json, ...] = ()


@dataclass(frozen=True)
class TorchClass:
    """The import path of an optimizer or scheduler, and its keyword arguments."""

    path: str
    args: Json


@dataclass(frozen=True)
class Teacher:
    """The frozen model whose outputs are to be kept, for distillation."""

    file: str
    sha256: str
    outputs: tuple[str, ...]
    temperature: float
    weight: float


@dataclass(frozen=True)
class StateFile:
    """What the optimizer of the earlier run kept, and the blocks of parameters it is for."""

    file: str
    sha256: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """One optimizer group: parameters or blocks of them, and their own settings."""

    name: str
    params: tuple[str, ...]
    settings: Json


@dataclass(frozen=True)
class Stage:
    """One stage of training; `duration` is {"epochs": n} or {"steps": n}, or empty if unsaid.

    `align_rows` lists, for each aligning after the stage, the new rows that are aligned.
    """

    name: str
    duration: Mapping[str, int]
    groups: tuple[Group, ...]
    frozen: tuple[str, ...]
    eval_modules: tuple[str, ...]
    scheduler: TorchClass | None
    optimizer_state: str
    align_rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Manifest:
    """How the checkpoint beside it is to be trained; names are final names, never indices."""

    path: Path
    file: str
    files: tuple[CheckpointFile, ...]
    tensors: Mapping[str, TensorEntry]
    ties: Mapping[str, str]
    optimizer: TorchClass | None
    teacher: Teacher | None
    stages: tuple[Stage, ...]
    optimizer_state: StateFile | None = None

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read the manifest at `path`, or beside the checkpoint or in the model folder there.

        Raises ManifestError where it is not there, not strict JSON, of a newer version, or lacks
        what a manifest must say.
        """
        found = _located(Path(path))
        try:
            return _parsed(found, strict_json(found.read_bytes()))
        except OSError as error:
            raise ManifestError(f"{found}: cannot be read: {_reason(error)}") from None
        except ValueError as error:
            raise ManifestError(f"{found}: {error}") from None
        except ManifestError as error:
            raise error.at(str(found)) from None

    def bind(self, model: nn.Module) -> Run:
        """Check the manifest against a live model and the checkpoint; changes and loads nothing.

        Checked are the hash of the checkpoint's header, names and shapes of all parameters and
        buffers, which of them are tied, and that every stage holds every element of every
        parameter exactly once. Raises ManifestError with a line for every contradiction.
        """
        from surgeon.training.run import bound  # it needs the classes above

        return bound(self, model)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there; surgeon apply writes it beside the checkpoint"
    return (error.strerror or str(error)).lower()


def _located(path: Path) -> Path:
    if path.is_dir():
        return path / "surgeon.manifest.json"
    if path.suffix != ".safetensors":
        return path
    beside = path.with_suffix(".manifest.json")
    in_folder = path.with_name("surgeon.manifest.json")
    return in_folder if in_folder.exists() and not beside.exists() else beside


def _parsed(path: Path, found: Json) -> Manifest:
    version = found.get("surgeon_manifest")
    if type(version) is not int or version < 1:
        raise ManifestError("not a surgeon manifest: it has no 'surgeon_manifest' version")
    if version > VERSION:
        raise ManifestError(
            f"is manifest version {version}, and this surgeon reads up to {VERSION}; "
            "upgrade surgeon"
        )
    checkpoint = _get(found, "checkpoint", dict, "")
    parts = _get(checkpoint, "files", list, "checkpoint", default=[checkpoint])
    stages = tuple(
        _stage(stage, f"stages[{index}]")
        for index, stage in enumerate(_get(found, "stages", list, ""))
    )
    names = [stage.name for stage in stages]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ManifestError(*(f"stages: there are two stages '{name}'" for name in twice))
    return Manifest(
        path=path,
        file=_file_name(checkpoint, "checkpoint"),
        files=tuple(
            _checkpoint_file(part, f"checkpoint.files[{i}]") for i, part in enumerate(parts)
        ),
        tensors={
            name: _tensor(entry, f"tensors.{name}")
            for name, entry in _get(found, "tensors", dict, "").items()
        },
        ties=_strings(_get(found, "ties", dict, "", default={}), "ties"),
        optimizer=_torch_class(found, "optimizer", ""),
        teacher=_teacher(_get(found, "teacher", dict, "")) if "teacher" in found else None,
        stages=stages,
        optimizer_state=_state_file(found),
    )


def _checkpoint_file(found: object, place: str) -> CheckpointFile:
    part = _is(found, dict, place)
    return CheckpointFile(
        _file_name(part, place),
        _get(part, "bytes", int, place),
        _get(part, "header_sha256", str, place),
    )


def _file_name(found: Json, place: str) -> str:
    name = _get(found, "file", str, place)
    if Path(name).name != name:
        raise ManifestError(f"{place}.file: '{name}' is not the name of a file beside the manifest")
    return name


def _tensor(found: object, place: str) -> TensorEntry:
    entry = _is(found, dict, place)
    shape = tuple(_is(size, int, f"{place}.shape") for size in _get(entry, "shape", list, place))
    lineage = tuple(_get(entry, "lineage", list, place, default=[]))
    return TensorEntry(shape, _get(entry, "dtype", str, place), lineage)


def _torch_class(found: Json, key: str, place: str) -> TorchClass | None:
    if found.get(key) is None:
        return None
    place = f"{place}.{key}".lstrip(".")
    described = _get(found, key, dict, "")
    return TorchClass(
        _get(described, "class", str, place), _get(described, "args", dict, place, default={})
    )


def _teacher(found: Json) -> Teacher:
    return Teacher(
        file=_file_name(found, "teacher"),
        sha256=_get(found, "sha256", str, "teacher"),
        outputs=_names(found, "outputs", "teacher"),
        temperature=float(_get(found, "temperature", (int, float), "teacher")),
        weight=float(_get(found, "weight", (int, float), "teacher")),
    )


def _state_file(manifest: Json) -> StateFile | None:
    if "optimizer_state" not in manifest:
        return None
    found = _get(manifest, "optimizer_state", dict, "")
    place = "optimizer_state"
    names = _get(found, "parameters", list, place)
    return StateFile(
        file=_file_name(found, place),
        sha256=_get(found, "sha256", str, place),
        parameters=tuple(_is(name, str, f"{place}.parameters") for name in names),
    )


def _stage(found: object, place: str) -> Stage:
    stage = _is(found, dict, place)
    state = _get(stage, "optimizer_state", str, place, default="reset")
    if state not in OPTIMIZER_STATES:
        hint = did_you_mean(state, OPTIMIZER_STATES) or "; known are reset, carry"
        raise ManifestError(f"{place}.optimizer_state: '{state}' is unknown{hint}")
    return Stage(
        name=_get(stage, "name", str, place),
        duration=_get(stage, "duration", dict, place, default={}),
        groups=tuple(
            _group(group, f"{place}.groups[{index}]")
            for index, group in enumerate(_get(stage, "groups", list, place))
        ),
        frozen=_names(stage, "frozen", place),
        eval_modules=_names(stage, "eval_modules", place),
        scheduler=_torch_class(stage, "scheduler", place),
        optimizer_state=state,
        align_rows=tuple(
            _aligned(action, f"{place}.after[{index}]")
            for index, action in enumerate(_get(stage, "after", list, place, default=[]))
        ),
    )


def _aligned(found: object, place: str) -> tuple[str, ...]:
    action = _is(found, dict, place)
    if unknown := [key for key in action if key != "align_rows"]:
        raise ManifestError(f"{place}: '{unknown[0]}' is unknown; known is align_rows")
    _get(action, "align_rows", list, place)
    return _names(action, "align_rows", place)


def _group(found: object, place: str) -> Group:
    group = _is(found, dict, place)
    settings = {key: value for key, value in group.items() if key not in ("name", "params")}
    return Group(_get(group, "name", str, place), _names(group, "params", place), settings)


def _names(found: Json, key: str, place: str) -> tuple[str, ...]:
    return tuple(
        _is(name, str, f"{place}.{key}") for name in _get(found, key, list, place, default=[])
    )


def _strings(found: Json, place: str) -> Mapping[str, str]:
    return {key: _is(value, str, f"{place}.{key}") for key, value in found.items()}


_MISSING: Any = object()


def _get(
    found: Json,
    key: str,
    kind: type[Value] | tuple[type[Value], ...],
    place: str,
    *,
    default: Any = _MISSING,
) -> Value:
    where = f"{place}.{key}".lstrip(".")
    if key not in found:
        if default is _MISSING:
            raise ManifestError(f"{where}: is missing")
        return default  # type: ignore[no-any-return]
    return _is(found[key], kind, where)


def _is(value: object, kind: type[Value] | tuple[type[Value], ...], place: str) -> Value:
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        words = {dict: "an object", list: "an array", str: "a string", int: "an integer"}
        expected = " or ".join(words.get(item, "a number") for item in kinds)
        raise ManifestError(f"{place}: {value!r:.60} is not {expected}")
    return value
