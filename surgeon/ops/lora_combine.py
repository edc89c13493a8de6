"""lora_combine: one adapter of several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.draft import ADAPTER_WEIGHTS, Draft, Tensors
from surgeon.draft.adapters import CONFIG, PREFIX, exactly
from surgeon.draft.registry import op
from surgeon.lazy import Joined, LazyTensor, Rearranged, Stream, TensorSpec, WholeTensor
from surgeon.lazy.values import require_finite
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.numeric.matrices import coefficients, right_singular
from surgeon.ops.shared.adapters import Adapter, adapter_of, read_adapter
from surgeon.ops.shared.arithmetic import calculated

# Weight, scaling, A and B of the adapters that change a module.
Terms = Sequence[tuple[float, float, LazyTensor, LazyTensor]]
_PATHS = {"items": {"type": "string", "minLength": 1}, "minItems": 1}
_FLOAT64_BYTES = 8


@op(
    group="values",
    example={"adapters": ["second"], "weights": [0.5, 0.5]},
    paper="Yadav et al. 2023, TIES-Merging, https://arxiv.org/abs/2306.01708; Yu et al. 2023, "
    "DARE, https://arxiv.org/abs/2311.03099",
)
def lora_combine(
    draft: Draft,
    *,
    adapters: Annotated[list[str], "the others' folders or files; the input is the first", _PATHS],
    weights: Annotated[list[float], "one for each adapter, the input's first", {"minItems": 2}],
    method: Annotated[
        Literal["cat", "svd", "ties_svd", "dare_ties_svd"],
        "cat: exact, ranks add up; svd: the best of a rank; the others prune and elect signs first",
    ] = "cat",
    rank: Annotated[
        int | None, "of the result, but for cat; default the largest of theirs", {"minimum": 1}
    ] = None,
    density: Annotated[
        float | None,
        "the share of each change that ties_svd and dare_ties_svd keep",
        {"exclusiveMinimum": 0, "maximum": 1},
    ] = None,
) -> None:
    """Make one LoRA adapter of several, each times a weight.

    A's and B's of adapters cannot be averaged: the product has cross terms. `cat` puts the factors
    beside each other, which is the weighted sum of the changes exactly; the others approximate a
    sum by its largest singular triplets, as PEFT's `add_weighted_adapter` does under these names
    (of equal magnitudes the first are kept; chance is surgeon's own). Scalings, patterns and
    alphas go into the factors. A module that only some adapters change is combined of those. The
    input is an adapter; a folder as OUTPUT gets a configuration that PEFT opens. Raises for
    anything besides factors: biases, whole modules, DoRA.
    """
    if len(weights) != len(adapters) + 1:
        raise PlanError(
            f"there are {len(weights)} weights for {len(adapters) + 1} adapters (the input is the "
            "first)"
        )
    prunes = method in ("ties_svd", "dare_ties_svd")
    if prunes is not (density is not None):
        raise PlanError(f"'{method}' {'needs' if prunes else 'takes no'} 'density'")
    if method == "cat" and rank is not None:
        raise PlanError("'cat' takes no 'rank': it is the sum of the adapters' ranks")
    config = draft.outside.read_config(None)
    opened = [adapter_of(draft, draft.tensors, "the input", {}, config)]
    opened += [read_adapter(draft, location, {}) for location in adapters]
    problems = [line for adapter in opened for line in _misfits(adapter)]
    if problems:
        raise PlanError(*problems)
    modules = list(dict.fromkeys(module for adapter in opened for module in adapter.parts))
    largest = max(
        adapter.parts[module]["A"].spec.shape[0] for adapter in opened for module in adapter.parts
    )
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    for module in modules:
        terms = _terms(opened, weights, module)
        is_embedding = any(module in adapter.embeddings for adapter in opened)
        stem = f"{PREFIX}{module}.lora_{'embedding_' if is_embedding else ''}"
        leaf = "" if is_embedding else ".weight"
        if method == "cat":
            a, b = _beside(f"{stem}A{leaf}", terms)
        else:
            streams = [draft.stream(f"{module}\0{number}") for number in range(len(opened))]
            a, b = _approximated(module, terms, method, rank or largest, density, streams)
        tensors[f"{stem}A{leaf}"], tensors[f"{stem}B{leaf}"] = a, b
        ranks[module] = a.spec.shape[0]
    draft.tensors = tensors
    draft.weights_file = ADAPTER_WEIGHTS
    draft.sidecars[CONFIG] = _configuration(config, ranks)


def _misfits(adapter: Adapter) -> list[str]:
    """Say what of an adapter has no place in a sum of products."""
    problems = [
        f"{adapter.label}: replaces '{name}' as a whole, which cannot be combined"
        for name in list(adapter.replaced)[:1]
    ]
    if adapter.kind != "LORA" or adapter.config.get("target_parameters"):
        return [f"{adapter.label}: is no plain LoRA adapter ({adapter.kind}), and not combined"]
    for module, parts in adapter.parts.items():
        if parts.keys() != {"A", "B"}:
            others = ", ".join(sorted(parts.keys() - {"A", "B"}))
            problems.append(f"{adapter.label}: '{module}' has {others}, which cannot be combined")
            break
        a, b = parts["A"].spec, parts["B"].spec
        if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1]:
            problems.append(f"{adapter.label}: '{module}': A is {a} and B {b}, which do not fit")
        elif {DTYPES[a.dtype].kind, DTYPES[b.dtype].kind} != {"float"}:
            problems.append(f"{adapter.label}: '{module}': A is {a} and B {b}, no numbers")
    return problems


def _terms(opened: Sequence[Adapter], weights: Sequence[float], module: str) -> Terms:
    """Return the terms of the adapters that change a module; raises where shapes differ."""
    terms = [
        (weight, adapter.scaling(module), parts["A"], parts["B"])
        for adapter, weight in zip(opened, weights, strict=True)
        if (parts := adapter.parts.get(module))
    ]
    *_, first, second = terms[0]
    for *_, a, b in terms[1:]:
        here = (a.spec.shape[1:], b.spec.resized(1, 0).shape)
        if here != (first.spec.shape[1:], second.spec.resized(1, 0).shape):
            raise PlanError(
                f"'{module}': one adapter has A {first.spec} and B {second.spec}, another "
                f"{a.spec} and {b.spec}"
            )
    return terms


# --- Side by side ---------------------------------------------------------------------------------


def _beside(name: str, terms: Terms) -> tuple[LazyTensor, LazyTensor]:
    """Return A's one under the other, times their factors, and B's one beside the other."""
    a_dtype, b_dtype = terms[0][2].spec.dtype, terms[0][3].spec.dtype
    scaled = [_times(name, weight * own, a, a_dtype) for weight, own, a, _ in terms]
    others = [_times(name, 1.0, b, b_dtype) for *_, b in terms]
    return Joined(tuple(scaled), 0), Joined(tuple(others), 1)


def _times(name: str, factor: float, tensor: LazyTensor, dtype: str) -> LazyTensor:
    if factor == 1 and tensor.spec.dtype == dtype:
        return tensor
    spec = TensorSpec(dtype, tensor.spec.shape)
    return calculated(name, spec, partial(_product, factor), (tensor,), "error")


def _product(factor: float, blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    return np.multiply(blocks[0], factor, out=out)


# --- The best of a rank ---------------------------------------------------------------------------


def _approximated(
    module: str,
    terms: Terms,
    method: str,
    rank: int,
    density: float | None,
    streams: Sequence[Stream],
) -> tuple[LazyTensor, LazyTensor]:
    """Return the factors of the largest singular triplets of the combined change."""
    *_, first, second = terms[0]
    outputs, inputs = second.spec.shape[0], first.spec.count // max(first.spec.shape[0], 1)
    kept = min(rank, outputs, inputs)
    operands = tuple(tensor for *_, a, b in terms for tensor in (a, b))
    combine = partial(
        _combined, module, [term[:2] for term in terms], method, density or 1.0, streams
    )
    count = outputs * inputs
    # The changes, what is kept of each, and LAPACK's copies and workspace.
    spare = (3 * len(terms) + 4) * count + 8 * min(outputs, inputs) ** 2
    directions = WholeTensor(
        TensorSpec(first.spec.dtype, (kept, inputs)), partial(_directions, combine, kept), operands,
        spare_bytes=spare * _FLOAT64_BYTES,
    )  # fmt: skip
    fitted = WholeTensor(
        TensorSpec(second.spec.dtype, (outputs, kept)), partial(_fitted, combine),
        (*operands, directions), spare_bytes=spare * _FLOAT64_BYTES,
    )  # fmt: skip
    a_shape = (kept, *first.spec.shape[1:])
    b_shape = (outputs, kept, *second.spec.shape[2:])
    return (
        Rearranged(directions, (0, 1), a_shape) if a_shape != directions.spec.shape else directions,
        Rearranged(fitted, (0, 1), b_shape) if b_shape != fitted.spec.shape else fitted,
    )


def _directions(combine: partial[Array], rank: int, values: Sequence[Array]) -> Array:
    return right_singular(combine(values), rank)


def _fitted(combine: partial[Array], values: Sequence[Array]) -> Array:
    *factors, directions = values
    return coefficients(combine(factors), directions)


def _combined(
    module: str,
    factors: Sequence[tuple[float, float]],
    method: str,
    density: float,
    streams: Sequence[Stream],
    values: Sequence[Array],
) -> Array:
    """Return the combined change, (outputs, inputs)."""
    changes, weights = [], [weight for weight, _ in factors]
    for a, b, (_, own) in zip(values[::2], values[1::2], factors, strict=True):
        change = own * (b.reshape(b.shape[:2]) @ a.reshape(a.shape[0], -1))
        require_finite(change.reshape(-1), f"the change of '{module}'")
        changes.append(change)
    if method == "svd":
        return np.asarray(sum(w * change for w, change in zip(weights, changes, strict=True)))
    kept = [
        _largest(change, density) if method == "ties_svd" else _by_chance(change, density, stream)
        for change, stream in zip(changes, streams, strict=False)
    ]
    return _elected(kept, weights)


def _largest(change: Array, density: float) -> Array:
    """Return the largest entries of a change, zeros elsewhere; of equal ones the first."""
    magnitudes = np.abs(change).reshape(-1)
    order = np.argsort(-magnitudes, kind="stable")[: int(density * magnitudes.size)]
    result = np.zeros(magnitudes.size)
    result[order] = change.reshape(-1)[order]
    return result.reshape(change.shape)


def _by_chance(change: Array, density: float, stream: Stream) -> Array:
    """Return entries that chance keeps, scaled up by how few these are."""
    mask = stream.generator(0).random(change.shape) < density
    return np.where(mask, change / density, 0)


def _elected(changes: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the mean, of those that agree with the elected sign, of weighted changes."""
    stacked = np.stack(changes)
    elected = np.where(stacked.sum(axis=0) >= 0, 1, -1)
    agree = np.sign(stacked) == elected
    factors = np.reshape(weights, (-1, *[1] * (stacked.ndim - 1)))
    total = (stacked * factors * agree).sum(axis=0)
    mean: Array = total / np.maximum(agree.sum(axis=0), 1)
    return mean


def _configuration(config: Any, ranks: dict[str, int]) -> dict[str, Any]:
    """Return PEFT's configuration, by which the factors' product is what is added."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {exactly(module): rank for module, rank in ranks.items() if rank != usual}
    return {
        **config,
        "alpha_pattern": others,
        "init_lora_weights": True,
        "lora_alpha": usual,
        "r": usual,
        "rank_pattern": others,
        "target_modules": sorted(ranks),
        "use_rslora": False,
    }
