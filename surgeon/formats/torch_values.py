"""What a torch pickle may refer to, as inert values: tensors, plain containers, scalars.

A tensor becomes a LazyTensor over its storage's bytes. What is of no use here becomes an `Opaque`
with its name; torch_globals.py says what that is, and what is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from surgeon.formats.checkpoint import Opaque, Record, is_tensor, plain, plain_key, spec_of
from surgeon.formats.modules import is_module_state
from surgeon.formats.torch_globals import (
    TENSOR_CLASSES,
    TORCH_DTYPES,
    UNUSABLE_TENSORS,
    Global,
    is_weight,
    known,
    left_unbuilt,
    subclass_problem,
)
from surgeon.lazy import ByteSource, LazyTensor, Stored, Strided, TensorSpec
from surgeon.numeric.dtypes import DTYPES


@dataclass(frozen=True, eq=False)
class _Storage:
    """The bytes of a storage; `problem` says why they cannot be used."""

    record: Record | None
    dtype: str
    size_bytes: int
    problem: str = ""


class TorchWorld:
    """The globals and storages of one torch archive; see pickle_machine.World.

    `origins` holds the record of the storage that each tensor lies in.
    """

    def __init__(self, file: ByteSource, members: Mapping[str, Record]) -> None:
        self.origins: dict[LazyTensor, Record] = {}
        # By key: the dtype and the elements that each storage is said to have.
        self.stated: dict[str, tuple[str, int]] = {}
        # The names of what is not known, in the order in which they are met.
        self.unknown: dict[str, None] = {}
        self._file = file
        self._members = members
        self._storages: dict[tuple[object, ...], _Storage] = {}
        self._tensors: dict[tuple[object, ...], LazyTensor] = {}
        self._specs: dict[tuple[str, tuple[int, ...]], TensorSpec] = {}

    def left(self) -> tuple[str, ...]:
        """Return notes on what of the file is left out, once all of it was read."""
        return left_unbuilt(self.unknown)

    def find(self, module: str, name: str) -> object:
        found = known(module, name)
        if not found.is_expected:
            self.unknown[found.what] = None
        return found

    def call(self, function: object, arguments: tuple[object, ...]) -> object:
        if isinstance(function, Global) and function.run is not None:
            return function.run(self, *arguments)
        if not isinstance(function, Opaque) or isinstance(function, Global):
            raise TypeError
        return Opaque(f"a result of {function.what:.100}")

    def build(self, value: object, state: object) -> None:
        # Of a plain container (a state_dict's _metadata) and of a tensor they are of no use here.
        if type(value) is not Opaque:
            if not (isinstance(value, dict | list | set | Opaque) or is_tensor(value)):
                raise TypeError
        elif is_module_state(state):
            value.state = cast(dict[str, object], state)
            self.unknown.pop(value.what, None)  # read by its structure, and named as that
        elif not value.problem and _holds_weights(state):
            value.problem = subclass_problem(value.what)

    def extend(self, value: object, items: Sequence[object]) -> None:
        if type(value) is not Opaque:
            raise TypeError
        if not value.problem and any(map(is_weight, items)):
            value.problem = subclass_problem(value.what)

    def update(self, value: object, items: Sequence[tuple[object, object]]) -> None:
        if type(value) is not Opaque:
            raise TypeError
        value.items = value.items or {}
        value.items.update((plain_key(key), item) for key, item in items)

    def storage(self, identity: object) -> object:
        kind, *rest = cast(tuple[Any, ...], identity)
        if kind == "module":  # with the source of the class, which older versions kept
            return rest[0]
        storage_type, name, location, count = rest[:4]
        if kind != "storage" or not isinstance(storage_type, Global) or not storage_type.dtype:
            raise TypeError
        if type(name) is not str or type(count) is not int or count < 0:
            raise TypeError
        key = (storage_type.dtype, name, location == "meta", count)
        found = self._storages.get(key)
        if found is None:
            self.stated.setdefault(name, (storage_type.dtype, count))
            found = self._located(storage_type.dtype, name, location, count)
            self._storages[key] = found
        return self._part(found, key, rest[4]) if rest[4:] and rest[4] is not None else found

    def _part(self, whole: _Storage, key: tuple[object, ...], view: object) -> _Storage:
        """Return the part of a storage that was a storage of its own before torch 0.4."""
        _, offset, count = cast(tuple[Any, ...], view)
        if type(offset) is not int or type(count) is not int or min(offset, count) < 0:
            raise TypeError
        if whole.record is None:
            return whole
        size = DTYPES[whole.dtype].bits // 8
        if (offset + count) * size > whole.size_bytes:
            raise ValueError(f"found a part up to {offset + count} of the storage {key[1]!r}")
        if (*key, offset, count) not in self._storages:
            record = Record(whole.record.file, whole.record.offset + offset * size, count * size, 0)
            self._storages[(*key, offset, count)] = _Storage(record, whole.dtype, count * size)
        return self._storages[(*key, offset, count)]

    def _located(self, torch_dtype: str, name: str, location: object, count: int) -> _Storage:
        dtype = TORCH_DTYPES.get(torch_dtype, "")
        record = self._members.get(f"data/{name}")
        if location == "meta":
            return _Storage(None, dtype, 0, UNUSABLE_TENSORS["_rebuild_meta_tensor_no_storage"])
        if not dtype:
            return _Storage(None, "", 0, f"found dtype {torch_dtype}, which safetensors lacks")
        size_bytes = count * DTYPES[dtype].bits // 8
        if record is None:
            problem = "" if count == 0 else f"its storage 'data/{name}' is missing in the archive"
            return _Storage(None, dtype, 0, problem)
        if record.size_bytes // (DTYPES[dtype].bits // 8) != count:
            return _Storage(
                None, dtype, 0,
                f"found {record.size_bytes} bytes in its storage 'data/{name}', "
                f"expected {size_bytes}",
            )  # fmt: skip
        return _Storage(record, dtype, size_bytes)

    def tensor(
        self,
        storage: _Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: object = False,
        hooks: object = None,
        metadata: object = None,
    ) -> object:
        if metadata:
            return Opaque("a tensor", "its conjugate or negative bit is set; save tensor.resolve_"
                          "conj().resolve_neg() instead")  # fmt: skip
        return self._view(storage, storage.dtype, offset, size, stride)

    def tensor_of_dtype(
        self,
        storage: _Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: object,
        hooks: object,
        dtype: Global,
        metadata: object = None,
    ) -> object:
        if dtype.dtype not in TORCH_DTYPES:
            return Opaque("a tensor", f"found dtype {dtype.dtype}, which safetensors lacks")
        if metadata:
            return self.tensor(storage, offset, size, stride, metadata=metadata)
        return self._view(storage, TORCH_DTYPES[dtype.dtype], offset, size, stride)

    def typed(self, function: object, kind: Global, arguments: Any, state: object) -> object:
        if kind.what not in TENSOR_CLASSES:
            return Opaque("a tensor", subclass_problem(kind.what))
        return self.call(function, arguments)

    def _view(
        self,
        storage: _Storage,
        dtype: str,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> object:
        """Return the one LazyTensor of this view, or why there cannot be one."""
        if storage.problem:
            return Opaque("a tensor", storage.problem)
        # Before anything is hashed or shown: what shares tuples in tuples would take for ever.
        numbers = (offset, *shape, *strides)
        if {type(number) for number in numbers} != {int}:
            odd = next(number for number in numbers if type(number) is not int)
            return Opaque("a tensor", f"found {plain(odd)}, expected whole numbers")
        view = (storage, dtype, offset, shape, strides)
        if view in self._tensors:
            return self._tensors[view]
        try:
            spec = self._specs.get((dtype, shape)) or spec_of(dtype, shape)
            tensor = _lazy(self._file, storage, spec, offset, strides)
        except ValueError as error:
            return Opaque("a tensor", str(error))
        self._tensors[view] = tensor
        self._specs[(dtype, shape)] = spec
        if storage.record is not None:
            self.origins[tensor] = storage.record
        return tensor


def _holds_weights(state: object) -> bool:
    """Say whether an object's attributes, or the items of a list among them, are tensors."""
    if isinstance(state, dict):
        state = list(state.values())
    if not isinstance(state, list | tuple):
        return False
    return any(
        any(map(is_weight, value)) if isinstance(value, list | tuple) else is_weight(value)
        for value in state
    )


def _lazy(
    file: ByteSource, storage: _Storage, spec: TensorSpec, offset: int, strides: tuple[int, ...]
) -> LazyTensor:
    """Return a view of a storage, once all that it states is found to lie inside."""
    shape = spec.shape
    if len(shape) != len(strides):
        raise ValueError(f"found strides {strides} for shape {shape}")
    if min(offset, *strides, 0) < 0:
        raise ValueError(f"found offset {offset} and strides {strides}, expected 0 or more")
    if 0 in shape:
        return Stored(file, 0, spec)
    item_bytes = DTYPES[spec.dtype].bits // 8
    reach, packed, is_contiguous = 1, 1, True
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            reach += (size - 1) * stride
            is_contiguous &= stride == packed
            packed *= size
    if storage.record is None or (offset + reach) * item_bytes > storage.size_bytes:
        raise ValueError(
            f"found offset {offset} and strides {strides} that reach element {offset + reach} of "
            f"its storage, expected at most {storage.size_bytes // item_bytes}"
        )
    begin = storage.record.offset + offset * item_bytes
    if is_contiguous:
        return Stored(file, begin, spec)
    return Strided(Stored(file, begin, TensorSpec(spec.dtype, (reach,))), strides, shape)
