"""lora_merge: fold adapters into the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np

from surgeon.base.errors import PlanError, several
from surgeon.draft import Draft
from surgeon.draft.quantised import groups
from surgeon.draft.registry import op
from surgeon.lazy import Blockwise, LazyTensor, Product, Scratch, TensorSpec, is_product
from surgeon.lazy.values import same_values
from surgeon.numeric.dtypes import Array
from surgeon.ops.shared.adapter_changes import (
    change_of,
    is_told,
    multiplied,
    require,
    with_magnitudes,
    with_rows,
    without_base,
)
from surgeon.ops.shared.adapters import Adapter, read_adapter
from surgeon.ops.shared.arithmetic import FLOAT64, NonFinite, calculated
from surgeon.ops.shared.codes import dequantised, usual_dtype

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
    dequantize: Annotated[
        bool, "make numbers of the quantised weights that the adapters change"
    ] = False,
    nonfinite: NonFinite = "error",
) -> None:
    """Fold adapters (LoRA and its kin) into the weights.

    As PEFT, kohya's scripts, LyCORIS or diffusers save them. A weight becomes W + scaling B A,
    with scaling = alpha / r (alpha / sqrt(r) for rank-stabilised LoRA, Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732): linear layers, also transposed ones, embeddings,
    convolutions, and experts (`target_parameters`). DoRA (Liu et al. 2024,
    https://arxiv.org/abs/2402.09353), LoHa and LoKr (Yeh et al. 2023,
    https://arxiv.org/abs/2309.14859), IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638) and
    rows of tokens are merged as PEFT merges them. Calculated in float64 and rounded once, also
    where several adapters change one weight. With `dequantize`, quantised weights that an adapter
    changes become numbers first, and stay numbers; `quantize` makes codes of them again. Biases
    and modules that were trained in full replace the state's. A model's name is the adapter's
    without 'base_model.model.'. Raises for anything in the adapter that finds no place, for other
    kinds of adapters, and for what starts from a changed base (PiSSA, OLoRA).
    """
    changes = _Changes(draft)
    opened: list[tuple[Adapter, float]] = []
    for entry in adapter if isinstance(adapter, list) else [adapter]:
        entry = {"adapter": entry} if isinstance(entry, str) else entry
        try:
            found = read_adapter(draft, entry["adapter"], entry.get("config", {}))
            opened.append((found, float(entry.get("weight", 1.0))))
        except PlanError as error:
            changes.problems += error.problems
    changes.problems += _make_numbers(draft, [found for found, _ in opened], dequantize)
    for found, weight in opened if not changes.problems else ():
        _collect(changes, found, weight)
    results = changes.results(nonfinite) if not changes.problems else {}
    if changes.problems:
        # Of a module that an adapter both holds and adds to, both find the same.
        raise PlanError(*dict.fromkeys(changes.problems))
    draft.replace(results)


@dataclass
class _Changes:
    """What the adapters do, by the tensor that they do it to; and what is wrong.

    `added` are terms, each with its factor; `replaced` is what terms come on top of, where an
    adapter holds a whole tensor; `made` are results of what multiplies, which nothing else joins.
    """

    draft: Draft
    added: dict[int, tuple[str, list[tuple[float, LazyTensor]]]] = field(default_factory=dict)
    replaced: dict[int, tuple[str, LazyTensor]] = field(default_factory=dict)
    made: dict[int, tuple[str, LazyTensor]] = field(default_factory=dict)
    # Who adds to a tensor, and whose own base layer a replacement is.
    adders: dict[int, set[str]] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, adapter: Adapter, name: str, factor: float, tensor: LazyTensor) -> None:
        key = id(self.draft[name])
        self.added.setdefault(key, (name, []))[1].append((factor, tensor))
        self.adders.setdefault(key, set()).add(adapter.label)

    def make(self, adapter: Adapter, name: str, tensor: LazyTensor) -> None:
        if self.made.setdefault(id(self.draft[name]), (name, tensor))[1] is not tensor:
            self.problems.append(f"{adapter.label}: '{name}' is changed twice by what multiplies")

    def base(self, name: str) -> LazyTensor:
        """Return what changes of a tensor come on top of."""
        found = self.replaced.get(id(self.draft[name]))
        return found[1] if found else self.draft[name]

    def results(self, nonfinite: NonFinite) -> dict[str, LazyTensor]:
        """Return what becomes of the tensors."""
        for key in self.made.keys() & (self.added.keys() | self.replaced.keys()):
            self.problems.append(
                f"'{self.made[key][0]}' is changed by what multiplies (DoRA, IA3) and by something "
                "else; merge one after the other"
            )
        for key in self.added.keys() & self.replaced.keys():
            if self.adders[key] != {self.owners.get(key)}:
                self.problems.append(
                    f"'{self.replaced[key][0]}' would be both replaced and added to"
                )
        results = dict(self.replaced.values())
        for name, terms in self.added.values():
            kernel = partial(_fold, [factor for factor, _ in terms])
            tensors = (self.base(name), *(tensor for _, tensor in terms))
            results[name] = calculated(name, self.draft.spec(name), kernel, tensors, nonfinite)
        for name, tensor in self.made.values():
            spec = self.draft.spec(name)
            results[name] = calculated(name, spec, _copy, (tensor,), nonfinite)
        return results


def _make_numbers(draft: Draft, adapters: Sequence[Adapter], dequantize: bool) -> Iterator[str]:
    """Make numbers of quantised weights that adapters change; without leave, say which these are.

    They take the dtype that the folder's config says its model computes in, else BF16.
    """
    config = draft.outside.read_config(None)
    settings = config.get("quantization_config")
    settings = settings if isinstance(settings, dict) else {}
    changed = {f"{module}.weight" for adapter in adapters for module in adapter.parts}
    changed |= {name for adapter in adapters for name in adapter.replaced}
    found = [group for group in groups(draft.tensors, settings) if group.weight in changed]
    if found and not dequantize:
        yield (
            f"{several([str(group) for group in found], 1)}: codes are no numbers to add to; "
            '"dequantize": true makes numbers of what the adapter changes'
        )
    elif found:
        draft.tensors = dequantised(draft.tensors, found, usual_dtype(config), settings)


def _fold(factors: Sequence[float], blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.multiply(blocks[1], factors[0], out=out)
    for factor, block in zip(factors[1:], blocks[2:], strict=True):
        np.add(out, block * factor, out=out)
    return np.add(blocks[0], out, out=out)


def _collect(changes: _Changes, adapter: Adapter, weight: float) -> None:
    """Add what one adapter does to the changes."""
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
            if name in adapter.bases:
                changes.owners[key] = adapter.label
    turned: dict[str, Product] = {}
    for module, parts in adapter.parts.items():
        try:
            _change(changes, adapter, module, parts, weight, turned)
        except PlanError as error:
            changes.problems += error.problems
    changes.problems += _ambiguous(changes.draft, adapter, turned)


def _change(
    changes: _Changes,
    adapter: Adapter,
    module: str,
    parts: Mapping[str, LazyTensor],
    weight: float,
    products: dict[str, Product],
) -> None:
    """Add what one module's parts do; raises PlanError where they do not fit."""
    draft = changes.draft
    is_multiplied = "ia3_l" in parts or "magnitude" in parts
    if weight != 1 and (is_multiplied or "tokens" in parts):
        raise PlanError(f"{adapter.label}: '{module}' is no sum, and takes no weight")
    if "ia3_l" in parts:
        for name, tensor in multiplied(draft, adapter, module, parts["ia3_l"]).items():
            changes.make(adapter, name, tensor)
        return
    if "tokens" in parts:
        name = f"{module}.weight"
        require(draft, adapter, name, *([draft.spec(name).shape] if name in draft.tensors else []))
        rows = _in_dtype(draft, name, parts["tokens"])
        key = id(draft[name])
        changes.replaced[key] = name, with_rows(adapter, module, changes.base(name), rows)
        return
    name, change, is_turned = change_of(draft, adapter, module, parts)
    if is_product(change):
        products[module] = change
    factor = adapter.scaling(without_base(module)) * weight
    if "magnitude" in parts:
        spec = TensorSpec("F64", draft.spec(name).shape)
        sum_of = (changes.base(name), change)
        total = Blockwise(spec, partial(_fold, [factor]), sum_of, working=FLOAT64)
        made = with_magnitudes(adapter, module, total, parts["magnitude"], is_turned)
        changes.replaced.pop(id(draft[name]), None)
        changes.make(adapter, name, made)
    else:
        changes.add(adapter, name, factor, change)
    if "bias" in parts:
        bias = f"{module}.bias"
        require(draft, adapter, bias, parts["bias"].spec.shape)
        changes.add(adapter, bias, factor, parts["bias"])


def _in_dtype(draft: Draft, name: str, rows: LazyTensor) -> LazyTensor:
    spec = TensorSpec(draft.spec(name).dtype, rows.spec.shape)
    return rows if rows.spec == spec else calculated(name, spec, _copy, (rows,), "error")


def _ambiguous(draft: Draft, adapter: Adapter, products: Mapping[str, Product]) -> Iterator[str]:
    """Say which weights may be the other way round than they are taken to be.

    PEFT keeps one flag for all layers, whatever their kind; of a square weight nothing else tells.
    """
    flag = bool(adapter.config.get("fan_in_fan_out"))
    linear = {
        module: product
        for module, product in products.items()
        if len(product.shape) == 2 and module not in adapter.embeddings
    }
    others = [
        module
        for module, product in linear.items()
        if product.shape[0] != product.shape[1] and product.is_transposed != flag
    ]
    if not others or is_told(draft, adapter):
        return
    for module, product in linear.items():
        if product.shape[0] == product.shape[1]:
            yield (
                f"{adapter.label}: '{module}' is square, and fan_in_fan_out is {str(flag).lower()} "
                f"although it is not so for '{others[0]}'; say it for the square ones: "
                '"config": {"fan_in_fan_out": ...}'
            )


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
    require(draft, adapter, name, first.spec.shape)
    return calculated(name, draft.spec(name), _copy, (first,), "error")


def _require_equal(
    label: str, name: str, one: LazyTensor, other: LazyTensor, scratch: Scratch
) -> None:
    if not same_values(one, other, scratch):
        raise PlanError(f"{label}: holds '{name}' twice, with different values")


def _copy(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.copyto(out, blocks[0])
    return out
