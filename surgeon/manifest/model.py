"""What a manifest is: its schema, its writer and its readers come from these classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from surgeon.base import documents
from surgeon.base.documents import ALWAYS, Key, Rest, Rule, as_json, schema_of
from surgeon.base.errors import listed
from surgeon.base.files import read_regular
from surgeon.base.schema import DRAFT, Schema
from surgeon.base.strict_json import DEEPEST, parse_object

VERSION = 1
# 100 000 tensors that a merge made need 40 MB.
MOST_BYTES = 250_000_000
# A recipe lies a few levels down in its manifest.
_DEEPEST = DEEPEST + 20
Json = Mapping[str, Any]


def _not_a_name(name: str) -> str:
    plain = Path(name).name == name
    return "" if plain else f"'{name}' is not the name of a file beside the manifest"


FileName = Annotated[str, Rule(_not_a_name)]
FILE_NAME = "its name, without a folder"
_SHA256 = {"pattern": "^[0-9a-f]{64}$"}
Sha256 = Annotated[str, _SHA256]
Blocks = Annotated[
    tuple[str, ...],
    "parameters by their final names: whole, or blocks such as 'fc.weight[7:8]'",
]
Size = Annotated[int, {"minimum": 0}]
_POSITIVE = {"exclusiveMinimum": 0}
_RATE = {"type": ["number", "null"], "minimum": 0}
_COUNT = {"type": "integer", "minimum": 1}
_DURATION = {
    "properties": {"epochs": _COUNT, "steps": _COUNT},
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """A file of a checkpoint, and what pins its contents."""

    file: Annotated[FileName, FILE_NAME]
    size_bytes: Annotated[Size, Key("bytes")]
    header_sha256: Annotated[
        Sha256, "pins names, shapes, dtypes and layout; of a folder, over its files' own"
    ]


@dataclass(frozen=True, kw_only=True)
class CheckpointEntry(WeightFile):
    """The checkpoint that a manifest belongs to; `files` are those that an index names."""

    files: Annotated[
        tuple[WeightFile, ...],
        {"minItems": 2},
        "the weight files, where `file` is the index of several",
    ] = ()

    @property
    def parts(self) -> tuple[WeightFile, ...]:
        """The weight files; a file by itself is its own only one."""
        return self.files or (self,)


def checkpoint_of(file: str, parts: Sequence[WeightFile]) -> CheckpointEntry:
    """Return the entry of a checkpoint that goes by the name of `file`."""
    if len(parts) == 1:
        only = parts[0]
        return CheckpointEntry(
            file=file, size_bytes=only.size_bytes, header_sha256=only.header_sha256
        )
    return CheckpointEntry(
        file=file,
        size_bytes=sum(part.size_bytes for part in parts),
        header_sha256=joined_sha256(parts),
        files=tuple(parts),
    )


def joined_sha256(parts: Sequence[WeightFile]) -> str:
    """Return the hash that pins several files: over the hashes of their headers."""
    return sha256("".join(part.header_sha256 for part in parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class RecipeEntry:
    """The recipe that was applied."""

    sha256: Annotated[Sha256, "with its variables filled in"]
    vars: Annotated[Json, "the values of its variables"]
    text: Annotated[Json, "the recipe as it was written"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one step did to one tensor."""

    step: Annotated[str, "the step's id, or else its position"]
    op: str
    into: Annotated[str, "the model that the step kept its result as"] = ""
    from_: Annotated[
        tuple[str, ...],
        Key("from"),
        "what it was made of: earlier names, and 'model:name'",
    ] = ()
    new: Annotated[Blocks, "the blocks that the step created"] = ()
    init: str | tuple[str, ...] = ()
    parameters: Annotated[Json, "of a merge, as they are for this tensor"] = field(
        default_factory=dict
    )


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """What the manifest says of one tensor; the dtype is a safetensors name, such as `BF16`."""

    shape: tuple[Size, ...]
    dtype: Annotated[str, "the safetensors name, such as 'BF16'"]
    crc32: Annotated[str | None, {"pattern": "^[0-9a-f]{8}$"}] = None
    sha256: Annotated[str | None, _SHA256] = None
    lineage: Annotated[
        tuple[Change, ...],
        "what the steps did to it, in order; nothing where it is as it was",
    ] = ()


@dataclass(frozen=True, kw_only=True)
class TorchClass:
    """The import path of an optimizer or scheduler, and its keyword arguments."""

    args: Annotated[Json, ALWAYS, "its keyword arguments"] = field(default_factory=dict)
    path: Annotated[
        str,
        Key("class"),
        {"pattern": r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"},
        "the import path of a class, such as torch.optim.AdamW",
    ]


@dataclass(frozen=True, kw_only=True)
class OptimizerClass(TorchClass):
    """The import path of an optimizer, and its keyword arguments."""

    args: Annotated[
        Json,
        ALWAYS,
        "its keyword arguments",
        {"properties": {"lr": _RATE, "weight_decay": _RATE}},
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The frozen model whose outputs are to be kept, for distillation."""

    file: FileName
    sha256: Sha256
    outputs: Blocks
    temperature: Annotated[float, _POSITIVE]
    weight: Annotated[float, _POSITIVE]


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """What the optimizer of the earlier run kept, and the blocks of parameters it is for."""

    file: Annotated[FileName, FILE_NAME]
    sha256: Sha256
    matched_by: Annotated[
        Literal["names", "shapes", "order"] | None,
        "what told which parameter each state is of; the order alone is no proof",
    ] = None
    parameters: Annotated[Blocks, "the blocks that have old state in it"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One optimizer group: parameters or blocks of them, and their own settings."""

    name: Annotated[str, {"minLength": 1}]
    params: Annotated[Blocks, {"minItems": 1}]
    settings: Annotated[
        Json,
        Rest(
            {
                "properties": {"lr": {"type": "number", **_POSITIVE}},
                "additionalProperties": {"type": ["number", "boolean", "string", "array", "null"]},
            }
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class After:
    """What is done to the weights when a stage ends: new rows are aligned."""

    KNOWN_ALONE: ClassVar[bool] = True

    align_rows: Annotated[Blocks, {"minItems": 1}]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training; `duration` is {"epochs": n} or {"steps": n}, or empty if unsaid.

    Every element of every parameter is in exactly one group, or frozen.
    """

    name: Annotated[str, {"minLength": 1}]
    duration: Annotated[
        Mapping[str, int],
        _DURATION,
        "how long the stage lasts, for the training loop to read",
    ] = field(default_factory=dict)
    groups: tuple[Group, ...]
    frozen: Blocks
    eval_modules: Annotated[
        tuple[str, ...], "normalisation layers whose running statistics must not move"
    ]
    scheduler: TorchClass | None = None
    optimizer_state: Annotated[Literal["reset", "carry"], ALWAYS] = "reset"
    after: tuple[
        Annotated[After, "these rows get the mean norm of the other rows of their weight"], ...
    ] = ()


def _twice(stages: Sequence[Stage]) -> str:
    names = [stage.name for stage in stages]
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"there are two stages {listed(twice)}" if twice else ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How the checkpoint beside it is to be trained; names are final names, never indices.

    `path` is where it was read from, and no part of what is written.
    """

    version: Annotated[
        int, Key("surgeon_manifest"), {"const": VERSION}, "the version of the manifest"
    ]
    checkpoint: Annotated[CheckpointEntry, "the checkpoint that this manifest belongs to"]
    recipe: RecipeEntry
    inputs: Annotated[
        Mapping[str, WeightFile],
        "the checkpoints it was made from: 'input' and the models by name",
    ]
    surgeon: Annotated[str, "the version of surgeon that wrote it"]
    tensors: Mapping[str, TensorEntry]
    ties: Annotated[Mapping[str, str], "{alias: owner} of names that share one tensor"]
    optimizer: OptimizerClass | None = None
    teacher: Teacher | None = None
    optimizer_state: Annotated[
        StateFile | None,
        "what the optimizer of the earlier run kept, after the same surgery",
    ] = None
    carried: Annotated[
        tuple[str, ...], "files of a model folder besides the weights: carried along, or made"
    ] = ()
    device: Annotated[
        str, "where matrices were decomposed, if not by NumPy: the last bits are its own"
    ] = ""
    stages: Annotated[
        tuple[
            Annotated[Stage, "every element of every parameter is in exactly one group, or frozen"],
            ...,
        ],
        {"minItems": 1},
        Rule(_twice),
    ]
    path: Annotated[Path, Key("")] = Path()


AnyManifest = TypeVar("AnyManifest", bound=Manifest)


def read(kind: type[AnyManifest], path: Path) -> AnyManifest:
    """Read the manifest at a path, strictly; raises OSError, or ValueError with what is wrong."""
    found = parse_object(
        read_regular(path, MOST_BYTES),
        most_bytes=MOST_BYTES,
        deepest=_DEEPEST,
        allow_surrogates=True,  # names of files
    )
    return of_document(kind, found, path)


def of_document(kind: type[AnyManifest], found: Mapping[str, Any], path: Path) -> AnyManifest:
    """Return the manifest that parsed JSON is; raises ValueError with what is wrong."""
    version = found.get("surgeon_manifest")
    if type(version) is not int or version < 1:
        raise ValueError("not a surgeon manifest: it has no 'surgeon_manifest' version")
    if version > VERSION:
        raise ValueError(
            f"is manifest version {version}, and this surgeon reads up to {VERSION}; "
            "upgrade surgeon"
        )
    return replace(documents.read(kind, found), path=path)


def manifest_schema() -> Schema:
    """Return the JSON Schema of manifests."""
    return {
        "$schema": DRAFT,
        "title": "surgeon manifest",
        **schema_of(Manifest),
        "description": "how the next training run is to train the checkpoint that it lies beside",
    }


def text(manifest: Manifest) -> str:
    """Return a manifest as it is written: indented, with a line for each tensor."""
    encode = json.JSONEncoder(ensure_ascii=False).encode

    def written(key: str, value: Any) -> str:
        if key == "tensors":  # json's indenting would take seconds for 100 000 of them
            rows = ",\n".join(f"  {encode(name)}: {encode(entry)}" for name, entry in value.items())
            return f"{{\n{rows}\n }}"
        return json.dumps(value, indent=1, ensure_ascii=False).replace("\n", "\n ")

    parts = [f" {encode(key)}: {written(key, value)}" for key, value in as_json(manifest).items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"
