"""Tell which of the input's parameters each entry of an optimizer's state belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from surgeon.base.errors import Hints, PlanError, did_you_mean, listed
from surgeon.base.regions import Region, intersection, parsed, split_block, whole
from surgeon.draft import Tensors
from surgeon.formats import SavedState
from surgeon.formats.optimizers import Entry
from surgeon.formats.wrappers import unwrapped
from surgeon.manifest.stages import is_parameter
from surgeon.model_folder.parameters import ParameterOrder

Match = tuple[str, Region, Entry]
Shape = tuple[int, ...]
MatchedBy = Literal["names", "shapes", "order"]
_WITH_NAMES = (
    "save the state of an optimizer that was made with model.named_parameters(), give the names in "
    "its order (--optimizer-order FILE, a JSON list), or leave the state out (--optimizer none)"
)
STRICT = "strict"


@dataclass(frozen=True)
class Order:
    """What is known of the order of an optimizer's parameters.

    `names` are all of them, group after group, as the user gave them. `is_kept` says whether the
    input keeps the order of the model's parameters, and `is_strict` that it is no proof.
    `architecture` is the order of the class that a model folder names, where that is known.
    """

    is_kept: bool
    names: tuple[str, ...] | None = None
    is_strict: bool = False
    architecture: ParameterOrder | None = None


@dataclass(frozen=True)
class Matched:
    """What each entry is the state of, the names that the input lacks, and what told.

    `whose` says whose order it was, where an order told.
    """

    found: list[Match]
    unknown: list[str]
    by: MatchedBy
    whose: str = ""


def matched(saved: SavedState, tensors: Tensors, order: Order) -> Matched:
    """Return what each entry is the state of.

    Told by names; else by shapes, where no two are equal; else by the order that the class of a
    model folder has, in one group or in those of transformers' Trainer; else, for the parameters of
    one group, by the order of the input's own, if it has that. Raises PlanError where counts or
    shapes do not fit, or nothing tells.
    """
    try:
        result = _matched(saved, tensors, order)
        if problems := [*_misfits(result.found, tensors), *_twice(result.found, tensors)]:
            raise PlanError(*problems)
    except PlanError as error:
        raise error.at(saved.place) from None
    return result


def _matched(saved: SavedState, tensors: Tensors, order: Order) -> Matched:
    if all(entry.block for entry in saved.entries):
        if order.names is not None:
            raise PlanError("has the names of its parameters; leave --optimizer-order FILE away")
        return Matched(*_by_name(saved.entries, tensors), saved.matched_by or "names")
    if order.names is not None:
        return Matched(_by_given_names(saved.entries, order.names, tensors), [], "names")
    shapes = parameters_of(tensors)
    if len(saved.entries) != len(shapes):
        raise PlanError(
            f"keeps the state of {len(saved.entries)} parameters without their names, and the "
            f"input has {len(shapes)}; {_WITH_NAMES}"
        )
    if (found := _by_shape(saved.entries, shapes)) is not None:
        return Matched(found, [], "shapes")
    names, whose = _known_order(saved, order)
    if not names and len(saved.groups) > 1:
        raise PlanError(
            f"has {len(saved.groups)} groups of parameters without names, and several parameters "
            f"of one shape: which is which cannot be told{_trainers(saved, order)}; {_WITH_NAMES}"
        )
    reason = _moved(tensors) if order.is_kept else "only a torch file keeps it"
    if not names and reason:
        raise PlanError(
            "holds no names, several parameters have one shape, and the input does not have the "
            f"order of the model's parameters ({reason}); {_WITH_NAMES}"
        )
    if order.is_strict:
        raise PlanError(
            f"holds no names, and several parameters have one shape, so that only {whose} tells, "
            f"which --optimizer-order strict refuses; {_WITH_NAMES}"
        )
    pairs = zip(names or shapes, saved.entries, strict=True)
    found = [(name, whole(shapes[name]), entry) for name, entry in pairs]
    return Matched(found, [], "order", whose)


def _known_order(saved: SavedState, order: Order) -> tuple[tuple[str, ...], str]:
    """Return the names in the optimizer's order, where the architecture's is known; whose it is."""
    known = order.architecture
    counts = tuple(map(len, saved.groups))
    if known and counts == (len(known.names),):
        return known.names, f"the order of the parameters of {known.class_name}"
    if known and counts == tuple(map(len, known.groups)):
        decayed, others = known.groups
        return decayed + others, (
            f"the order of the parameters of {known.class_name}, in the two groups that "
            "transformers' Trainer makes,"
        )
    return (), "the order of the input's parameters"


def _trainers(saved: SavedState, order: Order) -> str:
    """Say where groups are not those that transformers' Trainer makes of a known class."""
    if order.architecture is None:
        return ""
    counts = " and ".join(str(len(group)) for group in saved.groups)
    expected = " and ".join(str(len(group)) for group in order.architecture.groups)
    return (
        f" (groups of {counts}, and transformers' Trainer makes {expected} of "
        f"{order.architecture.class_name})"
    )


def _moved(tensors: Tensors) -> str:
    """Say by what names show that they are not in the order of a model; empty where nothing does.

    torch's layers have their weight before their bias, and containers number what they hold in
    its order; as words, 10 comes before 2.
    """
    names = list(tensors)
    biases = [name for name in names if name.rpartition(".")[2] == "bias"]
    has_weight = any(f"{name.removesuffix('bias')}weight" in tensors for name in biases)
    if has_weight and names == sorted(names):
        return "its names were sorted"
    last: dict[tuple[str, ...], int] = {}
    for name in names:
        segments = tuple(name.split("."))
        for place, segment in enumerate(segments):
            if segment.isdecimal():
                number = int(segment)
                before = last.setdefault(segments[:place], number)
                if number < before:
                    where = ".".join((*segments[:place], ""))
                    return f"it has '{where}{before}' before '{where}{number}'"
                last[segments[:place]] = number
    return ""


def fits(saved: SavedState, tensors: Tensors) -> bool:
    """Say whether a state without names could be that of these tensors, by counts and shapes."""
    shapes = parameters_of(tensors)
    kept = Counter(shape for shape in map(_shape_of, saved.entries) if shape is not None)
    return len(saved.entries) == len(shapes) and kept <= Counter(shapes.values())


def _by_given_names(
    entries: Sequence[Entry], names: Sequence[str], tensors: Tensors
) -> list[Match]:
    if len(names) != len(entries):
        raise PlanError(
            f"keeps the state of {len(entries)} parameters, and --optimizer-order names "
            f"{len(names)}"
        )
    named = [replace(entry, block=name) for entry, name in zip(entries, names, strict=True)]
    if unknown := [name for name in names if _name_in(name, tensors) not in tensors]:
        hint = Hints(tensors)
        raise PlanError(
            *(f"--optimizer-order: the input has no '{name}'{hint(name)}" for name in unknown)
        )
    if len(set(names)) < len(names):
        twice = [name for name, count in Counter(names).items() if count > 1]
        raise PlanError(f"--optimizer-order: {listed(twice)} is there twice")
    return _by_name(named, tensors)[0]


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


def parameters_of(tensors: Tensors) -> dict[str, Shape]:
    """Return the shapes of the input's parameters in its order, tied ones once."""
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        if is_parameter(name, tensor.spec.dtype):
            first.setdefault(tensor.byte_origin, name)
    return {name: tensors[name].spec.shape for name in first.values()}


def _by_shape(entries: Sequence[Entry], shapes: Mapping[str, Shape]) -> list[Match] | None:
    """Tell entries by their shapes; None where two parameters, or two entries, have the same."""
    kept = [_shape_of(entry) for entry in entries]
    owners = {shape: name for name, shape in shapes.items()}
    if len(owners) < len(shapes) or len(set(kept)) < len(kept) or not set(kept) <= owners.keys():
        return None
    pairs = zip(kept, entries, strict=True)
    return [(owners[shape], whole(shape), entry) for shape, entry in pairs if shape is not None]


def _shape_of(entry: Entry) -> Shape | None:
    """Return the shape that all of an entry's moments have; None where they do not tell."""
    kept = {tensor.spec.shape for tensor in entry.values.values()} - {()}
    return next(iter(kept)) if len(kept) == 1 else None


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
