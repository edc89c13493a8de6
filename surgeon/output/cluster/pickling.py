"""Planned tensors as bytes that another process of the same surgeon reads: no data, no code.

A kernel is a function inside of a function, which Python cannot pickle. It travels as its place in
the code of its module, which the worker has too, and what it has enclosed; that is ten times as
fast as sending its code. Only what no worker could import travels as code.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import threading
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import cloudpickle

from surgeon.base.errors import CheckpointError, PlanError
from surgeon.formats.fetched import FetchedFile
from surgeon.formats.files import InputFile
from surgeon.remote import calls
from surgeon.remote.client import Identity
from surgeon.remote.paths import RemotePath, path_of

_PROTOCOL = 5
# Faster than a network, and a third of what is sent is left.
_LEVEL = 1
# What a task may take: ranges and kernels are small, tensors that lie in memory are not.
_MOST_BYTES = 256 << 20


def packed(value: object, what: str) -> bytes:
    """Return a value as bytes; raises PlanError where it cannot be sent, naming `what` it is."""
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, _PROTOCOL).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError) as error:
        raise PlanError(
            f"{what}: cannot be sent to workers: {error}; leave out --cluster"
        ) from None
    data = buffer.getbuffer()
    if len(data) > _MOST_BYTES:
        raise PlanError(
            f"{what}: would take {len(data):,} bytes to send: an input's tensors lie in memory, as "
            "those of compressed files do; leave out --cluster, or convert the input before"
        )
    return zlib.compress(data, _LEVEL)


def unpacked(data: bytes) -> Any:
    """Return the value that `packed` was given."""
    return pickle.loads(zlib.decompress(data))


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            found = _reduced_function(obj)
            return super().reducer_override(obj) if found is None else found
        if kind is CellType:
            try:
                contents = (obj.cell_contents,)
            except ValueError:
                contents = None
            return CellType, (), contents, None, None, _fill
        if kind is InputFile:
            place = os.path.abspath(obj.path)  # noqa: PTH100 (bytes stay)
            return opened_input, (place, obj.size_bytes, obj.modified_ns)
        if kind is FetchedFile:
            return fetched_input, (str(obj.path), obj.reader.identity)
        return super().reducer_override(obj)


def _reduced_function(function: FunctionType) -> Any:
    """Return how a function inside of another is made again; None for all others."""
    module = sys.modules.get(function.__module__)
    is_nested = "<locals>" in function.__qualname__ or function.__name__ == "<lambda>"
    if not is_nested or function.__dict__ or module is None or module.__name__ == "__main__":
        return None
    place = _places(module).get(function.__code__)
    if place is None:
        return None
    code = function.__code__
    return _function, (
        module.__name__, place, code.co_name, zlib.crc32(code.co_code), function.__defaults__,
        function.__kwdefaults__, function.__closure__,
    )  # fmt: skip


def _fill(cell: CellType, contents: tuple[Any]) -> None:
    (cell.cell_contents,) = contents


def _function(
    module_name: str, place: int, name: str, checksum: int, defaults: Any, keyword_defaults: Any,
    closure: Any,
) -> FunctionType:  # fmt: skip
    """Make a function again; raises where its module's code is another here."""
    __import__(module_name)
    module = sys.modules[module_name]
    codes = _codes(module)
    code = codes[place] if place < len(codes) else None
    if code is None or (code.co_name, zlib.crc32(code.co_code)) != (name, checksum):
        raise CheckpointError(f"{module_name} is other code on this worker: install the same there")
    made = FunctionType(code, vars(module), name, defaults, closure)
    made.__kwdefaults__ = keyword_defaults
    return made


@cache
def _places(module: ModuleType) -> dict[CodeType, int]:
    return {code: number for number, code in enumerate(_codes(module))}


@cache
def _codes(module: ModuleType) -> list[CodeType]:
    """Return all code of a module, in the order in which it is written."""
    spec = find_spec(module.__name__)
    loader: Any = spec.loader if spec else None
    code = loader.get_code(module.__name__) if hasattr(loader, "get_code") else None
    return list(_inside(code)) if code else []


def _inside(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _inside(constant)


# The input files that a worker has open, by where they are and what they were.
_OPEN: dict[tuple[str, object], InputFile] = {}
_OPENING = threading.Lock()


def opened_input(place: str, size_bytes: int, modified_ns: int) -> InputFile:
    """Return an input file on a worker; raises CheckpointError where it is another one there."""
    key = place, (size_bytes, modified_ns)
    with _OPENING:
        if key not in _OPEN:
            file = InputFile(Path(place))
            if (file.size_bytes, file.modified_ns) != (size_bytes, modified_ns):
                file.close()
                raise CheckpointError(
                    f"{place}: is another file here: {file.size_bytes} bytes of time "
                    f"{file.modified_ns}, expected {size_bytes} of {modified_ns}"
                )
            _OPEN[key] = file
        return _OPEN[key]


def fetched_input(location: str, identity: Identity) -> InputFile:
    """Return an input file that is elsewhere, which a worker fetches with what it may itself."""
    key = location, identity
    with _OPENING:
        if key not in _OPEN:
            calls.require_here()  # a worker's process has threads, and is not to be forked
            path = path_of(location)
            assert isinstance(path, RemotePath)
            file = FetchedFile(path)
            if file.reader.identity != identity:
                raise CheckpointError(f"{location}: is another file by now, or for this worker")
            _OPEN[key] = file
        return _OPEN[key]


def close_inputs() -> None:
    """Close what a worker has open, once nothing reads it any more."""
    with _OPENING:
        for file in _OPEN.values():
            file.close()
        _OPEN.clear()
