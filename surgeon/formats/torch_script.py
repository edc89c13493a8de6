"""Read the weights of a TorchScript archive, under the names that state_dict() gives them.

Its modules are objects whose attributes lie in data.pkl; which of those are parameters and which
are buffers is said by two lines of each class in the archive's code. Those are read as text: no
code runs, and it is left behind, with its constants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from surgeon.base.errors import listed
from surgeon.formats.checkpoint import Opaque, is_tensor
from surgeon.formats.modules import is_module
from surgeon.formats.torch_globals import Global
from surgeon.formats.torch_values import TorchWorld
from surgeon.formats.torch_zip import Archive

_ROOT = "__torch__"
_CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:  .*\n|\n)*)", re.MULTILINE)
_LISTED = re.compile(r"^  __(parameters|buffers)__ = \[(.*)\]$", re.MULTILINE)
_NAME = re.compile(r'"([^"]+)"')
_LEFT = "TorchScript: its code and constants are left behind"


class _Fields(NamedTuple):
    """The names of a class's parameters and buffers; None of a version that does not list them."""

    parameters: tuple[str, ...]
    buffers: tuple[str, ...] | None


class ScriptWorld(TorchWorld):
    """A torch archive's globals and storages, with the modules that its code describes."""

    def __init__(self, archive: Archive) -> None:
        super().__init__(archive.file, archive.members)
        self._archive = archive
        self._read: dict[str, dict[str, _Fields]] = {}
        self._built: list[tuple[Opaque, dict[object, object]]] = []

    def find(self, module: str, name: str) -> object:
        if module == "torch.jit._pickle":  # lists, and values with the names of their types
            return Global(f"{module}.{name}", run=lambda world, value=None, *_: value)
        found = super().find(module, name)
        if module.partition(".")[0] == _ROOT:
            self.unknown.pop(f"{module}.{name}", None)
        return found

    def build(self, value: object, state: object) -> None:
        fields = self._fields(value.what) if type(value) is Opaque else None
        if fields is None or not isinstance(state, dict) or not isinstance(value, Opaque):
            super().build(value, state)
            return
        inner = {name: item for name, item in state.items() if is_module(item)}
        tensors = {name: item for name, item in state.items() if _is_tensor(item)}
        buffers = fields.buffers
        if buffers is None:
            buffers = tuple(str(name) for name in tensors if name not in fields.parameters)
        value.state = {
            "_parameters": {name: state.get(name) for name in fields.parameters},
            "_buffers": {name: state.get(name) for name in buffers},
            "_modules": inner,
        }
        taken = {*fields.parameters, *buffers, *inner}
        self._built.append((value, {n: v for n, v in state.items() if n not in taken}))

    def _fields(self, full: str) -> _Fields | None:
        """Return what the archive's code says of a class; None of one that is no module."""
        module, _, name = full.rpartition(".")
        if module.partition(".")[0] != _ROOT:
            return None
        if module not in self._read:
            text = self._archive.read_code(f"code/{module.replace('.', '/')}.py")
            self._read[module] = dict(_classes(text))
        return self._read[module].get(name)

    def left(self) -> tuple[str, ...]:
        """Say what is no part of a state_dict; raises ValueError for weights that would be lost."""
        weights = {id(item) for value, _ in self._built for item in _own(value)}
        if not weights and self._archive.has_constants:
            raise ValueError(
                "this is a TorchScript archive without parameters, whose weights are constants of "
                "its code, as torch.jit.freeze leaves them; save the model before it is frozen"
            )
        left: list[str] = []
        for value, others in self._built:
            for name, item in others.items():
                for found in _inside(item):
                    if isinstance(found, Opaque) and found.problem:
                        raise ValueError(
                            f"found {found.what!r} with weights in {name!r} of {value.what!r}, "
                            "which are packed or quantised; save those of the model that it was "
                            "made from"
                        )
                    if is_tensor(found) and id(found) not in weights:
                        left.append(f"{value.what.rpartition('.')[2]}.{name}")
        unbuilt = super().left()
        if not left:
            return (_LEFT, *unbuilt)
        names = listed(list(dict.fromkeys(left)))
        return (f"{_LEFT}, and tensors that are no parameters or buffers: {names}", *unbuilt)


def _classes(text: str) -> Iterator[tuple[str, _Fields]]:
    for name, body in _CLASS.findall(text):
        found = {kind: tuple(_NAME.findall(items)) for kind, items in _LISTED.findall(body)}
        yield name, _Fields(found.get("parameters", ()), found.get("buffers"))


def _is_tensor(value: object) -> bool:
    return is_tensor(value) or (isinstance(value, Opaque) and value.problem != "")


def _own(module: Opaque) -> Iterator[object]:
    for key in ("_parameters", "_buffers"):
        held = (module.state or {}).get(key)
        yield from held.values() if isinstance(held, dict) else ()


def _inside(value: object) -> Iterator[object]:
    """Yield what an attribute that is no module holds, and what lists, tuples and dicts hold."""
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, dict):
            pending += item.values()
