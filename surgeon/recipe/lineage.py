"""Where tensors come from: what each step did to each, read off from what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from surgeon.base.regions import spelled
from surgeon.draft import Draft, Tensors
from surgeon.lazy import LazyTensor, Sharded, makers, regions_made_by, walk

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Change(NamedTuple):
    """What one step did to one tensor; the items of a manifest's lineage.

    `into` is the model that the step kept it in, where that is not the state.
    """

    step: str
    op: str
    from_: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    init: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = _NOTHING
    into: str = ""


Changes = tuple[Change, ...]
Lineage = dict[str, Changes]


@dataclass
class Tracer:
    """The lineage of the state's tensors, and of those that steps kept in models: `model:name`."""

    lineage: Lineage
    _models: Lineage = field(default_factory=dict)
    _known: dict[str, Tensors] = field(default_factory=dict)
    _steps: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Iterable[str], models: Mapping[str, Tensors]) -> Tracer:
        """Return the lineage before the first step."""
        return cls(dict.fromkeys(tensors, ()), _known=dict(models))

    def trace(self, before: Tensors, draft: Draft, op: str, *, is_changed: bool) -> None:
        """Take note of what the draft's step did to the state, if anything, and kept in models.

        `before` is the state as it was.
        """
        self._steps[draft.step] = len(self._steps)
        kept = [model for model in draft.models if model not in self._known]
        others = [model for model, was in self._known.items()
                  if draft.models.get(model, was) is not was]  # fmt: skip
        if not is_changed and not kept and not others:
            return
        step = _Step(before, draft, op, self)
        models = {
            f"{model}:{name}": step.kept(model, name, tensor)
            for model in kept
            for name, tensor in draft.models[model].items()
        }
        for model in others:
            models |= step.changed(model, self._known[model], draft.models[model])
        if is_changed:
            self.lineage = step.done(draft.tensors)
        self._models |= models
        self._known |= {model: draft.models[model] for model in (*kept, *others)}

    def is_known(self, model: str) -> bool:
        """Say whether there was a model before the step at hand."""
        return model in self._known

    def of_model(self, place: str) -> Changes:
        """Return what the steps did to a model's tensor."""
        return self._models.get(place, ())

    def finished(self, tensors: Tensors) -> Lineage:
        """Return the lineage with everything new where it is in the result, after later steps."""
        # What one step alone did is where it was then.
        return {
            name: changes if len(changes) < 2 else _in_result(name, tensors[name], changes)
            for name, changes in self.lineage.items()
        }

    def in_order(self, changes: Iterable[Change]) -> Changes:
        """Return changes as the steps made them, each once."""
        each = {id(change): change for change in changes}
        return tuple(sorted(each.values(), key=lambda change: self._steps[change.step]))


def _in_result(name: str, tensor: LazyTensor, changes: Changes) -> Changes:
    made = [change.step for change in changes[:-1] if change.new]
    if not made:
        return changes
    known = makers(tensor)

    def found(change: Change) -> tuple[str, ...]:
        if change.step not in made or change.step not in known:
            return change.new
        regions = regions_made_by(change.step, tensor)
        return tuple(spelled(name, region, tensor.spec.shape) for region in regions) or change.new

    return tuple(change._replace(new=found(change)) if change.new else change for change in changes)


class _Step:
    """One step: what it was given, and by what names."""

    def __init__(self, before: Tensors, draft: Draft, op: str, tracer: Tracer) -> None:
        self._before = before
        self._draft = draft
        self._op = op
        self._tracer = tracer
        self._plain: dict[str, Change] = {}
        # The first of each tensor's names.
        self._names = {id(tensor): name for name, tensor in reversed(before.items())}

    @cached_property
    def _elsewhere(self) -> dict[int, str]:
        """The names of tensors in models that there were before the step."""
        return {
            id(held): f"{model}:{name}"
            for model, tensors in self._draft.models.items()
            if self._tracer.is_known(model)
            for name, held in tensors.items()
        }

    def done(self, tensors: Tensors) -> Lineage:
        """Return the lineage of the state's tensors after the step."""
        before, names, lineage = self._before, self._names, self._tracer.lineage
        made: Lineage = {}
        for name, tensor in tensors.items():
            if before.get(name) is tensor:
                made[name] = lineage[name]
            elif (source := names.get(id(tensor))) is not None:  # moved, or tied to another
                made[name] = (*lineage[source], Change(self._draft.step, self._op, (source,)))
            else:
                made[name] = self._describe_change(name, tensor, "")
        return made

    def kept(self, model: str, name: str, tensor: LazyTensor) -> Changes:
        """Return the lineage of a tensor of a model that the step made."""
        source = self._names.get(id(tensor))
        if source is not None:
            return self._tracer.lineage[source]
        return self._describe_change(name, tensor, model)

    def changed(self, model: str, was: Tensors, now: Tensors) -> dict[str, Changes]:
        """Return the lineage of the tensors of a model that the step changed in it."""
        names = {id(tensor): name for name, tensor in was.items()}
        made: dict[str, Changes] = {}
        for name, tensor in now.items():
            if was.get(name) is not tensor:
                sources = dict.fromkeys(names[id(one)] for one in walk(tensor) if id(one) in names)
                earlier = [c for one in sources for c in self._tracer.of_model(f"{model}:{one}")]
                change = Change(
                    self._draft.step,
                    self._op,
                    from_=tuple(f"{model}:{one}" for one in sources),
                    parameters=tensor.about,
                    into=model,
                )
                made[f"{model}:{name}"] = (*self._tracer.in_order(earlier), change)
        return made

    def _describe_change(self, name: str, tensor: LazyTensor, model: str) -> Changes:
        own = self._before.get(name)
        if not model and tensor.operands == (own,) and tensor.initialisers is None:
            # Of itself alone, as most of many thousands of tensors are.
            change = Change(self._draft.step, self._op, parameters=tensor.about)
            return (*self._tracer.lineage[name], self._shared(change))
        here, others, inits = self._origins(tensor, name, own)
        parent = name if own and (name in here or not here) else next(iter(here), None)
        sources = tuple([one for one in (*here, *others) if one != name or model])
        new: tuple[str, ...] = ()
        if inits is not None:
            regions = self._over_old(tensor).new_regions()
            new = tuple(spelled(name, region, tensor.spec.shape) for region in regions)
        init = tuple(dict.fromkeys(inits)) if inits else ()
        change = self._shared(
            Change(self._draft.step, self._op, sources, new, init, tensor.about, model)
        )
        earlier = self._tracer.lineage[parent] if parent else ()
        kept = [made for other in others for made in self._tracer.of_model(other)]
        return (*(self._tracer.in_order([*earlier, *kept]) if kept else earlier), change)

    def _shared(self, change: Change) -> Change:
        """Return one object for all changes that say no more than their step."""
        if change.from_ or change.new or change.init or change.parameters:
            return change
        return self._plain.setdefault(change.into, change)

    def _over_old(self, form: LazyTensor) -> LazyTensor:
        """Return a tensor as if nothing had been new before the step: what earlier steps made too.

        A step that puts rows in between moves those that were new already.
        """
        if id(form) in self._names:
            return Sharded(form) if form.new_regions() else form
        if form.initialisers is not None:
            return form
        under = tuple(map(self._over_old, form.operands))
        same = all(a is b for a, b in zip(under, form.operands, strict=True))
        return form if same else form.rebuilt(under)

    def _origins(
        self, tensor: LazyTensor, name: str, own: LazyTensor | None
    ) -> tuple[list[str], list[str], list[str] | None]:
        """Return what a tensor is made of: names of the state, and in models, and initialisations.

        The last is None where nothing was created. What it was before the step, `own`, goes by its
        name also where that is tied to an earlier one.
        """
        here: dict[str, None] = {}
        others: dict[str, None] = {}
        inits: list[str] | None = None
        names, elsewhere = self._names, self._elsewhere
        pending, seen = [tensor], set()
        for form in pending:  # which grows
            key = id(form)
            if key in seen:
                continue
            seen.add(key)
            if key in names:
                here[name if form is own else names[key]] = None
            elif key in elsewhere:
                others[elsewhere[key]] = None
            else:
                if form.initialisers is not None:
                    inits = [*(inits or ()), *form.initialisers]
                pending.extend(form.operands)
        return list(here), list(others), inits
