"""Tell which of the input's parameters each entry of an optimizer's state belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

from surgeon.base.errors import PlanError, did_you_mean
from surgeon.base.regions import Region, intersection, parsed, split_block, whole
from surgeon.draft import Tensors
from surgeon.formats import SavedState
from surgeon.formats.optimizers import Entry
from surgeon.formats.wrappers import unwrapped
from surgeon.manifest.stages import is_parameter

Match = tuple[str, Region, Entry]
Shape = tuple[int, ...]
_WITH_NAMES = (
    "save the state of an optimizer that was made with model.named_parameters(), or leave it out "
    "with --optimizer none"
)


def matched(saved: SavedState, tensors: Tensors, *, ordered: bool) -> tuple[list[Match], list[str]]:
    """Return what each entry is the state of, and the names of those that the input lacks.

    Entries without names are told by the order of the input's parameters, if it has that order.
    Raises PlanError where counts or shapes do not fit, or the order does not tell.
    """
    try:
        if all(entry.block for entry in saved.entries):
            found, unknown = _by_name(saved.entries, tensors)
        elif ordered:
            found, unknown = list(_by_order(saved, tensors)), []
        else:
            raise PlanError(
                "holds no names, and only a torch file keeps the order of a model's parameters; "
                + _WITH_NAMES
            )
        if problems := [*_misfits(found, tensors), *_twice(found, tensors)]:
            raise PlanError(*problems)
    except PlanError as error:
        raise error.at(saved.place) from None
    return found, unknown


def _by_name(entries: Iterable[Entry], tensors: Tensors) -> tuple[list[Match], list[str]]:
    found: list[Match] = []
    unknown: list[str] = []
    blocks = {entry.block: entry for entry in entries}
    if not any(_name_in(block, tensors) in tensors for block in blocks):
        blocks = unwrapped(blocks)
    for block, entry in blocks.items():
        name = _name_in(block, tensors)
        if name not in tensors:
            unknown.append(block)
            continue
        shape = tensors[name].spec.shape
        try:
            region = whole(shape) if name == block else parsed(split_block(block)[1], shape)
        except ValueError as error:
            raise PlanError(f"'{block}': {error}") from None
        found.append((name, region, entry))
    if unknown and not found:
        hint = did_you_mean(unknown[0], tensors)
        raise PlanError(f"the input has no '{unknown[0]}', nor any other of its parameters{hint}")
    return found, unknown


def _name_in(block: str, tensors: Tensors) -> str:
    # A name with brackets of its own is a name first.
    return block if block in tensors else split_block(block)[0]


def _parameters(tensors: Tensors) -> dict[str, Shape]:
    """Return the shapes of the input's parameters in its order, tied ones once."""
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        if is_parameter(name, tensor.spec.dtype):
            first.setdefault(tensor.byte_origin, name)
    return {name: tensors[name].spec.shape for name in first.values()}


def _by_order(saved: SavedState, tensors: Tensors) -> Iterator[Match]:
    shapes = _parameters(tensors)
    if len(saved.entries) != len(shapes):
        raise PlanError(
            f"keeps the state of {len(saved.entries)} parameters without their names, and the "
            f"input has {len(shapes)}; {_WITH_NAMES}"
        )
    alone = len(saved.groups) == 1
    pairs = zip(shapes, saved.entries, strict=True) if alone else _by_shape(saved, shapes)
    for name, entry in pairs:
        yield name, whole(shapes[name]), entry


def _by_shape(saved: SavedState, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Entry]]:
    """Tell by their shapes which group parameters are in; each group keeps the model's order."""
    slots: dict[Shape, list[str]] = {}
    for name, shape in shapes.items():
        slots.setdefault(shape, []).append(name)
    order = list(shapes)
    groups_of: dict[Shape, int] = {}
    for number, group in enumerate(saved.groups):
        last = -1
        for entry in group:
            kept = {tensor.spec.shape for tensor in entry.values.values()} - {()}
            shape = next(iter(kept), ())
            if len(kept) != 1 or groups_of.setdefault(shape, number) != number:
                raise PlanError(_unordered(len(saved.groups), shape if len(kept) == 1 else None))
            name = slots[shape].pop(0) if slots.get(shape) else ""
            if not name or order.index(name) < last:
                raise PlanError(_unordered(len(saved.groups), None))
            last = order.index(name)
            yield name, entry


def _unordered(count: int, shape: Shape | None) -> str:
    reason = "their shapes do not tell" if shape is None else f"two of them have shape {shape}"
    return (
        f"has {count} groups of parameters without names, and {reason} which parameter is in "
        f"which; {_WITH_NAMES}"
    )


def _misfits(found: Iterable[Match], tensors: Tensors) -> Iterator[str]:
    """Say which tensors cannot be the state of their parameter."""
    for name, _, entry in found:
        spec = tensors[name].spec
        kept = {key: t.spec.shape for key, t in entry.values.items() if t.spec.count != 1}
        if kept and spec.shape not in kept.values():
            for key, shape in kept.items():
                if not _is_made_of(shape, spec.shape):
                    yield (
                        f"'{name}' is {spec} in the input, but its '{key}' is {shape}; it is not "
                        "the state of this checkpoint, or its parameters have another order"
                    )
                    break


def _is_made_of(kept: Shape, shape: Shape) -> bool:
    """Say whether a shape can be that of a factored or flattened moment."""
    sizes = iter(shape)
    return prod(kept) == prod(shape) or all(size == 1 or size in sizes for size in kept)


def _twice(found: Iterable[Match], tensors: Tensors) -> Iterator[str]:
    """Say which parameters have state twice."""
    taken: dict[tuple[object, ...], list[Region]] = {}
    for name, region, _ in found:
        regions = taken.setdefault(tensors[name].byte_origin, [])
        if any(intersection(region, other) for other in regions):
            yield f"'{name}' has state twice, under this name or one that is tied to it"
        regions.append(region)
