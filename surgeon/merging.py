"""What all merges share: operands, weights, varying parameters, integers, guards.

A merge is arithmetic alone: a function of its parameters that returns the `Arithmetic` of one
tensor, made when the recipe is planned, so that impossible parameters are found there. `@merge`
makes an op of it. Kernels get raised operands, the state's first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

import numpy as np

from surgeon import patterns
from surgeon.depth import all_positions, fraction
from surgeon.draft import Draft, Tensors
from surgeon.dtypes import DTYPES, LARGEST, Array
from surgeon.errors import PlanError
from surgeon.lazy import Elementwise, Kernel, LazyTensor, Operands, Scratch
from surgeon.patterns import Target
from surgeon.registry import OPS, Op
from surgeon.values import require_finite, same_values


@dataclass(frozen=True)
class Arithmetic:
    """How the blocks of one tensor are combined, and what has to be known of it before."""

    combine: Kernel
    statistics: Callable[[Operands], Any] | None = None
    # Otherwise float64: one rounding of an inexact float32 decides about one bf16 in 30 000.
    exact_in_float32: bool = False


Missing = Annotated[
    Literal["error", "keep"], "keep: what a model lacks stays as it is in the state"
]
Integers = Annotated[
    Literal["first", "max", "error"],
    "what to do where integers or booleans differ; first keeps the state's",
]
NonFinite = Annotated[Literal["error", "allow"], "what to do with NaN and Inf in an operand"]
Models = Annotated[
    list[str] | Literal["*"], "names of the other models, or '*' for all of them", {"minItems": 1}
]
MergeTarget = Annotated[Target, "the tensors to merge; the rest stays as it is"]
Into = Annotated[
    str | None,
    "keep the result as a model of this name instead of replacing the state",
    {"minLength": 1},
]


@dataclass(frozen=True)
class Varying:
    """Marks a parameter that is a number, or varies by layer and by name, within these limits.

    The maker gets the number of its tensor.
    """

    minimum: float | None = None
    maximum: float | None = None

    @property
    def json_schema(self) -> dict[str, Any]:
        """The schema of what a recipe may say."""
        limits = {"minimum": self.minimum, "maximum": self.maximum}
        number = {"type": "number", **{k: v for k, v in limits.items() if v is not None}}
        curve = {"type": "array", "items": number, "minItems": 1}
        by_layer = _object({"by_layer": curve}, ["by_layer"])
        target = {"type": ["string", "array"], "format": "name-pattern"}
        rule = _object({"target": target, "value": {"anyOf": [number, by_layer]}}, ["value"])
        return {"anyOf": [number, by_layer, {"type": "array", "items": rule, "minItems": 1}]}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


Maker = Callable[..., Arithmetic]


class _Resolver:
    """Values of varying parameters, tensor by tensor."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._layers = all_positions(tensors)
        self._selections: dict[str, set[str]] = {}

    def value(self, given: Any, name: str) -> float:
        """Return what a number, a `by_layer` curve or a list of rules says for one tensor."""
        if isinstance(given, dict):
            curve = given["by_layer"]
            depth = fraction(name, self._layers)
            return float(np.interp(depth * (len(curve) - 1), range(len(curve)), curve))
        if isinstance(given, list):
            return self._by_name(given, name)
        return float(given)

    def _by_name(self, rules: list[dict[str, Any]], name: str) -> float:
        for rule in rules:
            if "target" not in rule or name in self._selected(rule["target"]):
                return self.value(rule["value"], name)
        raise PlanError(f"no rule gives a value for '{name}'; end with one that has no 'target'")

    def _selected(self, target: str | list[str]) -> set[str]:
        key = repr(target)
        if key not in self._selections:
            special = {"@vectors": _vectors(self._tensors), "@new": ()}
            found = patterns.select(target, self._tensors, special=special, optional=True)
            self._selections[key] = set(found)
        return self._selections[key]


def _vectors(tensors: Tensors) -> list[str]:
    return [name for name, tensor in tensors.items() if len(tensor.spec.shape) <= 1]


def merge(
    *,
    example: Mapping[str, Any],
    paper: str,
    models: int | None = None,
) -> Callable[[Maker], Maker]:
    """Register a function `(*, parameters...) -> Arithmetic` as the merge of its name.

    `models` fixes how many other models it takes. A parameter `weights` arrives as one number per
    operand, the state's first.
    """

    def decorate(maker: Maker) -> Maker:
        own = _own_parameters(maker)
        varied = {
            parameter.name
            for parameter in own
            if any(isinstance(note, Varying) for note in get_args(parameter.annotation))
        }

        def rewrite(draft: Draft, **given: Any) -> None:
            if "weights" in signature.parameters:
                given.setdefault("weights", None)
            _merge(draft, maker, varied, models, **given)

        signature = inspect.Signature([*_shared_parameters(), *own])
        rewrite.__signature__ = signature  # type: ignore[attr-defined]
        rewrite.__name__, rewrite.__doc__ = maker.__name__, maker.__doc__
        rewrite.__module__ = maker.__module__
        OPS[maker.__name__] = Op(maker.__name__, "merge", rewrite, example, paper)
        return maker

    return decorate


def _own_parameters(maker: Maker) -> list[inspect.Parameter]:
    found = inspect.signature(maker, eval_str=True).parameters.values()
    return [
        # Weights always arrive, one per operand; a recipe may give one for all, or none.
        parameter.replace(annotation=_weights_hint(parameter.annotation), default=None)
        if parameter.name == "weights"
        else parameter
        for parameter in found
    ]


def _weights_hint(per_operand: Any) -> Any:
    about = "one number for all, or one per operand, the state first; default equal"
    return Annotated[float | per_operand | None, about]


def _shared_parameters() -> list[inspect.Parameter]:
    """Return what a recipe may say in every merge: the keywords of `_merge`."""
    found = inspect.signature(_merge, eval_str=True).parameters.values()
    return [parameter for parameter in found if parameter.kind is parameter.KEYWORD_ONLY]


def _merge(
    draft: Draft,
    maker: Maker,
    varied: set[str],
    expected: int | None,
    *,
    models: Models,
    target: MergeTarget = "**",
    into: Into = None,
    missing: Missing = "error",
    integers: Integers = "first",
    nonfinite: NonFinite = "error",
    **parameters: Any,
) -> None:
    """Replace the target's tensors by merged ones, or keep them as a model."""
    others = list(draft.models) if models == "*" else list(models)
    _check_models(draft, others, expected)
    names = _common_names(draft, others, target, missing)
    resolver = _Resolver(draft.tensors)
    if "weights" in parameters:
        parameters["weights"] = _weights(parameters["weights"], len(others) + 1)
    made: dict[tuple[Any, ...], LazyTensor] = {}
    merged: Tensors = {}
    for name in names:
        tensors = (draft[name], *(draft.model(other)[name] for other in others))
        values = {
            word: [resolver.value(item, name) for item in given]
            if word == "weights"
            else resolver.value(given, name)
            if word in varied
            else given
            for word, given in parameters.items()
        }
        # Tied names stay tied where all operands, and what is asked for them, agree.
        key = (*map(id, tensors), repr(values))
        if key not in made:
            arithmetic = maker(**values)
            made[key] = _merged(draft, name, tensors, others, integers, nonfinite, arithmetic)
        merged[name] = made[key]
    # What is tied to a merged name, and not merged itself, follows it.
    tied = {id(draft[name]): tensor for name, tensor in merged.items()}
    result = {n: merged.get(n, tied.get(id(t), t)) for n, t in draft.tensors.items()}
    if into is None:
        draft.tensors = result
    elif into in draft.models:
        raise PlanError(f"there is a model '{into}' already")
    else:
        draft.models[into] = result


def _check_models(draft: Draft, others: list[str], expected: int | None) -> None:
    for other in others:
        draft.model(other)
    if not others:
        raise PlanError("there is no other model to merge with; name one under 'models'")
    if expected is not None and len(others) != expected:
        raise PlanError(f"takes {expected} other model(s), not {len(others)}")


def _weights(given: Any, count: int) -> list[Any]:
    """Return one weight per operand, each of which may still vary by tensor."""
    if given is None or not isinstance(given, list):
        return [1.0 if given is None else given] * count
    if len(given) != count:
        raise PlanError(
            f"weights has {len(given)} entries for {count} operands (the state comes first)"
        )
    return list(given)


def _common_names(
    draft: Draft, others: list[str], target: str | list[str], missing: Missing
) -> list[str]:
    """Return the names to merge; raises PlanError with a line for each difference."""
    names = draft.select(target)
    wrong: list[str] = []
    lacking: list[tuple[str, str]] = []
    extra: list[str] = []
    for other in others:
        tensors = draft.model(other)
        for name in names:
            if name not in tensors:
                lacking.append((name, f"'{name}' is not in model '{other}'"))
            elif not _alike(here := draft.spec(name), there := tensors[name].spec):
                wrong.append(f"'{name}' is {here} here but {there} in model '{other}'")
        special = {"@vectors": _vectors(tensors), "@new": ()}
        found = patterns.select(target, tensors, special=special, optional=True)
        extra += [f"'{n}' is in model '{other}' only" for n in found if n not in draft.tensors]
    if missing == "error":
        wrong += [*(line for _, line in lacking), *extra]
    if wrong:
        raise PlanError(*wrong)
    kept = {name for name, _ in lacking}
    common = [name for name in names if name not in kept]
    merged = {id(draft[name]) for name in common}
    draft.notes += [
        f"{line}; {'it stays tied' if id(draft[name]) in merged else 'the state keeps its own'}"
        for name, line in lacking
    ]
    draft.notes += [f"{line}; left out" for line in extra]
    return common


def _alike(here: Any, there: Any) -> bool:
    kinds = DTYPES[here.dtype].kind, DTYPES[there.dtype].kind
    floats = kinds == ("float", "float")
    return bool(here.shape == there.shape and (floats or here.dtype == there.dtype))


def _merged(
    draft: Draft,
    name: str,
    tensors: tuple[LazyTensor, ...],
    others: list[str],
    integers: Integers,
    nonfinite: NonFinite,
    arithmetic: Arithmetic,
) -> LazyTensor:
    """Return the merged tensor of one name."""
    spec = tensors[0].spec
    kind = DTYPES[spec.dtype].kind
    if kind == "float":
        explain = partial(_explain, name, spec.dtype, others) if nonfinite == "error" else None
        working = np.dtype(np.float32 if arithmetic.exact_in_float32 else np.float64)
        if any(tensor.spec.dtype == "F64" for tensor in tensors):
            working = np.dtype(np.float64)
        return Elementwise(
            spec, arithmetic.combine, tensors, arithmetic.statistics, working, explain
        )
    if kind in ("int", "bool") and integers == "max":
        return Elementwise(spec, _largest, tensors)
    # Complex values and formats that are only copied have no policy: they must agree.
    policy = integers if kind in ("int", "bool") else "error"
    draft.check(partial(_agreement, name, tensors, others, policy))
    return tensors[0]


def _largest(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.copyto(out, blocks[0])
    for block in blocks[1:]:
        np.maximum(out, block, out=out)
    return out


def _explain(name: str, dtype: str, others: list[str], blocks: Sequence[Array]) -> None:
    """Raise PlanError with the operand that holds NaN or Inf, or the overflow of the result."""
    for block, model in zip(blocks, [None, *others], strict=True):
        require_finite(block, f"'{name}'" + (f" in model '{model}'" if model else ""))
    raise PlanError(f"'{name}': the result is beyond {dtype}'s largest value {LARGEST[dtype]:g}")


def _agreement(
    name: str,
    tensors: tuple[LazyTensor, ...],
    others: list[str],
    policy: Integers,
    scratch: Scratch,
) -> str | None:
    differing = [
        other
        for other, tensor in zip(others, tensors[1:], strict=True)
        if not same_values(tensors[0], tensor, scratch)
    ]
    if not differing:
        return None
    listed = ", ".join(f"'{other}'" for other in differing)
    what = f"'{name}' ({tensors[0].spec.dtype}) differs in model {listed}"
    if policy == "first":
        return f"{what}; the state's is kept"
    if DTYPES[tensors[0].spec.dtype].kind in ("int", "bool"):
        raise PlanError(f'{what}; "integers": "first" keeps the state\'s')
    raise PlanError(f"{what} and cannot be merged; leave it out of the target")


def total_weight(weights: Iterable[float]) -> float:
    """Return the sum of weights, to divide by; raises PlanError where it is zero."""
    values = list(weights)
    total = float(sum(values))
    if abs(total) <= 1e-12 * sum(abs(value) for value in values):
        raise PlanError(f"weights {values} add up to zero")
    return total
