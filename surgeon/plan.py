"""Run the steps over names and specs; freeze what they made into a Plan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from surgeon import __version__
from surgeon.draft import Check, Draft, Outside, Tensors
from surgeon.errors import PlanError, SurgeonError
from surgeon.lazy import Copied, Elementwise, Fresh, LazyTensor, Whole
from surgeon.recipe import Recipe
from surgeon.regions import spelled
from surgeon.registry import OPS

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Change(NamedTuple):
    """What one step did to one tensor; the items of a manifest's lineage."""

    step: str
    op: str
    from_: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    init: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = _NOTHING

    def as_json(self) -> dict[str, Any]:
        """Return the change as the manifest spells it, without what is empty."""
        entry: dict[str, Any] = {"step": self.step, "op": self.op}
        if self.from_:
            entry["from"] = list(self.from_)
        if self.new:
            entry["new"] = list(self.new)
        if self.init:
            entry["init"] = self.init[0] if len(self.init) == 1 else list(self.init)
        if self.parameters:
            entry["parameters"] = dict(self.parameters)
        return entry


Lineage = dict[str, tuple[Change, ...]]


class StepSummary(NamedTuple):
    """What one step did, for the report."""

    step: str
    op: str
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...]


# Bytes of a tensor: a pebibyte, which leaves room for others below what file offsets count.
_LARGEST = 1 << 50


@dataclass(frozen=True)
class Plan:
    """The finished result of a recipe: what to write, and where each of it came from."""

    tensors: Tensors
    lineage: Lineage
    dropped: tuple[str, ...]
    steps: tuple[StepSummary, ...]
    checks: tuple[tuple[str, Check], ...]
    metadata: Mapping[str, str]
    sidecars: Mapping[str, Any]
    weights_file: str


def make(
    recipe: Recipe,
    tensors: Tensors,
    models: Mapping[str, Tensors],
    outside: Outside,
    metadata: Mapping[str, str],
) -> Plan:
    """Run every step's rewrite; raises PlanError with the step where one is impossible."""
    draft = Draft(dict(tensors), dict(models), outside, recipe.seed)
    lineage: Lineage = dict.fromkeys(tensors, ())
    summaries: list[StepSummary] = []
    checks: list[tuple[str, Check]] = []
    steps = [(step.stream, step.place, step.op, step.parameters, step.optional)
             for step in recipe.steps]  # fmt: skip
    if dtype := recipe.output.get("dtype"):
        steps.append(("output", "output.dtype", "cast", {"target": "**", "dtype": dtype}, True))
    for stream, place, op, parameters, optional in steps:
        before, noted, checked = dict(draft.tensors), len(draft.notes), len(draft.checks)
        draft.step, draft.optional = stream, optional
        try:
            OPS[op].apply(draft, parameters)
            added, changed, removed = _differences(before, draft.tensors)
            _check_names(added)
            _check_sizes(draft.tensors, (*added, *changed))
        except SurgeonError as error:
            raise error.at(f"{recipe.label}: {place}") from None
        checks += [(f"{recipe.label}: {place}", check) for check in draft.checks[checked:]]
        if added or changed or removed:
            lineage = _traced(before, draft, lineage, stream, op)
        notes = tuple(draft.notes[noted:])
        summaries.append(StepSummary(stream, op, added, changed, removed, notes))
    about_us = {"version": __version__, "recipe_sha256": recipe.sha256}
    return Plan(
        tensors=draft.tensors,
        lineage=lineage,
        dropped=tuple(name for name in tensors if name not in draft.tensors),
        steps=tuple(summaries),
        checks=tuple(checks),
        metadata={
            **metadata,
            **recipe.output.get("metadata", {}),
            "surgeon": json.dumps(about_us, sort_keys=True),
        },
        sidecars=draft.sidecars,
        weights_file=draft.weights_file,
    )


def _differences(before: Tensors, after: Tensors) -> tuple[tuple[str, ...], ...]:
    """Return the names that were added, that are bound to other tensors, and that were removed."""
    added, changed = [], []
    for name, tensor in after.items():
        was = before.get(name)
        if was is None:
            added.append(name)
        elif was is not tensor:
            changed.append(name)
    removed = [name for name in before if name not in after]
    return tuple(added), tuple(changed), tuple(removed)


def _check_names(created: Iterable[str]) -> None:
    """Raise PlanError for names that a safetensors file cannot hold, or nobody can type."""
    bad = [n for n in created if not n or n == "__metadata__" or not n.isprintable()]
    if bad:
        raise PlanError(*(f"{name!r} cannot be a tensor's name" for name in sorted(bad)))


def _check_sizes(tensors: Tensors, names: Iterable[str]) -> None:
    """Raise PlanError for tensors that no file can hold."""
    large = [f"'{name}' would be {tensors[name].spec}, more bytes than a file can have"
             for name in names if tensors[name].spec.size_bytes > _LARGEST]  # fmt: skip
    if large:
        raise PlanError(*large)


def _traced(before: Tensors, draft: Draft, lineage: Lineage, step: str, op: str) -> Lineage:
    """Return every tensor's lineage after a step, read off from what the tensors are made of."""
    names = _first_names(before)
    elsewhere: dict[int, str] | None = None
    traced: Lineage = {}
    for name, tensor in draft.tensors.items():
        if before.get(name) is tensor:
            traced[name] = lineage[name]
            continue
        source = names.get(id(tensor))
        if source is not None:  # moved, or tied to another
            traced[name] = lineage[source] + (Change(step, op, (source,)),)
            continue
        if elsewhere is None:
            elsewhere = {id(t): f"{model}:{n}" for model, tensors in draft.models.items()
                         for n, t in tensors.items()}  # fmt: skip
        here, others, inits = _origins(tensor, names, elsewhere, name, before.get(name))
        parent = name if name in before and (name in here or not here) else next(iter(here), None)
        already = before[name].new() if name in before else ()
        new = [r for r in tensor.new() if r not in already] if inits is not None else []
        change = Change(
            step,
            op,
            from_=tuple(source for source in [*here, *others] if source != name),
            new=tuple(spelled(name, region, tensor.spec.shape) for region in new),
            init=tuple(dict.fromkeys(inits or ())),
            parameters=tensor.about if isinstance(tensor, Elementwise | Whole) else _NOTHING,
        )
        traced[name] = (*(lineage[parent] if parent else ()), change)
    return traced


def _first_names(tensors: Tensors) -> dict[int, str]:
    """Return the first of each tensor's names."""
    return {id(tensor): name for name, tensor in reversed(tensors.items())}


def _origins(
    tensor: LazyTensor,
    names: Mapping[int, str],
    elsewhere: Mapping[int, str],
    name: str,
    own: LazyTensor | None,
) -> tuple[list[str], list[str], list[str] | None]:
    """Return what a tensor is made of: names of the state, names in models, and initialisations.

    The last is None where nothing was created. What it was before the step, `own`, goes by its name
    also where that is tied to an earlier one.
    """
    here: dict[str, None] = {}
    others: dict[str, None] = {}
    inits: list[str] | None = None
    pending, seen = [tensor], set()
    while pending:
        form = pending.pop(0)
        if id(form) in seen:
            continue
        seen.add(id(form))
        if id(form) in names:
            here[name if form is own else names[id(form)]] = None
            continue
        if id(form) in elsewhere:
            others[elsewhere[id(form)]] = None
            continue
        if isinstance(form, Fresh | Copied):
            inits = inits or []
            inits += [form.initialiser.name] if isinstance(form, Fresh) else []
        pending.extend(form.operands)
    return list(here), list(others), inits
