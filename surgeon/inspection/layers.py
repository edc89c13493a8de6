"""In which layer and module a tensor lies, by its name, and the order in which those are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from surgeon.base.depth import is_before_layers, layer_of

# What a picture calls the module that is a layer itself.
ITSELF = "(itself)"
# More modules than this beside each other are no longer told apart: those that differ in a number
# alone, as experts do, are one then.
_MOST_COLUMNS = 48


def depth(name: str) -> tuple[int, tuple[object, ...], int]:
    """Return what sorts tensors by layer: before the numbered layers, in them, after them."""
    layer = layer_of(name)
    if layer is None:
        return (0 if is_before_layers(name) else 2), (), 0
    return 1, natural(layer[0]), layer[1]


def natural(name: str) -> tuple[object, ...]:
    """Return what sorts names by the numbers in them: `block2` before `block10`."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts))


def layer_and_module(name: str) -> tuple[str, str]:
    """Return the layer and the module in it that a tensor belongs to."""
    layer, module = layer_of(name), name.rpartition(".")[0]
    if layer is None:
        return module or name, ""
    label = f"{layer[0]}.{layer[1]}".removeprefix(".")
    return label, module.removeprefix(label).removeprefix(".")


def layer_and_tensor(name: str) -> tuple[str, str]:
    """Return the layer that a tensor lies in, and what it is called there; weights by module."""
    layer, module = layer_and_module(name)
    leaf = name.rpartition(".")[2]
    if leaf == "weight":
        return layer, module
    return layer, ("" if name == layer else f"{module}.{leaf}".removeprefix("."))


def columns(modules: Iterable[str]) -> dict[str, str]:
    """Return the column of each module, in their order: a `*` for numbers where there are many."""
    found = sorted(set(modules), key=natural)
    if len(found) <= _MOST_COLUMNS:
        return {module: module or ITSELF for module in found}
    return {module: re.sub(r"(?<![^.])\d+(?![^.])", "*", module) or ITSELF for module in found}
