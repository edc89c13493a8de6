"""Take an optimizer's state through the surgery that its parameters went through.

A planned tensor is a tree of forms over the input's tensors. What an optimizer keeps for each of
its elements is the same tree over what it kept for theirs: renames, ties, selections and joins
then follow by themselves. What a recipe creates has no state, nor has what it computes of several
tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from surgeon import __version__
from surgeon.base.errors import PlanError, SurgeonError, UsageError, listed
from surgeon.base.regions import Region, remainder, spelled
from surgeon.draft import Tensors, ties
from surgeon.formats import Checkpoint, Record, SavedState, open_optimizer
from surgeon.formats.checkpoint import Contents
from surgeon.formats.containers import state_dicts
from surgeon.formats.optimizers import EIGHT_BITS, METADATA, Entry, places_in, state_in
from surgeon.initialisers.parts import Bound
from surgeon.lazy import (
    Copied,
    Fresh,
    LazyTensor,
    Stream,
    TensorSpec,
    detached,
    transplanted,
    walk,
)
from surgeon.manifest.model import StateFile
from surgeon.manifest.optimizer_names import (
    STRICT,
    MatchedBy,
    Order,
    fits,
    matched,
    parameters_of,
)
from surgeon.model_folder.files import config_of
from surgeon.model_folder.parameters import parameter_order
from surgeon.numeric.dtypes import DTYPES
from surgeon.recipe import read_json

Bytes = tuple[object, ...]
_ZEROS = Bound("zeros", lambda start, stop, stream, scratch: np.zeros(stop - start))
# What --optimizer says to leave the state in the input behind.
NONE = "none"
_UNUSED = 'optimizer state: no stage takes it up with "optimizer_state": "carry"'
_BY_ORDER = (
    "optimizer state: matched by {} alone; to make certain, save "
    "it from an optimizer that was made with model.named_parameters(), or give the names in its "
    "order (--optimizer-order FILE)"
)
_FRESH = 'start fresh: let the stage "reset" the state, or leave it out (--optimizer none)'
_UNKNOWN = "the input has no such tensors"
_COMBINED = "their values were made of several tensors"
_MIXED = "they were put together from tensors of which different things were kept"


@dataclass(frozen=True)
class OptimizerState:
    """What is written: tensors called `<parameter>/<key>`, and the blocks that have state.

    Tensors are as large as their parameter, with zeros where it has no state. What is kept once
    per parameter, such as a step count, is called `<block>/<key>` where a parameter was put
    together from several. `reset` names, by the reason, what lost the state that it had.
    """

    place: str
    tensors: Tensors
    parameters: tuple[str, ...]
    numbers: tuple[str, ...]
    reset: Mapping[str, tuple[str, ...]]
    records: tuple[Record, ...]
    matched_by: MatchedBy
    whose: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """What the metadata of the file says that holds it."""
        described: dict[str, object] = {"parameters": self.parameters, "numbers": self.numbers}
        if self.matched_by == "order":  # for the next surgery on it
            described["matched_by"] = self.matched_by
        return {
            "surgeon": json.dumps({"version": __version__}),
            METADATA: json.dumps(described, ensure_ascii=False),
        }

    def entry(self, file: str, sha256: str) -> StateFile:
        """Return what the manifest says of the file."""
        return StateFile(
            file=file, sha256=sha256, matched_by=self.matched_by, parameters=self.parameters
        )

    @property
    def notes(self) -> list[str]:
        """A line for each reason for which state was lost, and one where it may be another's."""
        whose = self.whose.rstrip(",") or "the order of the input's parameters"
        guessed = [_BY_ORDER.format(whose)] if self.matched_by == "order" else []
        return guessed + [
            f"optimizer state: reset for {listed(names)}: {reason}"
            for reason, names in self.reset.items()
        ]


@dataclass(frozen=True, eq=False)
class _Source:
    """What was kept for a region of one of the input's parameters.

    That is for each element (`moments`), or once, such as a step count (`scalars`). `other` are
    the keys of what is neither: factored, quantised, flattened.
    """

    region: Region
    entry: Entry
    moments: Tensors
    scalars: Tensors
    other: tuple[str, ...]

    @property
    def layout(self) -> tuple[Mapping[str, str], Iterable[str]]:
        """What has to be equal where one parameter is put together from several."""
        return {key: moment.spec.dtype for key, moment in self.moments.items()}, [*self.scalars]


def _source(shape: tuple[int, ...], region: Region, entry: Entry) -> _Source:
    moments: Tensors = {}
    scalars: Tensors = {}
    for key, tensor in entry.values.items():
        spec = tensor.spec
        if spec.shape == shape != () and DTYPES[spec.dtype].kind == "float":
            moments[key] = tensor
        elif spec.count == 1 and (spec.shape == () or spec.shape != shape):
            scalars[key] = tensor
    other = tuple(key for key in entry.values if key not in moments and key not in scalars)
    return _Source(region, entry, moments, scalars, other)


@dataclass(frozen=True, eq=False)
class _Partly(Copied):
    """A tensor of the input, as far as there is state for it; the rest counts as created."""

    missing: tuple[Region, ...] = ()

    def new_regions(self) -> tuple[Region, ...]:
        return self.missing


@dataclass
class _Carrying:
    """The input's state by where its parameters lie, and what of it was carried so far."""

    sources: Mapping[Bytes, Sequence[_Source]]
    tensors: Tensors = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    reset: dict[str, list[str]] = field(default_factory=dict)


def of_run(
    given: str | None,
    checkpoint: Checkpoint,
    planned: Tensors,
    stack: ExitStack,
    *,
    is_used: bool,
    is_needed: bool,
    order: str | None = None,
) -> tuple[OptimizerState | None, list[str]]:
    """Carry the state that is given, else that of the input if some stage uses it; add notes.

    `given` is a file, which is opened until the stack closes, or "none". Why the input's state
    cannot be carried is a note too, or where it is needed an error. `order` is what
    --optimizer-order says: "strict", or a file of names.
    """
    names = _order_in(order) if order not in (None, STRICT) else None
    if names is not None and (given == NONE or (given is None and not is_used)):
        raise UsageError("--optimizer-order FILE: no optimizer's state is carried; see --optimizer")
    known = Order(checkpoint.contents is not None, names, order == STRICT)
    if given == NONE:
        return None, []
    if given is not None:
        saved = open_optimizer(given)
        stack.callback(saved.close)
        state = carried(saved, checkpoint, planned, known)
        return state, [*state.notes, *([] if is_used else [_UNUSED])]
    contents = checkpoint.contents
    there = [f"{contents.path}#{name}" for name in places_in(contents)] if contents else []
    if contents is None or not there:
        return None, []
    if not is_used:
        return None, [
            f"no stage carries the optimizer's state in {path}, so it is left behind; "
            f"--optimizer {path} takes it through the surgery"
            for path in there
        ]
    try:
        saved = state_in(contents, "")
        _require_ours(saved, checkpoint, contents)
        state = carried(saved, checkpoint, planned, known)
    except SurgeonError as error:
        if is_needed or order is not None:
            raise
        return None, [f"an optimizer's state is left behind: {line}" for line in error.problems]
    found = f"found the state of an optimizer in {state.place}; --optimizer none leaves it behind"
    return state, [found, *state.notes]


def _order_in(path: str) -> tuple[str, ...]:
    """Read a JSON list of names, or of such lists, one for each group."""
    found = read_json(Path(path), f"--optimizer-order: {path}")
    items = found if isinstance(found, list) else [found]
    names = [name for item in items for name in (item if isinstance(item, list) else [item])]
    if not all(isinstance(name, str) for name in names):
        raise UsageError(f"--optimizer-order: {path}: is not a JSON list of names")
    return tuple(names)


def _require_ours(saved: SavedState, checkpoint: Checkpoint, contents: Contents) -> None:
    """Raise where a state without names may be that of other tensors in the input's file."""
    if all(entry.block for entry in saved.entries):
        return
    mine = {id(tensor) for tensor in checkpoint.tensors.values()}
    ours, others = "", {}
    for name, tensors in state_dicts(contents.value).items():
        if mine.isdisjoint(map(id, tensors.values())):
            others[name] = tensors
        else:
            ours = name
    word = saved.place.rpartition("#")[2].rpartition(".")[2]
    nearer = [n for n in others if _likeness(n, word) > _likeness(ours, word)]
    if rivals := nearer or [name for name, tensors in others.items() if fits(saved, tensors)]:
        raise PlanError(
            f"{saved.place}: may be the state of {listed(rivals)} as well as of '{ours}'; "
            f"--optimizer {saved.place} says that it is that of the input"
        )


def _likeness(name: str, word: str) -> int:
    """Return with how many letters two names end alike, such as netD and optD."""
    pairs = zip(reversed(name.lower()), reversed(word.lower()), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def carried(
    saved: SavedState, checkpoint: Checkpoint, planned: Tensors, order: Order
) -> OptimizerState:
    """Return the state of the planned tensors, from what was saved for those of a checkpoint.

    Raises PlanError where the two do not belong together.
    """
    sources: dict[Bytes, list[_Source]] = {}
    given = checkpoint.tensors
    if order.names is None and not all(entry.block for entry in saved.entries):
        known = parameter_order(config_of(checkpoint), parameters_of(given))
        order = replace(order, architecture=known)
    _require_usable(saved)
    match = matched(saved, given, order)
    unknown = match.unknown
    for name, region, entry in match.found:
        source = _source(given[name].spec.shape, region, entry)
        sources.setdefault(given[name].byte_origin, []).append(source)
    carrying = _Carrying(sources, reset={_UNKNOWN: unknown} if unknown else {})
    aliases = ties(planned)
    for name, tensor in planned.items():
        if name not in aliases and tensor.spec.count:
            _carry(name, tensor, carrying)
    return OptimizerState(
        place=saved.place,
        tensors=carrying.tensors,
        parameters=tuple(carrying.parameters),
        numbers=tuple(carrying.numbers),
        reset={reason: tuple(names) for reason, names in carrying.reset.items()},
        records=saved.records,
        matched_by=match.by,
        whose=match.whose,
    )


def _require_usable(saved: SavedState) -> None:
    """Raise PlanError where nothing of a state can be carried, or where it is one of codes."""
    kept = [entry for entry in saved.entries if entry.values or entry.problem]
    problems = [entry.problem for entry in kept if entry.problem]
    if EIGHT_BITS in problems or (problems and len(problems) == len(kept)):
        problem = EIGHT_BITS if EIGHT_BITS in problems else problems[0]
        raise PlanError(f"{saved.place}: {problem}: no surgery can take it along; {_FRESH}")


def _carry(name: str, tensor: LazyTensor, carrying: _Carrying) -> None:
    """Add what there is for a planned tensor."""
    if untouched := carrying.sources.get(tensor.byte_origin):
        parts = [(source, [source.region]) for source in untouched]
        problem = next((s.entry.problem for s in untouched if s.entry.problem), "")
        if problem:
            carrying.reset.setdefault(problem, []).append(name)
        else:
            kept = {k: t for s in untouched for k, t in s.entry.values.items()
                    if k not in s.scalars}  # fmt: skip
            _add(name, tensor.spec.shape, kept, parts, carrying)
        return
    leaves: list[LazyTensor] = []
    transplanted(tensor, lambda leaf: leaves.append(leaf) or leaf)  # type: ignore[func-returns-value]
    places = dict.fromkeys(leaf.byte_origin for leaf in leaves)
    sources = [source for key in places for source in carrying.sources.get(key, ())]
    reasons = [_COMBINED] if any(_combines(leaf, carrying.sources) for leaf in leaves) else []
    usable: list[_Source] = []
    for source in sources:
        if source.entry.problem or source.other:
            others = ", ".join(map(repr, source.other))
            reasons.append(
                source.entry.problem
                or f"{others} are not kept per element, so that it starts fresh"
            )
        elif usable and usable[0].layout != source.layout:
            reasons.append(_MIXED)
        else:
            usable.append(source)
    for reason in dict.fromkeys(reasons):
        carrying.reset.setdefault(reason, []).append(name)
    parts = [(source, _regions(tensor, source, carrying)) for source in usable]
    if parts := [(source, regions) for source, regions in parts if regions]:
        moments = {key: _moment(tensor, key, usable, carrying) for key in usable[0].moments}
        _add(name, tensor.spec.shape, moments, parts, carrying)


def _combines(leaf: LazyTensor, sources: Mapping[Bytes, Sequence[_Source]]) -> bool:
    """Say whether a leaf is computed of something that has state."""
    if leaf.initialisers is not None or leaf.byte_origin in sources:
        return False
    return any(form.byte_origin in sources for form in walk(leaf))


def _regions(tensor: LazyTensor, source: _Source, carrying: _Carrying) -> list[Region]:
    """Return the regions of a planned tensor whose elements have the state of one source."""

    def leaf(form: LazyTensor) -> LazyTensor:
        if source in carrying.sources.get(form.byte_origin, ()):
            return _Partly(form, tuple(remainder(form.spec.shape, [source.region])))
        return Copied(form)

    return remainder(tensor.spec.shape, transplanted(tensor, leaf).new_regions())


def _moment(
    tensor: LazyTensor, key: str, usable: Sequence[_Source], carrying: _Carrying
) -> LazyTensor:
    dtype = usable[0].moments[key].spec.dtype

    def leaf(form: LazyTensor) -> LazyTensor:
        for source in carrying.sources.get(form.byte_origin, ()):
            if source in usable:
                return source.moments[key]
        return Fresh(TensorSpec(dtype, form.spec.shape), _ZEROS, Stream(0, "", key))

    return transplanted(tensor, leaf)


def _add(
    name: str,
    shape: tuple[int, ...],
    kept: Tensors,
    parts: Sequence[tuple[_Source, Sequence[Region]]],
    carrying: _Carrying,
) -> None:
    # Under an identity of their own: names that share a tensor would be written as ties.
    tensors = {f"{name}/{key}": detached(tensor) for key, tensor in kept.items()}
    for source, regions in parts:
        blocks = [spelled(name, region, shape) for region in regions]
        carrying.parameters += blocks
        for owner in [name] if len(parts) == 1 else blocks:
            tensors |= {f"{owner}/{key}": detached(t) for key, t in source.scalars.items()}
            carrying.numbers += [
                f"{owner}/{key}" for key in source.scalars if key in source.entry.numbers
            ]
    carrying.tensors |= tensors
