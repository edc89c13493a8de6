"""What all merges share: operands, weights, varying parameters, integers, guards.

A merge is arithmetic alone: a function of its parameters that returns the `Arithmetic` of one
tensor, made when the recipe is planned, so that impossible parameters are found there. `@merge`
makes an op of it. Kernels get upcast operands, the base model's first. A merge that needs entire
tensors at once, such as a decomposition, returns `WholeArithmetic` instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.base.schema import parameter_name
from surgeon.draft import Draft, Tensors
from surgeon.draft.adapters import is_adapter
from surgeon.draft.codes_guard import require_numbers
from surgeon.draft.heads import with_own_heads
from surgeon.draft.registry import OPS, Op
from surgeon.lazy import LazyTensor
from surgeon.merges.shared.operands import (
    Integers,
    Merged,
    Missing,
    NonFinite,
    common_names,
)
from surgeon.merges.shared.settings import Declared, Maker, Resolver, TensorContext

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
        declared = Declared.of(maker)

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


def _shared_parameters() -> list[inspect.Parameter]:
    """Return what a recipe may say in every merge: the keywords of `_merge`."""
    found = inspect.signature(_merge, eval_str=True).parameters.values()
    return [parameter for parameter in found if parameter.kind is parameter.KEYWORD_ONLY]


def _merge(
    draft: Draft,
    maker: Maker,
    declared: Declared,
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
    resolver = Resolver(on, declared, parameters, len(others))
    theirs = [
        prepare(on, names, other, parameters) if prepare else on.model(other) for other in others
    ]
    labels, with_auxiliary = [base, *others], [base, *others, *resolver.auxiliary_models]
    merged: Tensors = {}
    made: dict[tuple[int, ...], LazyTensor] = {}
    for name in names:
        tensors = (on.tensors[name], *[model[name] for model in theirs])
        auxiliary = resolver.auxiliary(name)
        settings = resolver.settings(name)
        # Tied names stay tied where all operands, and what is asked for them, agree.
        key = (*map(id, tensors), *map(id, auxiliary), id(settings))
        if key not in made:
            operands = Merged(
                name, tensors, auxiliary, with_auxiliary if auxiliary else labels, integers,
                nonfinite, settings.about,
            )  # fmt: skip
            given = settings.given
            if declared.at:
                streams = tuple([draft.stream(f"{name}\0{other}") for other in others])
                at = TensorContext(name, tensors[0].spec.shape, streams, bool(auxiliary))
                given = {**given, declared.at: at}
            made[key] = operands.tensor(on, partial(maker, **given))
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
