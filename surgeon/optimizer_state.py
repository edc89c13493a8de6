"""Take an optimizer's state through the surgery that its parameters went through.

A planned tensor is a tree of forms over the input's tensors. What an optimizer keeps for each of
its elements is the same tree over what it kept for theirs: renames, ties, selections and joins
then follow by themselves. What a recipe creates has no state, nor has what it computes of several
tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from surgeon import __version__
from surgeon.draft import Tensors
from surgeon.dtypes import DTYPES
from surgeon.errors import PlanError
from surgeon.formats import Record, SavedState
from surgeon.formats.checkpoint import listed
from surgeon.formats.optimizers import METADATA, Entry
from surgeon.initialisers import fresh
from surgeon.layout import OutputFile, lay_out, ties
from surgeon.lazy import (
    Copied,
    Elementwise,
    Fresh,
    Joined,
    LazyTensor,
    Selected,
    Stored,
    Stream,
    Strided,
    TensorSpec,
    detached,
)
from surgeon.matching import matched
from surgeon.regions import Region, remainder, spelled
from surgeon.tables import plural

Place = tuple[object, ...]
_COMBINED = "their values were made of several tensors"
_MIXED = "their parts come from tensors of which other things were kept"


@dataclass(frozen=True)
class OptimizerState:
    """What is written: tensors called `<parameter>/<key>`, and the blocks that they belong to.

    Tensors are as large as their parameter, with zeros where it has no state. What is kept once
    per parameter, such as a step count, is called `<block>/<key>` where a parameter was put
    together from several. `reset` says, by the reason, what lost the state that it had.
    """

    place: str
    tensors: Tensors
    parameters: tuple[str, ...]
    numbers: tuple[str, ...]
    reset: Mapping[str, tuple[str, ...]]
    records: tuple[Record, ...]

    def layout(self, name: str) -> OutputFile:
        """Return the layout of the file that holds it."""
        described = {"parameters": self.parameters, "numbers": self.numbers}
        metadata = {
            "surgeon": json.dumps({"version": __version__}),
            METADATA: json.dumps(described, ensure_ascii=False),
        }
        return lay_out(self.tensors, metadata, name)

    @property
    def summary(self) -> str:
        """Where it comes from and how much of it there is, in a line."""
        blocks = plural(len(self.parameters), "block")
        lost = sum(map(len, self.reset.values()))
        starting = f"; {plural(lost, 'parameter')} lost theirs" if lost else ""
        return f"optimizer state of {self.place}: carried for {blocks}{starting}"

    @property
    def notes(self) -> list[str]:
        """A line for each reason for which state was lost."""
        return [
            f"optimizer state: {listed(names)} start without: {reason}"
            for reason, names in self.reset.items()
        ]


@dataclass(frozen=True)
class _Source:
    """What was kept for a region of one of the input's parameters."""

    region: Region
    shape: tuple[int, ...]
    entry: Entry

    @property
    def elementwise(self) -> Tensors:
        """What was kept for each element."""
        return {key: t for key, t in self.entry.values.items() if self._is_elementwise(t.spec)}

    @property
    def scalars(self) -> Tensors:
        """What was kept once, such as a step count."""
        return {key: t for key, t in self.entry.values.items() if self._is_scalar(t.spec)}

    @property
    def other(self) -> list[str]:
        """The keys of what is neither, such as factored, quantised or flattened moments."""
        known = {*self.elementwise, *self.scalars}
        return [key for key in self.entry.values if key not in known]

    def _is_elementwise(self, spec: TensorSpec) -> bool:
        return spec.shape == self.shape != () and DTYPES[spec.dtype].kind == "float"

    def _is_scalar(self, spec: TensorSpec) -> bool:
        return spec.count == 1 and (spec.shape == () or spec.shape != self.shape)

    def goes_with(self, other: _Source) -> bool:
        """Say whether one parameter can have state of both."""
        return _layout_of(self.elementwise) == _layout_of(other.elementwise) and (
            self.scalars.keys() == other.scalars.keys()
        )


def _layout_of(tensors: Tensors) -> dict[str, str]:
    return {key: tensor.spec.dtype for key, tensor in tensors.items()}


@dataclass(frozen=True, eq=False)
class _Partly(Copied):
    """What was kept for a tensor, but for the regions for which there is nothing."""

    missing: tuple[Region, ...] = ()

    def new(self) -> tuple[Region, ...]:
        return self.missing


@dataclass
class _Carrying:
    """What is found on the way."""

    sources: Mapping[Place, Sequence[_Source]]
    tensors: Tensors = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    reset: dict[str, list[str]] = field(default_factory=dict)


def carried(saved: SavedState, given: Tensors, planned: Tensors, *, ordered: bool) -> OptimizerState:
    """Return the state of the planned tensors, from what was saved for the given ones.

    `ordered` says that `given` has the order of the model's parameters, so that a state without
    names can be told by it. Raises PlanError where the two do not belong together.
    """
    sources: dict[Place, list[_Source]] = {}
    found, unknown = matched(saved, given, ordered=ordered)
    for name, region, entry in found:
        tensor = given[name]
        source = _Source(region, tensor.spec.shape, entry)
        sources.setdefault(_place(tensor), []).append(source)
    on_the_way = _Carrying(sources)
    if unknown:
        on_the_way.reset["the input has no such tensors"] = unknown
    aliases = ties(planned)
    for name, tensor in planned.items():
        if name not in aliases and tensor.spec.count:
            _carry(name, tensor, on_the_way)
    return OptimizerState(
        place=saved.place,
        tensors=on_the_way.tensors,
        parameters=tuple(on_the_way.parameters),
        numbers=tuple(on_the_way.numbers),
        reset={reason: tuple(names) for reason, names in on_the_way.reset.items()},
        records=saved.records,
    )


def _place(form: LazyTensor) -> Place:
    """Return what two forms share that stand for the same of the input, as after `untie`."""
    match form:
        case Stored(file=file, offset=offset, spec=spec):
            return id(file), offset, spec
        case Strided(storage=storage, strides=strides, shape=shape):
            return (*_place(storage), strides, shape)
    return (id(form),)


def mapped(tensor: LazyTensor, leaf: Callable[[LazyTensor], LazyTensor]) -> LazyTensor:
    """Return the same tree of moves over other leaves.

    A cast changes nothing: what is kept of a tensor has a dtype of its own. Every form that moves
    elements belongs here; any other is a leaf.
    """
    match tensor:
        case Joined(parts=parts, dim=dim):
            return Joined(tuple(mapped(part, leaf) for part in parts), dim)
        case Selected(source=source, dim=dim, ranges=ranges):
            return Selected(mapped(source, leaf), dim, ranges)
        case Elementwise(operands=(operand,)):
            return mapped(operand, leaf)
    return leaf(tensor)


def _leaves(tensor: LazyTensor) -> list[LazyTensor]:
    found: list[LazyTensor] = []

    def seen(form: LazyTensor) -> LazyTensor:
        found.append(form)
        return form

    mapped(tensor, seen)
    return found


def _carry(name: str, tensor: LazyTensor, found: _Carrying) -> None:
    """Add what the optimizer kept for a planned tensor."""
    if same := found.sources.get(_place(tensor)):
        unusable = [source.entry.problem for source in same if source.entry.problem]
        if unusable:
            found.reset.setdefault(f"what was kept {unusable[0]}", []).append(name)
            return
        whole = {k: t for s in same for k, t in s.entry.values.items() if k not in s.scalars}
        _add(name, tensor, whole, [(source, [source.region]) for source in same], found)
        return
    leaves = _leaves(tensor)
    places = dict.fromkeys(_place(leaf) for leaf in leaves)
    sources = [source for place in places for source in found.sources.get(place, ())]
    # What was made of nothing that has state had none to lose.
    if not sources and not any(map(_has_state_inside(found), leaves)):
        return
    usable, reasons = _usable(sources)
    if any(_is_combined(leaf, found.sources) for leaf in leaves):
        reasons.append(_COMBINED)
    for reason in dict.fromkeys(reasons):
        found.reset.setdefault(reason, []).append(name)
    parts = [(source, _regions(tensor, source, found.sources)) for source in usable]
    if parts := [(source, regions) for source, regions in parts if regions]:
        keys = _layout_of(parts[0][0].elementwise)
        whole = {key: _moments(tensor, key, dtype, usable, found) for key, dtype in keys.items()}
        _add(name, tensor, whole, parts, found)
