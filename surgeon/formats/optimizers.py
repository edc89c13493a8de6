"""Optimizer states: found in what a torch file holds, or read from a file that surgeon wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from surgeon.base.deferred import np
from surgeon.base.errors import CheckpointError, did_you_mean
from surgeon.base.regions import split_block
from surgeon.base.strict_json import parse_object
from surgeon.formats.checkpoint import (
    Checkpoint,
    Contents,
    Opaque,
    Record,
    is_optimizer,
    is_tensor,
)
from surgeon.formats.files import InMemory
from surgeon.lazy import LazyTensor, Stored, TensorSpec

# The metadata entry that tells our own files, and holds what their tensors cannot say.
METADATA = "optimizer_state"
# What bitsandbytes keeps beside codes: since 0.46 in a dict of its own, before among the rest.
_EIGHT_BITS = {"__bnb_optimizer_quant_state__", "qmap1"}
EIGHT_BITS = "is the state of an 8-bit optimizer of bitsandbytes, whose moments are blocks of codes"
_OURS = f"there is no '{METADATA}' in its metadata, so surgeon did not write it"


@dataclass(frozen=True)
class Entry:
    """What an optimizer keeps for a parameter, or for a block of one such as `fc.weight[0:7]`.

    `block` is empty where the file has no names. Tensors are as large as the parameter, also for
    a block. `numbers` are those that were Python numbers. `problem` says why it cannot be carried.
    """

    block: str
    values: Mapping[str, LazyTensor]
    numbers: frozenset[str] = frozenset()
    problem: str = ""


@dataclass(frozen=True)
class SavedState:
    """An optimizer's state as a file holds it; its groups hold entries in the optimizer's order.

    `place` is what names it on the command line. `matched_by` is "order" in a file of ours whose
    names were told by nothing better. Nothing may be read after `close`.
    """

    place: str
    groups: tuple[tuple[Entry, ...], ...]
    records: tuple[Record, ...]
    close: Callable[[], None]
    matched_by: Literal["", "order"] = ""

    @property
    def entries(self) -> list[Entry]:
        return [entry for group in self.groups for entry in group]


def places_in(contents: Contents) -> dict[str, Mapping[object, object]]:
    """Return the optimizer states in a torch file by the words that name them after the '#'."""
    return dict(_found(contents.value))


def _found(root: object) -> Iterator[tuple[str, Mapping[object, object]]]:
    seen: set[int] = set()
    pending = [("", root)]
    while pending:
        name, value = pending.pop()
        if not isinstance(value, dict | list | tuple) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict) and is_optimizer(value):
            yield name, value
            continue
        items = value.items() if isinstance(value, dict) else enumerate(value)
        inner = [(f"{name}.{key}".lstrip("."), item) for key, item in items
                 if isinstance(item, dict | list | tuple)]  # fmt: skip
        pending += reversed(inner)


def state_in(contents: Contents, inner: str) -> SavedState:
    """Return the one optimizer state of a torch file, or that in `inner`.

    Raises CheckpointError, with a line for each there is, where it is not clear which is meant.
    """
    there = places_in(contents)
    found = {name: value for name, value in there.items() if f"{name}.".startswith(f"{inner}.")}
    if not inner:
        found = there
    if not found:
        hint = did_you_mean(inner, there) if inner else ""
        where = f" in {inner!r}" if inner else ""
        raise CheckpointError(f"{contents.path}: found no optimizer's state{where}{hint}")
    if len(found) > 1:
        raise CheckpointError(
            *(f"{contents.path}#{name}: found one of {len(found)} optimizer states; name the one "
              f"that is meant: --optimizer {contents.path}#{name}" for name in found)
        )  # fmt: skip
    ((name, value),) = found.items()
    place = f"{contents.path}#{name}" if name else str(contents.path)
    records = {id(record): record for record in contents.origins.values()}
    try:
        groups = tuple(_groups(value, contents.path))
    except ValueError as error:
        raise CheckpointError(f"{place}: {error}") from None
    return SavedState(place, groups, tuple(records.values()), contents.close)


def _groups(value: Mapping[object, object], path: Path) -> Iterator[tuple[Entry, ...]]:
    state, groups = value["state"], value["param_groups"]
    if not isinstance(state, dict) or not isinstance(groups, list):
        raise ValueError("found 'state' and 'param_groups' that are not a dict and a list")
    for group in groups:
        params = group.get("params") if isinstance(group, dict) else None
        if not isinstance(params, list) or not all(isinstance(p, int | str) for p in params):
            raise ValueError("found a group of parameters without a list of them")
        # Distributed checkpoints have names where others have numbers.
        names = group.get("param_names", params)
        if not isinstance(names, list) or len(names) != len(params):
            raise ValueError("found 'param_names' that do not go with 'params'")
        # A distributed checkpoint spells numbers that are keys.
        yield tuple(
            _entry(
                name if isinstance(name, str) else "",
                state.get(parameter, state.get(str(parameter), {})),
                path,
            )
            for parameter, name in zip(params, names, strict=True)
        )


def _entry(name: str, kept: object, path: Path) -> Entry:
    if not isinstance(kept, dict):
        return Entry(name, {}, problem=f"is a {type(kept).__name__}")
    values: dict[str, LazyTensor] = {}
    numbers: set[str] = set()
    if _EIGHT_BITS & kept.keys():
        return Entry(name, {}, problem=EIGHT_BITS)
    for key, value in kept.items():
        if value is None:
            continue
        if not isinstance(key, str) or not key.isprintable() or "/" in key:
            return Entry(name, {}, problem=f"has a key {key!r:.60}")
        if is_tensor(value):
            values[key] = value
        elif isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
            values[key] = _number(value, path)
            numbers.add(key)
        else:
            what = value.what if isinstance(value, Opaque) else f"a {type(value).__name__}"
            return Entry(name, {}, problem=f"has {what} under {key!r}")
    return Entry(name, values, frozenset(numbers))


def _number(value: float, path: Path) -> LazyTensor:
    dtype = {bool: "BOOL", int: "I64", float: "F64"}[type(value)]
    data = np.array([value]).view(np.uint8)
    return Stored(InMemory(path, data), 0, TensorSpec(dtype, ()))


def state_of_ours(checkpoint: Checkpoint) -> SavedState:
    """Return the state in a safetensors file of ours; raises CheckpointError for any other."""
    try:
        if METADATA not in checkpoint.metadata:
            raise ValueError(_OURS)
        described = parse_object(checkpoint.metadata[METADATA].encode())
        blocks, numbers = (_names(described.get(key)) for key in ("parameters", "numbers"))
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from None
    owned: dict[str, dict[str, str]] = {}
    for name in checkpoint.tensors:
        owner, _, key = name.rpartition("/")
        owned.setdefault(owner, {})[key] = name
    entries, were_numbers = [], set(numbers)
    for block in blocks:
        names = {**owned.get(split_block(block)[0], {}), **owned.get(block, {})}
        values = {key: checkpoint.tensors[name] for key, name in names.items()}
        own = frozenset(key for key, name in names.items() if name in were_numbers)
        entries.append(Entry(block, values, own))
    return SavedState(
        str(checkpoint.path),
        (tuple(entries),),
        checkpoint.records,
        checkpoint.close,
        "order" if described.get("matched_by") == "order" else "",
    )


def _names(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"its metadata's '{METADATA}' lacks the names of parameters or numbers")
    return value
