"""What an adapter's parts do to a weight: what they add to it, or what they make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod

import numpy as np

from surgeon.base.errors import PlanError, did_you_mean, listed
from surgeon.draft import Draft
from surgeon.lazy import (
    Blockwise,
    Joined,
    LazyTensor,
    Product,
    Rearranged,
    Recoded,
    Selected,
    TensorSpec,
    WholeTensor,
)
from surgeon.numeric.dtypes import DTYPES, Array, upcast
from surgeon.ops.shared.adapters import Adapter, matches
from surgeon.ops.shared.arithmetic import FLOAT64

Parts = Mapping[str, LazyTensor]
# Modules of these model types that are called so keep weights as (inputs, outputs).
_CONV1D_TYPES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
_CONV1D_NAMES = {"c_attn", "c_proj", "c_fc", "q_attn"}
_TRANSPOSED_EXPERTS = {"gpt_oss"}


def require(draft: Draft, adapter: Adapter, name: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return a tensor's shape; raises PlanError unless it is there, and of one of the shapes."""
    if name not in draft.tensors:
        if owner := draft.outside.tied_names(None).get(name):
            raise PlanError(
                f"{adapter.label}: changes '{name}', which is tied to '{owner}', and would change "
                f'that too; {{"op": "untie", "target": "{name}"}} first parts them'
            )
        hint = did_you_mean(name, draft.tensors)
        raise PlanError(f"{adapter.label}: changes '{name}', which the state does not have{hint}")
    spec = draft.spec(name)
    if spec.shape not in shapes or DTYPES[spec.dtype].kind != "float":
        wanted = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise PlanError(f"{adapter.label}: changes '{name}' as {wanted}, but it is {spec}")
    return spec.shape


def _need(adapter: Adapter, module: str, parts: Parts, *roles: str) -> list[LazyTensor]:
    missing = [role for role in roles if role not in parts]
    if missing:
        raise PlanError(f"{adapter.label}: '{module}' has no {' and no '.join(missing)}")
    found = [parts[role] for role in roles]
    for role, tensor in zip(roles, found, strict=True):
        if DTYPES[tensor.spec.dtype].kind != "float":
            raise PlanError(f"{adapter.label}: {role} of '{module}' is {tensor.spec}, no numbers")
    return found


def change_of(
    draft: Draft, adapter: Adapter, module: str, parts: Parts
) -> tuple[str, LazyTensor, bool]:
    """Return the tensor that parts add to, what they add before it is scaled, and whether turned.

    What is added is float64, in the weight's shape.
    """
    if adapter.kind == "LOHA":
        return f"{module}.weight", _hadamard(draft, adapter, module, parts), False
    if adapter.kind == "LOKR":
        return f"{module}.weight", _kronecker(draft, adapter, module, parts), False
    if parameter := _parameter(draft, adapter, module, parts):
        if len(draft.spec(parameter).shape) == 3:
            return parameter, _experts(draft, adapter, module, parts, parameter), False
    else:
        parameter = f"{module}.weight"
    product = _product(draft, adapter, module, parts, parameter)
    return parameter, product, product.is_transposed


# --- LoRA -----------------------------------------------------------------------------------------


def _product(draft: Draft, adapter: Adapter, module: str, parts: Parts, name: str) -> Product:
    a, b = _need(adapter, module, parts, "A", "B")
    place = f"{adapter.label}: '{module}'"
    if len(a.spec.shape) < 2 or len(b.spec.shape) < 2 or a.spec.shape[0] != b.spec.shape[1]:
        raise PlanError(f"{place}: A is {a.spec} and B {b.spec}, which cannot be multiplied")
    if module not in adapter.factors and (rank := adapter.rank(module)) != a.spec.shape[0]:
        raise PlanError(f"{place}: has rank {a.spec.shape[0]}, but its configuration says {rank}")
    rows, inputs = b.spec.shape[0], a.spec.shape[1:]
    straight, turned = (rows, *inputs), (*inputs, rows)
    if prod(b.spec.shape[2:]) != 1:
        raise PlanError(f"{place}: B is {b.spec}, expected one position per channel")
    if module in adapter.embeddings:
        shape, is_transposed = require(draft, adapter, name, turned), True
    elif len(inputs) > 1:
        shape, is_transposed = require(draft, adapter, name, straight), False
    else:
        shape = require(draft, adapter, name, straight, turned)
        is_transposed = shape == turned
        if straight == turned:
            is_transposed = is_turned(draft, adapter, module)
    return Product(shape, b, a, is_transposed)


def is_turned(draft: Draft, adapter: Adapter, module: str) -> bool:
    """Say whether a square weight is kept as (inputs, outputs): what the folder's model has."""
    is_known = draft.outside.read_config(None).get("model_type") in _CONV1D_TYPES
    if is_known and "fan_in_fan_out" not in adapter.given:
        return module.rpartition(".")[2] in _CONV1D_NAMES
    return bool(adapter.config.get("fan_in_fan_out"))


def is_told(draft: Draft, adapter: Adapter) -> bool:
    """Say whether more than PEFT's one flag tells how square weights are kept."""
    known = draft.outside.read_config(None).get("model_type") in _CONV1D_TYPES
    return known or "fan_in_fan_out" in adapter.given


def without_base(module: str) -> str:
    """Return the module that parts are for: PEFT wraps it once for each of its parameters."""
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return module


def _parameter(draft: Draft, adapter: Adapter, module: str, parts: Parts) -> str | None:
    """Return the parameter that a module's parts are for, where it is one of target_parameters.

    The tensors' names do not say which: shapes do, unless two fit.
    """
    wanted = adapter.config.get("target_parameters") or []
    bare = without_base(module)
    if not wanted or f"{bare}.weight" in draft.tensors:
        return None
    names = [
        name
        for name in draft.tensors
        if name.startswith(f"{bare}.")
        and any(name == word or name.endswith(f".{word}") for word in wanted)
    ]
    if not names:
        raise PlanError(
            f"{adapter.label}: changes one of {listed(wanted)} of '{bare}', which the state does "
            "not hold as one tensor"
        )
    a, b = _need(adapter, module, parts, "A", "B")
    sides = {a.spec.shape[-1], b.spec.shape[0]}
    fit = [name for name in names if set(draft.spec(name).shape[-2:]) == sides]
    if len(fit) != 1:
        raise PlanError(
            f"{adapter.label}: '{module}' changes one of {', '.join(map(repr, names))}, and its "
            f"tensors' shapes fit {len(fit)} of them"
        )
    return fit[0]


def _experts(draft: Draft, adapter: Adapter, module: str, parts: Parts, name: str) -> LazyTensor:
    """Return what is added to a stack of experts' matrices: a product for each."""
    a, b = _need(adapter, module, parts, "A", "B")
    experts = draft.spec(name).shape[0]
    outputs, inputs = b.spec.shape[0], a.spec.shape[1]
    rank, rest = divmod(a.spec.shape[0], experts)
    own_rank = adapter.rank(without_base(module))
    if rest or b.spec.shape != (outputs, rank * experts) or rank != own_rank:
        raise PlanError(
            f"{adapter.label}: '{module}': A is {a.spec} and B {b.spec} for {experts} experts of "
            f"rank {own_rank}"
        )
    shape = require(draft, adapter, name, (experts, outputs, inputs), (experts, inputs, outputs))
    is_transposed = shape[1:] == (inputs, outputs)
    if outputs == inputs:
        model_type = draft.outside.read_config(None).get("model_type")
        if model_type is None and "fan_in_fan_out" not in adapter.given:
            raise PlanError(
                f"{adapter.label}: '{name}' holds square matrices, and no config.json says which "
                'way round; say "config": {"fan_in_fan_out": ...}'
            )
        stated = adapter.given.get("fan_in_fan_out")
        is_transposed = model_type in _TRANSPOSED_EXPERTS if stated is None else bool(stated)
    # B's columns are rank after rank, and the experts of each.
    apart = Rearranged(b, (0, 1), (outputs, rank, experts))
    products = []
    for expert in range(experts):
        left = Selected(apart, 2, ((expert, expert + 1),))
        right = Selected(a, 0, ((expert * rank, (expert + 1) * rank),))
        own = Rearranged(left, (0, 1, 2), (outputs, rank))
        products.append(Product((1, *shape[1:]), own, right, is_transposed))
    return Joined(tuple(products), 0)


# --- Others that add ------------------------------------------------------------------------------


def _weight_spec(draft: Draft, adapter: Adapter, module: str, count: int | None) -> TensorSpec:
    name = f"{module}.weight"
    if name not in draft.tensors:
        require(draft, adapter, name)
    spec = draft.spec(name)
    if DTYPES[spec.dtype].kind != "float" or (count is not None and spec.count != count):
        raise PlanError(f"{adapter.label}: '{name}' is {spec}, which its change does not fit")
    return TensorSpec("F64", spec.shape)


def _hadamard(draft: Draft, adapter: Adapter, module: str, parts: Parts) -> LazyTensor:
    """Return the elementwise product of two matrices of low rank (LoHa)."""
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    first, second, third, fourth = _need(adapter, module, parts, *roles)
    if "hada_t1" in parts:
        cores = _need(adapter, module, parts, "hada_t1", "hada_t2")
        spec = _weight_spec(draft, adapter, module, None)
        operands = (cores[0], first, second, cores[1], third, fourth)
        return WholeTensor(spec, partial(_of_cores, spec.shape), operands)
    for left, right in ((first, second), (third, fourth)):
        if len(left.spec.shape) != 2 or left.spec.shape[1:] != right.spec.shape[:1]:
            raise PlanError(f"{adapter.label}: '{module}': {left.spec} and {right.spec} do not fit")
    count = first.spec.shape[0] * prod(second.spec.shape[1:])
    spec = _weight_spec(draft, adapter, module, count)
    products = (Product(spec.shape, first, second), Product(spec.shape, third, fourth))
    return Blockwise(spec, _multiplied, products, working=FLOAT64)


def _multiplied(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    return np.multiply(blocks[0], blocks[1], out=out)


def _of_cores(shape: tuple[int, ...], values: Sequence[Array]) -> Array:
    """Return LoHa's product where kernels are decomposed too (CP)."""
    core, outputs, inputs, other_core, other_outputs, other_inputs = values
    first = np.einsum("ijkl,jr,ip->prkl", core, inputs, outputs)
    second = np.einsum("ijkl,jr,ip->prkl", other_core, other_inputs, other_outputs)
    return _shaped(first * second, shape)


def _kronecker(draft: Draft, adapter: Adapter, module: str, parts: Parts) -> LazyTensor:
    """Return the Kronecker product of two matrices, each whole or of low rank (LoKr)."""
    first = ["lokr_w1"] if "lokr_w1" in parts else ["lokr_w1_a", "lokr_w1_b"]
    second = ["lokr_w2"] if "lokr_w2" in parts else ["lokr_w2_a", "lokr_w2_b"]
    second += ["lokr_t2"] if "lokr_t2" in parts else []
    operands = _need(adapter, module, parts, *first, *second)
    spec = _weight_spec(draft, adapter, module, None)
    kernel = partial(_kron, len(first), spec.shape)
    # The product, and the copy in the weight's shape.
    return WholeTensor(spec, kernel, tuple(operands), spare_bytes=2 * 8 * spec.count)


def _kron(count: int, shape: tuple[int, ...], values: Sequence[Array]) -> Array:
    left = values[0] if count == 1 else values[0] @ values[1]
    rest = values[count:]
    if len(rest) == 3:
        right = np.einsum("ijkl,ip,jr->prkl", rest[2], rest[0], rest[1])
    else:
        right = rest[0] if len(rest) == 1 else rest[0] @ rest[1]
    if right.ndim == 4:
        left = left[:, :, None, None]
    return _shaped(np.kron(left, right), shape)


def _shaped(values: Array, shape: tuple[int, ...]) -> Array:
    if values.size != prod(shape):
        raise PlanError(f"a change of {values.shape} does not fit a weight of {shape}")
    return values.reshape(shape)


# --- What multiplies ------------------------------------------------------------------------------


def with_magnitudes(
    adapter: Adapter, module: str, changed: LazyTensor, magnitude: LazyTensor, turned: bool
) -> LazyTensor:
    """Return a changed weight (float64) with each output's norm replaced by a magnitude (DoRA)."""
    shape = changed.spec.shape
    outputs = shape[-1] if turned else shape[0]
    if magnitude.spec.count != outputs or DTYPES[magnitude.spec.dtype].kind != "float":
        raise PlanError(
            f"{adapter.label}: '{module}': magnitudes are {magnitude.spec} for {outputs} outputs"
        )
    flat = Rearranged(changed, (1, 0), (shape[1], shape[0])) if turned else changed
    run = flat.spec.count // outputs if outputs else 1
    kernel = partial(_renormed, magnitude.spec.dtype, run)
    made = Recoded(flat.spec, kernel, (flat, magnitude), run, run, FLOAT64)
    return Rearranged(made, (1, 0), shape) if turned else made


def _renormed(dtype: str, run: int, block: Array, companions: Sequence[Array], first: int) -> Array:
    rows = block.reshape(-1, run)
    wanted = _as_float64(companions[0].reshape(-1)[first : first + len(rows)], dtype)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    renormed: Array = rows * (wanted / norms)[:, None]
    return renormed


def multiplied(
    draft: Draft, adapter: Adapter, module: str, factors: LazyTensor
) -> dict[str, LazyTensor]:
    """Return the tensors of a module that IA3 multiplies: by outputs, or inputs of a feedforward.

    They are float64.
    """
    name = f"{module}.weight"
    spec = _weight_spec(draft, adapter, module, None)
    listed = adapter.config.get("feedforward_modules") or []
    is_feedforward = (
        matches(adapter.label, "feedforward_modules", listed, module)
        if isinstance(listed, str)
        else any(module == word or module.endswith(f".{word}") for word in listed)
    )
    is_by_columns = is_feedforward is not bool(adapter.config.get("fan_in_fan_out"))
    size = spec.shape[1] if is_by_columns and len(spec.shape) > 1 else spec.shape[0]
    if factors.spec.count != size or len(spec.shape) < 2:
        raise PlanError(f"{adapter.label}: '{name}' is {spec}, and its factors {factors.spec}")
    inner = prod(spec.shape[2:])
    run = spec.shape[1] * inner if is_by_columns else spec.count // size
    kernel = partial(_scaled, factors.spec.dtype, is_by_columns, inner, run)
    made = {name: _recoded(spec, kernel, draft[name], factors, run)}
    bias = f"{module}.bias"
    if not is_feedforward and bias in draft.tensors:
        own = TensorSpec("F64", draft.spec(bias).shape)
        kernel = partial(_scaled, factors.spec.dtype, False, 1, 1)
        made[bias] = _recoded(own, kernel, draft[bias], factors, 1)
    return made


def _recoded(
    spec: TensorSpec, kernel: partial[Array], tensor: LazyTensor, factors: LazyTensor, run: int
) -> LazyTensor:
    return Recoded(spec, kernel, (tensor, factors), run, run, FLOAT64)


def _scaled(
    dtype: str,
    is_by_columns: bool,
    inner: int,
    run: int,
    block: Array,
    companions: Sequence[Array],
    first: int,
) -> Array:
    factors = _as_float64(companions[0].reshape(-1), dtype)
    rows = block.reshape(-1, run)
    own = np.repeat(factors, inner) if is_by_columns else factors[first : first + len(rows), None]
    scaled: Array = rows * own
    return scaled


def _as_float64(stored: Array, dtype: str) -> Array:
    return upcast(stored, dtype, np.empty(stored.shape, np.float64))


def with_rows(adapter: Adapter, module: str, weight: LazyTensor, rows: LazyTensor) -> LazyTensor:
    """Return an embedding with the rows that were trained in the place of its own."""
    indices = adapter.config.get("trainable_token_indices") or adapter.config.get("token_indices")
    if isinstance(indices, dict):
        indices = next(
            (found for word, found in indices.items()
             if module == word or module.endswith(f".{word}")), None,
        )  # fmt: skip
    size = weight.spec.shape[0]
    if (
        not isinstance(indices, list)
        or len(set(map(str, indices))) != len(indices)
        or not all(type(index) is int and 0 <= index < size for index in indices)
        or rows.spec.shape != (len(indices), *weight.spec.shape[1:])
        or DTYPES[rows.spec.dtype].kind != "float"
    ):
        raise PlanError(
            f"{adapter.label}: '{module}': rows {rows.spec} and indices {indices!r:.60} do not fit "
            f"{weight.spec}"
        )
    parts: list[LazyTensor] = []
    done = 0
    for place, index in sorted(enumerate(indices), key=lambda pair: pair[1]):
        if index > done:
            parts.append(Selected(weight, 0, ((done, index),)))
        parts.append(Selected(rows, 0, ((place, place + 1),)))
        done = index + 1
    if done < size:
        parts.append(Selected(weight, 0, ((done, size),)))
    return Joined(tuple(parts), 0) if len(parts) > 1 else parts[0]
