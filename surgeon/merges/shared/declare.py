"""What all merges share: operands, weights, varying parameters, integers, guards.

A merge is arithmetic alone: a function of its parameters that returns the `Arithmetic` of one
tensor, made when the recipe is planned, so that impossible parameters are found there. `@merge`
makes an op of it. Kernels get upcast operands, the base model's first. A merge that needs entire
tensors at once, such as a decomposition, returns `WholeArithmetic` instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, get_args

from surgeon.base.errors import PlanError, listed
from surgeon.base.patterns import Target
from surgeon.base.schema import parameter_name
from surgeon.draft import Draft, Tensors
from surgeon.draft.adapters import is_adapter
from surgeon.draft.codes_guard import require_numbers
from surgeon.draft.heads import with_own_heads
from surgeon.draft.registry import OPS, Op
from surgeon.lazy import LazyTensor, Stream
from surgeon.merges.shared.operands import (
    Arithmetic,
    Integers,
    Merged,
    Missing,
    NonFinite,
    WholeArithmetic,
    common_names,
)
from surgeon.merges.shared.varying import Numbers, Varying
from surgeon.numeric.dtypes import DTYPES


@dataclass(frozen=True)
class TensorContext:
    """The tensor at hand: what a merge gets that has a parameter of this type.

    `streams` are random streams, one per model; of each, an element's number is its own whatever
    block it is computed in.
    """

    name: str
    shape: tuple[int, ...]
    streams: tuple[Stream, ...]
    has_auxiliary: bool = False


@dataclass(frozen=True)
class AuxiliaryTensors:
    """Marks a parameter that names further models, one per operand, the base model's first.

    Their tensors of the same name are operands too, after the others. `shape` says, from the
    tensor's own shape, which shape they must have; a tensor for which it is None has none. With
    `optional`, what none of them has is merged without.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...] | None] = lambda shape: shape
    optional: bool = False

    @property
    def json_schema(self) -> dict[str, Any]:
        """The schema of what a recipe says."""
        return {"type": "array", "items": {"type": "string"}, "minItems": 2}


Maker = Callable[..., Arithmetic | WholeArithmetic]
# Of the draft, the names to merge, a model's name and the step's parameters: its tensors.
Prepare = Callable[[Draft, list[str], str, Mapping[str, Any]], Tensors]


_ADAPTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "description": "the model to adapt; default the base model"},
        "adapter": {
            "type": "string",
            "minLength": 1,
            "description": "an adapter's folder or file, to be folded in first",
        },
    },
    "required": ["adapter"],
    "additionalProperties": False,
}
Models = Annotated[
    list[Any] | Literal["*"],
    "names of the other models, '*' for all of them; {model, adapter} is a model with an adapter "
    "folded in",
    {"items": {**_ADAPTED, "type": ["string", "object"]}, "minItems": 1},
]
MergeTarget = Annotated[Target, "the tensors to merge; the rest stays as it is"]
Base = Annotated[
    str | None,
    "the model that is the base model; default the state, which has no part where one is named",
    {"minLength": 1},
]
Into = Annotated[
    str | None,
    "keep the result as a model of this name instead of replacing the base model",
    {"minLength": 1},
]


def merge(
    *,
    example: Mapping[str, Any],
    paper: str | None,
    models: int | tuple[int, int | None] | None = None,
    prepare: Prepare | None = None,
) -> Callable[[Maker], Maker]:
    """Register a function `(*, parameters...) -> Arithmetic` as the merge of its name.

    `models` is how many other models it takes: a number, or the least and the most. Parameters may
    be `Varying`, `AuxiliaryTensors`, or a `TensorContext`. `prepare` says what to merge instead of
    a model's own tensors, for what concerns several tensors at once.
    """

    def decorate(maker: Maker) -> Maker:
        declared = _Declared.of(maker)

        def rewrite(draft: Draft, **given: Any) -> None:
            _merge(draft, maker, declared, models, prepare, **given)

        rewrite.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*_shared_parameters(), *declared.parameters]
        )
        rewrite.__name__, rewrite.__doc__ = maker.__name__, maker.__doc__
        rewrite.__module__ = maker.__module__
        name = parameter_name(maker.__name__)
        OPS.declare(Op(name, "merge", rewrite, example, paper))
        return maker

    return decorate


@dataclass(frozen=True)
class _Declared:
    """What a merge's own parameters are: as a recipe gives them, and how they reach the maker."""

    parameters: tuple[inspect.Parameter, ...]
    varying: Mapping[str, Varying]
    auxiliary: tuple[str, AuxiliaryTensors] | None
    at: str | None

    @property
    def defaults(self) -> dict[str, Any]:
        """What parameters are that a recipe leaves out."""
        return {
            parameter.name: parameter.default
            for parameter in self.parameters
            if parameter.default is not parameter.empty
        }

    @classmethod
    def of(cls, maker: Maker) -> _Declared:
        found = inspect.signature(maker, eval_str=True).parameters.values()
        varying: dict[str, Varying] = {}
        auxiliary, at = None, None
        for parameter in found:
            if parameter.annotation is TensorContext:
                at = parameter.name
            for note in get_args(parameter.annotation):
                if isinstance(note, Varying):
                    varying[parameter.name] = note
                elif isinstance(note, AuxiliaryTensors):
                    auxiliary = parameter.name, note
        # A recipe that says nothing about one of these gives each model its default.
        own = [
            parameter.replace(default=None)
            if parameter.name in varying and varying[parameter.name].default is not None
            else parameter
            for parameter in found
            if parameter.name != at
        ]
        return cls(tuple(own), varying, auxiliary, at)


def _shared_parameters() -> list[inspect.Parameter]:
    """Return what a recipe may say in every merge: the keywords of `_merge`."""
    found = inspect.signature(_merge, eval_str=True).parameters.values()
    return [parameter for parameter in found if parameter.kind is parameter.KEYWORD_ONLY]


def _merge(
    draft: Draft,
    maker: Maker,
    declared: _Declared,
    expected: int | tuple[int, int | None] | None,
    prepare: Prepare | None,
    *,
    models: Models,
    target: MergeTarget = "**",
    base: Base = None,
    into: Into = None,
    missing: Missing = "error",
    integers: Integers = "first",
    nonfinite: NonFinite = "error",
    **parameters: Any,
) -> None:
    """Replace the target's tensors by merged ones, or keep them as a model."""
    own = dict(draft.models)
    on = draft if base is None else _with_base(draft, base, target)
    everyone = [name for name in draft.models if name != base]
    others = everyone if models == "*" else [_folded(on, entry) for entry in models]
    _check_models(on, others, expected)
    on = with_own_heads(on, base, others)
    selected = on.select(target)
    for model in (on.tensors, *(on.model(other) for other in others)):
        require_numbers(model, [name for name in selected if name in model])
        if is_adapter(model):
            raise PlanError(
                "adapters are no models: A and B apart are no task vectors; lora_combine makes one "
                'of several, and {"model": ..., "adapter": ...} a model of one'
            )
    names = common_names(on, others, target, missing)
    resolver = _Resolver(on, declared, parameters, len(others))
    theirs = [
        prepare(on, names, other, parameters) if prepare else on.model(other) for other in others
    ]
    merged: Tensors = {}
    made: dict[tuple[Any, ...], LazyTensor] = {}
    for name in names:
        tensors = (on[name], *(model[name] for model in theirs))
        auxiliary = resolver.auxiliary(name)
        values = resolver.values(name)
        # Tied names stay tied where all operands, and what is asked for them, agree.
        key = (*map(id, tensors), *map(id, auxiliary), repr(values))
        if key not in made:
            labels = [base, *others, *(resolver.auxiliary_models if auxiliary else ())]
            about = {
                parameter_name(word): value
                for word, value in {**declared.defaults, **values}.items()
                if value is not None
            }
            operands = Merged(name, tensors, auxiliary, labels, integers, nonfinite, about)
            if declared.at:
                streams = tuple(draft.stream(f"{name}\0{other}") for other in others)
                values[declared.at] = TensorContext(
                    name, tensors[0].spec.shape, streams, bool(auxiliary)
                )
            made[key] = operands.tensor(on, partial(maker, **values))
        merged[name] = made[key]
    resolver.report_without_auxiliary()
    draft.models = own
    _put(draft, merged, into)


def _with_base(draft: Draft, base: str, target: str | list[str]) -> Draft:
    """Return a draft with a model's tensors in the place of the state's; notes and checks are ours.

    Raises PlanError where the model lacks one of the target, or has it otherwise.
    """
    tensors = draft.model(base)
    names = draft.select(target)
    problems = [
        f"'{name}' is not in model '{base}', which is the base"
        if name not in tensors
        else f"'{name}' is {draft.spec(name)} here but {tensors[name].spec} in model '{base}', "
        "which is the base"
        for name in names
        if name not in tensors or tensors[name].spec != draft.spec(name)
    ]
    if problems:
        raise PlanError(*problems)
    there = {name: tensors[name] for name in draft.tensors if name in tensors}
    return replace(draft, tensors=there)


def _folded(draft: Draft, entry: str | dict[str, Any]) -> str:
    """Return the name of a model, which for {model, adapter} is made: the model, adapted."""
    if isinstance(entry, str):
        return entry
    model, adapter = entry.get("model"), entry["adapter"]
    name = f"{model or 'the base model'}+{adapter}"
    tensors = draft.tensors if model is None else draft.model(model)
    outside = draft.outside._replace(read_config=lambda _: draft.outside.read_config(model))
    inner = Draft(dict(tensors), {}, outside, draft.seed, draft.step)
    OPS["lora_merge"].apply(inner, {"adapter": adapter})
    draft.models[name] = inner.tensors
    draft.checks += inner.checks
    draft.notes += inner.notes
    return name


def _put(draft: Draft, merged: Tensors, into: str | None) -> None:
    # What is tied to a merged name, and not merged itself, follows it.
    tied = {id(draft[name]): merged[name] for name in merged if name in draft.tensors}
    result = {n: merged.get(n, tied.get(id(t), t)) for n, t in draft.tensors.items()}
    result |= {name: tensor for name, tensor in merged.items() if name not in result}
    if into is None:
        draft.tensors = result
    elif into in draft.models:
        raise PlanError(f"there is a model '{into}' already")
    else:
        draft.models[into] = result


class _Resolver:
    """A step's parameters, tensor by tensor."""

    def __init__(
        self, draft: Draft, declared: _Declared, parameters: Mapping[str, Any], models: int
    ) -> None:
        points = models if parameters.get("relative") else models + 1
        counts = {"model": models, "operand": models + 1, "point": points}
        self._draft = draft
        self._declared = declared
        self._given = dict(parameters)
        self._numbers = Numbers(draft.tensors)
        for word, varying in declared.varying.items():
            if varying.per != "tensor":
                shown = parameter_name(word)
                self._given[word] = varying.for_each(self._given.get(word), shown, counts)
        self.auxiliary_models: list[str] = []
        self._with_auxiliary = 0
        self._without_auxiliary: list[str] = []
        if declared.auxiliary:
            self.auxiliary_models = self._given[declared.auxiliary[0]]
            if len(self.auxiliary_models) != models + 1:
                raise PlanError(
                    f"'{parameter_name(declared.auxiliary[0])}' names "
                    f"{len(self.auxiliary_models)} models for {models + 1} operands (the base "
                    "model's comes first)"
                )

    def values(self, name: str) -> dict[str, Any]:
        """Return the maker's parameters for one tensor."""
        return {word: self._value(word, given, name) for word, given in self._given.items()}

    def _value(self, word: str, given: Any, name: str) -> Any:
        varying = self._declared.varying.get(word)
        if varying is None or given is None:
            return given
        if varying.per == "tensor":
            return self._numbers.value(given, name)
        return [self._numbers.value(item, name) for item in given]

    def auxiliary(self, name: str) -> tuple[LazyTensor, ...]:
        """Return the auxiliary of one tensor; raises PlanError where some lack it."""
        if not self._declared.auxiliary:
            return ()
        wanted = self._declared.auxiliary[1]
        shape = wanted.shape(self._draft.spec(name).shape)
        found = [self._draft.model(other).get(name) for other in self.auxiliary_models]
        is_float = DTYPES[self._draft.spec(name).dtype].kind == "float"
        if shape is None or (wanted.optional and not any(found)):
            self._without_auxiliary += [name] if is_float else []
            return ()
        self._with_auxiliary += 1
        problems = [
            f"'{name}' is not in model '{other}'"
            if tensor is None
            else f"'{name}' in model '{other}' is {tensor.spec}, not of shape {shape}"
            for other, tensor in zip(self.auxiliary_models, found, strict=True)
            if tensor is None
            or tensor.spec.shape != shape
            or DTYPES[tensor.spec.dtype].kind != "float"
        ]
        if problems and is_float:
            raise PlanError(*problems)
        return tuple(tensor for tensor in found if tensor is not None and not problems)

    def report_without_auxiliary(self) -> None:
        """Note which tensors are merged without; raises PlanError where all are."""
        if not self._declared.auxiliary or not self._without_auxiliary:
            return
        models = ", ".join(f"'{model}'" for model in dict.fromkeys(self.auxiliary_models))
        nothing = f"there is nothing in model {models} for {listed(self._without_auxiliary)}"
        if not self._with_auxiliary:
            raise PlanError(nothing)
        self._draft.notes.append(f"{nothing}: averaged")


def _check_models(
    draft: Draft, others: list[str], expected: int | tuple[int, int | None] | None
) -> None:
    for other in others:
        draft.model(other)
    if not others:
        raise PlanError("there is no other model to merge with; name one under 'models'")
    least, most = expected if isinstance(expected, tuple) else (expected, expected)
    if len(others) < (least or 1) or len(others) > (most or len(others)):
        wanted = (
            str(least) if least == most else f"{least} to {most}" if most else f"{least} or more"
        )
        raise PlanError(f"takes {wanted} other model(s), not {len(others)}")
