"""lora_merge: fold PEFT's LoRA adapters into the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Annotated, Any

import numpy as np

from surgeon.base.errors import PlanError, did_you_mean
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Product, Scratch
from surgeon.lazy.values import same_values
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.ops.shared.adapters import Adapter, Factors, read_adapter
from surgeon.ops.shared.arithmetic import NonFinite, calculated

_ENTRY = {
    "type": "object",
    "properties": {
        "adapter": {"type": "string", "minLength": 1, "description": "a folder, or a file"},
        "weight": {"type": "number", "description": "the factor of its change", "default": 1.0},
        "config": {
            "type": "object",
            "description": "what adapter_config.json lacks, or says wrongly; null takes it out",
        },
    },
    "required": ["adapter"],
    "additionalProperties": False,
}
_PATH = {"type": "string", "minLength": 1}
_SCHEMA = {
    "anyOf": [
        _PATH,
        _ENTRY,
        {"type": "array", "items": {"anyOf": [_PATH, _ENTRY]}, "minItems": 1},
    ]
}


@dataclass
class _Changes:
    """What the adapters do, by the tensor that they do it to; and what is wrong."""

    draft: Draft
    added: dict[int, tuple[str, list[tuple[float, LazyTensor]]]] = field(default_factory=dict)
    replaced: dict[int, tuple[str, LazyTensor]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, factor: float, tensor: LazyTensor) -> None:
        self.added.setdefault(id(self.draft[name]), (name, []))[1].append((factor, tensor))


@op(
    group="values",
    example={"adapter": "adapter"},
    paper="Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, "
    "https://arxiv.org/abs/2106.09685",
)
def lora_merge(
    draft: Draft,
    *,
    adapter: Annotated[
        Any,
        _SCHEMA,
        "a PEFT folder or weight file, the same with a weight and settings, or several",
    ],
    nonfinite: NonFinite = "error",
) -> None:
    """Fold LoRA adapters, as PEFT saves them, into the weights.

    A weight becomes W + scaling B A, with scaling = alpha / r (alpha / sqrt(r) for rank-stabilised
    LoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732): linear layers, also transposed
    ones (`fan_in_fan_out`), embeddings, convolutions. Calculated in float64 and rounded once, also
    where several adapters change one weight. Biases and modules that were trained in full replace
    the state's. A model's name is the adapter's without 'base_model.model.'. Raises for anything
    in the adapter that finds no place, for other kinds of adapters, and for DoRA.
    """
    changes = _Changes(draft)
    for entry in adapter if isinstance(adapter, list) else [adapter]:
        entry = {"adapter": entry} if isinstance(entry, str) else entry
        try:
            opened = read_adapter(draft, entry["adapter"], entry.get("config", {}))
        except PlanError as error:
            changes.problems += error.problems
            continue
        _collect(changes, opened, float(entry.get("weight", 1.0)))
    both = changes.added.keys() & changes.replaced.keys()
    changes.problems += [
        f"'{changes.replaced[key][0]}' would be both replaced and added to" for key in both
    ]
    if changes.problems:
        raise PlanError(*changes.problems)
    results = dict(changes.replaced.values())
    for name, terms in changes.added.values():
        kernel = partial(_fold, [factor for factor, _ in terms])
        tensors = (draft[name], *(tensor for _, tensor in terms))
        results[name] = calculated(name, draft.spec(name), kernel, tensors, nonfinite)
    draft.replace(results)


def _fold(factors: Sequence[float], blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.multiply(blocks[1], factors[0], out=out)
    for factor, block in zip(factors[1:], blocks[2:], strict=True):
        np.add(out, block * factor, out=out)
    return np.add(blocks[0], out, out=out)


def _collect(changes: _Changes, adapter: Adapter, weight: float) -> None:
    """Add what one adapter does to the changes."""
    products: dict[str, Product] = {}
    for module, factors in adapter.factors.items():
        try:
            factor = adapter.scaling(module) * weight
            products[module] = _product(changes.draft, adapter, module, factors)
            changes.add(f"{module}.weight", factor, products[module])
            if factors.bias is not None:
                name = f"{module}.bias"
                _require(changes.draft, adapter, name, factors.bias.spec.shape)
                changes.add(name, factor, factors.bias)
        except PlanError as error:
            changes.problems += error.problems
    changes.problems += _ambiguous(adapter, products)
    for name, tensors in adapter.replaced.items():
        try:
            replacement = _replacement(changes.draft, adapter, name, tensors)
        except PlanError as error:
            changes.problems += error.problems
            continue
        key = id(changes.draft[name])
        if weight != 1:
            changes.problems.append(
                f"{adapter.label}: replaces '{name}' as a whole, which takes no weight"
            )
        elif key in changes.replaced:
            changes.problems.append(f"{adapter.label}: '{name}' is replaced twice")
        else:
            changes.replaced[key] = name, replacement


def _ambiguous(adapter: Adapter, products: Mapping[str, Product]) -> Iterator[str]:
    """Say which weights may be the other way round than they are taken to be.

    PEFT keeps one flag for all layers, whatever their kind; of a square weight nothing else tells.
    """
    flag = bool(adapter.config.get("fan_in_fan_out"))
    linear = {
        module: product
        for module, product in products.items()
        if len(product.shape) == 2 and not adapter.factors[module].is_embedding
    }
    others = [
        module
        for module, product in linear.items()
        if product.shape[0] != product.shape[1] and product.is_transposed != flag
    ]
    if not others or "fan_in_fan_out" in adapter.given:
        return
    for module, product in linear.items():
        if product.shape[0] == product.shape[1]:
            yield (
                f"{adapter.label}: '{module}' is square, and fan_in_fan_out is {str(flag).lower()} "
                f"although it is not so for '{others[0]}'; say it for the square ones: "
                '"config": {"fan_in_fan_out": ...}'
            )


def _require(
    draft: Draft, adapter: Adapter, name: str, *shapes: tuple[int, ...]
) -> tuple[int, ...]:
    """Return a tensor's shape; raises PlanError unless it is there, and of one of the shapes."""
    if name not in draft.tensors:
        hint = did_you_mean(name, draft.tensors)
        raise PlanError(f"{adapter.label}: changes '{name}', which the state does not have{hint}")
    spec = draft.spec(name)
    if spec.shape not in shapes or DTYPES[spec.dtype].kind != "float":
        wanted = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise PlanError(f"{adapter.label}: changes '{name}' as {wanted}, but it is {spec}")
    return spec.shape


def _product(draft: Draft, adapter: Adapter, module: str, factors: Factors) -> Product:
    """Return what a module's factors add to its weight, before it is scaled."""
    a, b = factors.a, factors.b
    place = f"{adapter.label}: '{module}'"
    if len(a.spec.shape) < 2 or len(b.spec.shape) < 2 or a.spec.shape[0] != b.spec.shape[1]:
        raise PlanError(f"{place}: A is {a.spec} and B {b.spec}, which cannot be multiplied")
    if {DTYPES[a.spec.dtype].kind, DTYPES[b.spec.dtype].kind} != {"float"}:
        raise PlanError(f"{place}: A is {a.spec} and B {b.spec}, expected floating-point values")
    if (rank := adapter.rank(module)) != a.spec.shape[0]:
        raise PlanError(f"{place}: has rank {a.spec.shape[0]}, but its configuration says {rank}")
    rows, inputs = b.spec.shape[0], a.spec.shape[1:]
    straight, turned = (rows, *inputs), (*inputs, rows)
    if prod(b.spec.shape[2:]) != 1:
        raise PlanError(f"{place}: B is {b.spec}, expected one position per channel")
    name = f"{module}.weight"
    if factors.is_embedding:
        shape, is_transposed = _require(draft, adapter, name, turned), True
    elif len(inputs) > 1:
        shape, is_transposed = _require(draft, adapter, name, straight), False
    else:
        shape = _require(draft, adapter, name, straight, turned)
        is_transposed = (
            bool(adapter.config.get("fan_in_fan_out")) if straight == turned else shape == turned
        )
    return Product(shape, b, a, is_transposed)


def _replacement(
    draft: Draft, adapter: Adapter, name: str, tensors: Sequence[LazyTensor]
) -> LazyTensor:
    """Return a tensor that was trained in full, in the state's dtype."""
    first, *others = tensors
    for other in others:
        if other.spec != first.spec:
            raise PlanError(f"{adapter.label}: holds '{name}' as {first.spec} and as {other.spec}")
        draft.check(partial(_require_equal, adapter.label, name, first, other))
    if name in draft.tensors and first.spec == draft.spec(name):
        return first
    _require(draft, adapter, name, first.spec.shape)
    return calculated(name, draft.spec(name), _copy, (first,), "error")


def _require_equal(
    label: str, name: str, one: LazyTensor, other: LazyTensor, scratch: Scratch
) -> None:
    if not same_values(one, other, scratch):
        raise PlanError(f"{label}: holds '{name}' twice, with different values")


def _copy(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.copyto(out, blocks[0])
    return out
