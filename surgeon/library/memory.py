"""A recipe on tensors in memory: `surgeon.apply_to`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from surgeon import surgery
from surgeon.base.errors import UsageError
from surgeon.formats import Checkpoint
from surgeon.formats.checkpoint import spec_of
from surgeon.formats.files import InMemory
from surgeon.lazy import LazyTensor, Scratch, Stored
from surgeon.library.arrays import as_torch, from_numpy, from_torch, is_torch, numpy_dtype, read
from surgeon.library.running import Location, bound, telling_of_depth
from surgeon.numeric.dtypes import Array
from surgeon.output.execute import Executor, Options, Written, WrittenFile
from surgeon.output.layout import lay_out
from surgeon.recipe import Recipe, RecipeLike

# Of torch, or of NumPy.
StateDict = Mapping[str, Any]
Model = Location | StateDict


class Tensors(dict[str, Any]):
    """A state_dict that a recipe made; `notes` are what the user should know of it."""

    notes: tuple[str, ...] = ()


def apply_to(
    state_dict: StateDict,
    recipe: RecipeLike,
    *,
    models: Mapping[str, Model] | Sequence[Model] | Location = (),
    vars: Mapping[str, Any] | None = None,
    allow_code: bool = False,
) -> Tensors:
    """Return what a recipe makes of tensors in memory, which stay as they are.

    Tensors of torch give tensors of torch, and arrays arrays, with the bits that `apply` writes.
    Names that share one tensor share one afterwards. The recipe's `training` and `output` are for
    files, and play no part. `models` are paths, or state_dicts too.
    """
    loaded = replace(Recipe.load(recipe, vars), training=None, output={})
    given = _Held(state_dict, "state_dict")
    locations = checkpoints_of(loaded, models)
    with (
        telling_of_depth(),
        surgery.opened(loaded, given.checkpoint, locations, allow_code=allow_code) as opened,
    ):
        made = opened.plan
        if made.class_asked_at:
            raise UsageError(
                f"{made.class_asked_at}: 'transformers' is for model folders, and these are "
                "tensors in memory"
            )
        given.require_kind(made.tensors)
        executor = Executor(Options(workers=1))
        layout = lay_out(made.tensors, {})
        notes = executor.check(made.checks, 0)
        records = [record for c in opened.checkpoints.values() for record in c.records]
        executor.verify_records(records, [layout], Written({layout.name: WrittenFile()}))
        scratch = Scratch()
        by_tensor: dict[int, Any] = {}
        found = Tensors()
        for name, tensor in made.tensors.items():
            if id(tensor) not in by_tensor:
                data = read(tensor, 0, tensor.spec.count, scratch)
                by_tensor[id(tensor)] = given.returned(name, data, tensor)
            found[name] = by_tensor[id(tensor)]
        found.notes = (*opened.notes, *notes)
    return found


def held(state_dict: StateDict) -> Checkpoint:
    """Return tensors in memory as a checkpoint; raises UsageError for what is none."""
    return _Held(state_dict, "state_dict").checkpoint


class _Held:
    """Tensors in memory as a checkpoint, and how to return others of their kind."""

    def __init__(self, state_dict: StateDict, label: str) -> None:
        kinds = {_kind(name, value, label) for name, value in state_dict.items()}
        if len(kinds) != 1:
            what = "both tensors of torch and arrays" if kinds else "nothing"
            raise UsageError(f"{label}: holds {what}; give one kind of tensors")
        self._is_torch = kinds == {"torch"}
        # What is not NumPy's own, such as bfloat16 of ml_dtypes, is returned as it came.
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._devices: dict[str, Any] = {}
        tensors: dict[str, LazyTensor] = {}
        known: dict[object, LazyTensor] = {}
        # No file's name, beside which an optimizer's state could lie.
        path = Path(f"<{label}>")
        for name, value in state_dict.items():
            key = _identity(value, is_torch=self._is_torch)
            if key not in known:
                dtype, data = self._stored(value, f"{label}: '{name}'")
                known[key] = Stored(InMemory(path, data), 0, spec_of(dtype, tuple(value.shape)))
            tensors[name] = known[key]
            if self._is_torch:
                self._devices[name] = value.device
            else:
                self._dtypes.setdefault(known[key].spec.dtype, value.dtype.newbyteorder("="))
        header = [[n, t.spec.dtype, list(t.spec.shape)] for n, t in tensors.items()]
        self.checkpoint = Checkpoint(
            path=path,
            tensors=tensors,
            header_sha256=hashlib.sha256(json.dumps(header).encode()).hexdigest(),
            size_bytes=sum(tensor.spec.size_bytes for tensor in known.values()),
        )

    def _stored(self, value: Any, what: str) -> tuple[str, Array]:
        return from_torch(value, what) if self._is_torch else from_numpy(value, what)

    def require_kind(self, tensors: Mapping[str, LazyTensor]) -> None:
        """Raise UsageError where NumPy has no dtype for what is to be returned."""
        lacking = [
            f"'{name}': becomes {dtype}, which NumPy lacks; give tensors of torch"
            for name, tensor in tensors.items()
            if not self._is_torch
            and (dtype := tensor.spec.dtype) not in self._dtypes
            and numpy_dtype(dtype) is None
        ]
        if lacking:
            raise UsageError(*lacking)

    def returned(self, name: str, data: Array, tensor: LazyTensor) -> Any:
        """Return bytes as the kind of tensor that was given, on the device of the same name's."""
        spec = tensor.spec
        if self._is_torch:
            device = self._devices.get(name, next(iter(self._devices.values())))
            return as_torch(data, spec, repr(name)).to(device)
        dtype = self._dtypes.get(spec.dtype) or numpy_dtype(spec.dtype)
        assert dtype is not None  # `require_kind` saw to it
        return data.view(dtype).reshape(spec.shape)


def _kind(name: object, value: object, label: str) -> str:
    if not isinstance(name, str):
        raise UsageError(f"{label}: {name!r} is no name")
    if is_torch(value):
        return "torch"
    if isinstance(value, np.ndarray):
        return "numpy"
    raise UsageError(
        f"{label}: '{name}': is {type(value).__name__}, expected a tensor of torch or an array"
    )


def _identity(value: Any, *, is_torch: bool) -> object:
    """Return what tied tensors share: memory, and how they lie in it; nothing, where it is none."""
    if is_torch:
        start = value.data_ptr() if str(value.layout) == "torch.strided" else 0
        key = (start, str(value.device), value.stride() if start else ())
    else:
        start = value.ctypes.data if value.size else 0
        key = (start, "", value.strides)
    return (*key, tuple(value.shape), str(value.dtype)) if start else (id(value),)


def checkpoints_of(
    recipe: Recipe, models: Mapping[str, Model] | Sequence[Model] | Location
) -> dict[str, str | Checkpoint]:
    """Return where each model is: a path, or what is in memory."""
    known: dict[str, Checkpoint] = {}

    def located(model: Model, label: str) -> Location:
        if isinstance(model, str | os.PathLike):
            return model
        if not isinstance(model, Mapping):
            kind = type(model).__name__
            raise UsageError(f"{label}: is {kind}, expected a path or a state_dict")
        known[f"<{label}>"] = _Held(model, label).checkpoint
        return f"<{label}>"

    if isinstance(models, Mapping):
        named = {name: located(model, f"model '{name}'") for name, model in models.items()}
        locations = bound(recipe, named)
    elif isinstance(models, str | os.PathLike):
        locations = bound(recipe, models)
    else:
        several = [located(model, f"models[{number}]") for number, model in enumerate(models)]
        locations = bound(recipe, several)
    return {name: known.get(location, location) for name, location in locations.items()}
