"""Run the steps over names and specs; freeze what they made into a Plan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from surgeon import __version__
from surgeon.draft import Check, Draft, Outside, Tensors
from surgeon.errors import PlanError, SurgeonError
from surgeon.lazy import Copied, Fresh, LazyTensor
from surgeon.recipe import Recipe
from surgeon.regions import spelled
from surgeon.registry import OPS


class Change(NamedTuple):
    """What one step did to one tensor; the items of a manifest's lineage."""

    step: str
    op: str
    from_: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    init: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the change as the manifest spells it, without what is empty."""
        entry: dict[str, Any] = {"step": self.step, "op": self.op}
        if self.from_:
            entry["from"] = list(self.from_)
        if self.new:
            entry["new"] = list(self.new)
        if self.init:
            entry["init"] = self.init[0] if len(self.init) == 1 else list(self.init)
        return entry


Lineage = dict[str, tuple[Change, ...]]


@dataclass(frozen=True)
class StepSummary:
    """What one step did, for the report."""

    step: str
    op: str
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...]


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
            _check_names(draft.tensors.keys() - before.keys())
        except SurgeonError as error:
            raise error.at(f"{recipe.label}: {place}") from None
        checks += [(f"{recipe.label}: {place}", check) for check in draft.checks[checked:]]
        lineage = _traced(before, draft, lineage, stream, op)
        summaries.append(_summary(stream, op, before, draft.tensors, draft.notes[noted:]))
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


def _check_names(created: Iterable[str]) -> None:
    """Raise PlanError for names that a safetensors file cannot hold, or nobody can type."""
    if bad := sorted(name for name in created if not _can_be_named(name)):
        raise PlanError(*(f"{name!r} cannot be a tensor's name" for name in bad))


def _can_be_named(name: str) -> bool:
    return bool(name) and name != "__metadata__" and name.isprintable()


def _summary(
    step: str, op: str, before: Tensors, after: Tensors, notes: Iterable[str]
) -> StepSummary:
    return StepSummary(
        step,
        op,
        added=tuple(name for name in after if name not in before),
        changed=tuple(n for n, tensor in after.items() if n in before and before[n] is not tensor),
        removed=tuple(name for name in before if name not in after),
        notes=tuple(notes),
    )


def _traced(before: Tensors, draft: Draft, lineage: Lineage, step: str, op: str) -> Lineage:
    """Return every tensor's lineage after a step, read off from what the tensors are made of."""
    names: dict[int, list[str]] = {}
    for name, tensor in before.items():
        names.setdefault(id(tensor), []).append(name)
    elsewhere: dict[int, str] | None = None
    traced: Lineage = {}
    for name, tensor in draft.tensors.items():
        if before.get(name) is tensor:
            traced[name] = lineage[name]
            continue
        if id(tensor) in names:  # moved, or tied to another
            (source, *_) = names[id(tensor)]
            traced[name] = (*lineage[source], Change(step, op, from_=(source,)))
            continue
        if elsewhere is None:
            elsewhere = {id(t): f"{model}:{n}" for model, tensors in draft.models.items()
                         for n, t in tensors.items()}  # fmt: skip
        here, others, inits = _origins(tensor, names, elsewhere, name)
        parent = name if name in before and (name in here or not here) else next(iter(here), None)
        already = before[name].new() if name in before else ()
        new = [r for r in tensor.new() if r not in already] if inits is not None else []
        change = Change(
            step,
            op,
            from_=tuple(source for source in [*here, *others] if source != name),
            new=tuple(spelled(name, region, tensor.spec.shape) for region in new),
            init=tuple(dict.fromkeys(inits or ())),
        )
        traced[name] = (*(lineage[parent] if parent else ()), change)
    return traced


def _origins(
    tensor: LazyTensor, names: Mapping[int, list[str]], elsewhere: Mapping[int, str], name: str
) -> tuple[list[str], list[str], list[str] | None]:
    """Return what a tensor is made of: names of the state, names in models, and initialisations.

    The last is None where nothing was created.
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
            tied = names[id(form)]
            here[name if name in tied else tied[0]] = None
            continue
        if id(form) in elsewhere:
            others[elsewhere[id(form)]] = None
            continue
        if isinstance(form, Fresh | Copied):
            inits = inits or []
            inits += [form.initialiser.name] if isinstance(form, Fresh) else []
        pending.extend(form.operands)
    return list(here), list(others), inits
