"""From a quantised weight's codes and companions to the weight as numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from math import ceil, prod
from typing import Any

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.draft import Tensors
from surgeon.draft.quantised import QuantisedGroup
from surgeon.lazy import LazyTensor, Rearranged, Recoded, Scratch, TensorSpec
from surgeon.lazy.values import beyond
from surgeon.numeric.dtypes import DTYPES, LARGEST, Array, dtype_named
from surgeon.numeric.ggml import BLOCK_TYPES
from surgeon.numeric.quantised import (
    AWQ,
    GPTQ,
    Bitsandbytes4,
    PackedIntegers,
    ScaledCodes,
    mxfp4,
)

# What most formats with blocks take where nothing says otherwise.
_USUAL_BLOCK = 128
_MOST_STATE_BYTES = 100_000


def dequantised(
    tensors: Tensors, groups: Iterable[QuantisedGroup], dtype: str, config: Mapping[str, Any]
) -> Tensors:
    """Return tensors in which these quantised weights are numbers; tied ones stay tied.

    `config` is the folder's quantization_config. Raises PlanError, a line for each weight whose
    values its tensors and the config do not settle.
    """
    of_codes = {group.codes: group for group in groups}
    gone = {name for group in of_codes.values() for name in group.companions}
    made: dict[tuple[int, ...], LazyTensor] = {}
    result: Tensors = {}
    problems: list[str] = []
    for name, tensor in tensors.items():
        if group := of_codes.get(name):
            if group.weight != name and group.weight in tensors:
                problems.append(f"{group}: there is a '{group.weight}' already")
                continue
            parts = {role: tensors[part] for role, part in group.parts.items()}
            key = tuple(map(id, parts.values()))
            try:
                made[key] = made.get(key) or _numbers(group, parts, dtype, config)
                result[group.weight] = made[key]
            except PlanError as error:
                problems += [f"{group}: {problem}" for problem in error.problems]
        elif name not in gone:
            result[name] = tensor
    if problems:
        raise PlanError(*problems)
    return result


def usual_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype that a folder's model computes in, by its config; else BF16."""
    named = dtype_named(str(config.get("dtype", config.get("torch_dtype"))))
    is_wide = named is not None and DTYPES[named].kind == "float" and DTYPES[named].bits >= 16
    return named if named is not None and is_wide else "BF16"


def _numbers(
    group: QuantisedGroup, parts: Mapping[str, LazyTensor], dtype: str, config: Mapping[str, Any]
) -> LazyTensor:
    """Return one weight; raises PlanError with what is not known of it."""
    explain = partial(_explain, group.weight, dtype)
    match group.format:
        case "scaled" | "bitsandbytes-8":
            return _scaled(group, parts, dtype, config, explain)
        case "mxfp4":
            return _microscaled(parts, dtype, explain)
        case "ggml":
            return _of_blocks(parts, group.method, dtype, explain)
        case "gptq":
            return _gptq(parts, dtype, config, explain)
        case "awq":
            return _awq(parts, dtype, config, explain)
        case "bitsandbytes-4":
            return _four_bits(parts, dtype, explain)
        case "packed":
            return _packed(parts, dtype, explain)
    raise PlanError(f"how {group.title} codes are read is not known here")


def _explain(name: str, dtype: str, values: Array) -> None:
    """Raise PlanError for values that a dtype has no room for; NaN codes stay NaN."""
    if np.any(np.abs(values) > LARGEST[dtype]):
        raise beyond(name, dtype)


def _spec(parts: Mapping[str, LazyTensor], role: str) -> TensorSpec:
    if role not in parts:
        raise PlanError(f"has no {role}")
    return parts[role].spec


def _of_blocks(parts: Mapping[str, LazyTensor], kind: str, dtype: str, explain: Any) -> LazyTensor:
    codes, blocks = _spec(parts, "codes"), BLOCK_TYPES[kind]
    if not codes.shape or codes.shape[-1] % blocks.bytes:
        raise PlanError(f"the codes are {codes}, expected rows of blocks of {blocks.bytes} bytes")
    columns = codes.shape[-1] // blocks.bytes * blocks.elements
    spec = TensorSpec(dtype, (*codes.shape[:-1], columns))
    operands = (parts["codes"],)
    return Recoded(spec, blocks, operands, blocks.elements, blocks.bytes, explain=explain)


# --- A scale for a tensor, a row or a block -------------------------------------------------------


def _scaled(
    group: QuantisedGroup,
    parts: Mapping[str, LazyTensor],
    dtype: str,
    config: Mapping[str, Any],
    explain: Any,
) -> LazyTensor:
    codes, scale = _spec(parts, "codes"), _spec(parts, "scale")
    is_inverse = group.parts["scale"].endswith("_scale_inv")
    if "scale_2" in parts or codes.dtype not in ("F8_E4M3", "F8_E5M2", "I8"):
        raise PlanError(f"codes of {codes.dtype} in this layout are not read here")
    if codes.dtype == "I8" and is_inverse:
        raise PlanError("I8 codes with an inverse scale may be pairs of FP4 values; not read here")
    if len(codes.shape) not in (2, 3):
        raise PlanError(f"the codes are {codes}, expected a matrix or a stack of them")
    if "g_idx" in parts:
        raise PlanError("columns in groups of their own order (g_idx) are not read here")
    stated = config.get("weight_block_size")
    scales, block = _layout(codes.shape, scale, stated if isinstance(stated, list) else None)
    zeros = parts.get("zero_point") if codes.dtype == "I8" else None
    if zeros is not None and zeros.spec.shape != scale.shape:
        raise PlanError(f"zero points are {zeros.spec}, expected the scales' shape {scale.shape}")
    kernel = ScaledCodes(
        codes.dtype, codes.shape, block, scales, scale.dtype,
        zeros.spec.dtype if zeros is not None else None, group.format == "bitsandbytes-8",
    )  # fmt: skip
    operands = (parts["codes"], parts["scale"], *((zeros,) if zeros is not None else ()))
    columns = codes.shape[-1]
    spec = TensorSpec(dtype, codes.shape)
    return Recoded(spec, kernel, operands, columns, columns, explain=explain)


def _layout(
    codes: tuple[int, ...], scale: TensorSpec, stated: list[Any] | None
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Return the scales' shape as (experts, rows, columns), and how many share one."""
    if DTYPES[scale.dtype].kind != "float" and scale.dtype not in ("F8_E8M0", "U8"):
        raise PlanError(f"its scale is {scale}, expected floating-point values")
    stack, (rows, columns) = (1, *codes)[-3], codes[-2:]
    shape = scale.shape
    scales: tuple[int, int, int]
    if scale.count == 1:
        scales = (1, 1, 1)
    elif len(shape) == 1 and shape[0] == (rows if len(codes) == 2 else stack):
        scales = (1, rows, 1) if len(codes) == 2 else (stack, 1, 1)
    elif len(shape) == len(codes) and (1, *shape)[-3] in (1, stack):
        scales = ((1, *shape)[-3], shape[-2], shape[-1])
    else:
        raise PlanError(f"its scale is {scale}, which is none per tensor, row or block of {codes}")
    wanted = stated if stated and len(stated) == 2 else (None, None)
    high = _shared_by(rows, scales[1], wanted[0])
    wide = _shared_by(columns, scales[2], wanted[1])
    return scales, (high, wide)


def _shared_by(size: int, count: int, stated: Any) -> int:
    """Return how many of `size` entries share one of `count` scales."""
    if count in (1, size):
        return size // count if size else 1
    for block in (stated, _USUAL_BLOCK):
        if type(block) is int and block > 0 and ceil(size / block) == count:
            return block
    if count and size % count == 0:
        return size // count
    raise PlanError(f"{count} scales for {size} entries: how many share one is not known")


# --- Packed numbers -------------------------------------------------------------------------------


def _microscaled(parts: Mapping[str, LazyTensor], dtype: str, explain: Any) -> LazyTensor:
    codes, scale = _spec(parts, "codes"), _spec(parts, "scale")
    if codes.shape[:-1] != scale.shape or codes.shape[-1:] != (16,) or scale.dtype != "U8":
        raise PlanError(f"the blocks are {codes} and the scales {scale}, expected 16 bytes each")
    shape = (*codes.shape[:-2], codes.shape[-2] * 32)
    operands = (parts["codes"], parts["scale"])
    made = Recoded(TensorSpec(dtype, shape), mxfp4, operands, 32, 16, explain=explain)
    if len(shape) != 3:
        return made
    # Experts are kept as (experts, inputs, outputs) by the models that have them in this format.
    return Rearranged(made, (0, 2, 1), (shape[0], shape[2], shape[1]))


def _gptq(
    parts: Mapping[str, LazyTensor], dtype: str, config: Mapping[str, Any], explain: Any
) -> LazyTensor:
    codes, scale, zeros = (_spec(parts, role) for role in ("codes", "scale", "zeros"))
    (groups, outputs), words = scale.shape, codes.shape[0]
    index = parts.get("groups")
    stated = config.get("bits")
    if index is not None:
        inputs = index.spec.count
    elif type(stated) is int and stated in (2, 3, 4, 8):
        inputs = words * 32 // stated
    else:
        raise PlanError("has no g_idx, and the config no 'bits', to say how many numbers it holds")
    bits = words * 32 // inputs if inputs and words * 32 % inputs == 0 else 0
    if bits not in (2, 3, 4, 8):
        raise PlanError(f"the codes are {codes} for {inputs} inputs, not 2, 3, 4 or 8 bits each")
    if codes.shape[1] != outputs or zeros.shape != (groups, outputs * bits // 32):
        raise PlanError(f"codes {codes}, scales {scale} and zeros {zeros} do not fit together")
    form = config.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise PlanError(f"the config's checkpoint_format is {form!r}, expected gptq or gptq_v2")
    size = config.get("group_size")
    size = size if type(size) is int and size > 0 else -(-inputs // groups)
    kernel = GPTQ(outputs, bits, scale.dtype, size, offset=1 if form == "gptq" else 0)
    operands = (parts["codes"], parts["scale"], parts["zeros"], *((index,) if index else ()))
    each = kernel.rows * outputs
    made = Recoded(
        TensorSpec(dtype, (inputs, outputs)), kernel, operands, each, each * bits // 32,
        explain=explain,
    )  # fmt: skip
    return Rearranged(made, (1, 0), (outputs, inputs))


def _awq(
    parts: Mapping[str, LazyTensor], dtype: str, config: Mapping[str, Any], explain: Any
) -> LazyTensor:
    codes, scale, zeros = (_spec(parts, role) for role in ("codes", "scale", "zeros"))
    (inputs, words), (groups, outputs) = codes.shape, scale.shape
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm" or words * 8 != outputs or zeros.shape != (groups, words):
        raise PlanError(
            f"codes {codes}, scales {scale} and zeros {zeros} are not AWQ's 'gemm' layout of 4 bits"
        )
    kernel = AWQ(outputs, scale.dtype, -(-inputs // groups))
    operands = (parts["codes"], parts["scale"], parts["zeros"])
    spec = TensorSpec(dtype, (inputs, outputs))
    made = Recoded(spec, kernel, operands, outputs, words, explain=explain)
    return Rearranged(made, (1, 0), (outputs, inputs))


def _packed(parts: Mapping[str, LazyTensor], dtype: str, explain: Any) -> LazyTensor:
    codes, scale = _spec(parts, "codes"), _spec(parts, "scale")
    if codes.dtype != "I32" or len(codes.shape) != 2 or "global_scale" in parts:
        raise PlanError(f"the codes are {codes} in a layout that is not read here")
    rows, columns = codes.shape[0], codes.shape[1] * 8
    if "shape" in parts:
        found = parts["shape"].elements(0, parts["shape"].spec.count, Scratch()).tolist()
        if len(found) != 2 or found[0] != rows or not 0 < found[1] <= codes.shape[1] * 32:
            raise PlanError(f"its stated shape {found} does not go with codes {codes}")
        columns = found[1]
    bits = next((b for b in (4, 8) if -(-columns * b // 32) == codes.shape[1]), None)
    if bits is None or len(scale.shape) != 2 or scale.shape[0] != rows:
        raise PlanError(f"codes {codes} and scales {scale} are not 4 or 8 bits per number")
    beside = [parts[role] for role in ("zero_point", "g_idx") if role in parts]
    if "zero_point" in parts and parts["zero_point"].spec.dtype != "I32":
        raise PlanError("its zero points are not packed as its codes are; not read here")
    kernel = PackedIntegers(columns, bits, scale.dtype, "zero_point" in parts, "g_idx" in parts)
    operands = (parts["codes"], parts["scale"], *beside)
    spec = TensorSpec(dtype, (rows, columns))
    return Recoded(spec, kernel, operands, columns, codes.shape[1], explain=explain)


# --- bitsandbytes' 4 bits -------------------------------------------------------------------------


def _four_bits(parts: Mapping[str, LazyTensor], dtype: str, explain: Any) -> LazyTensor:
    if "state" not in parts:
        raise PlanError("has no quant_state that says its shape")
    state = _state(parts["state"])
    shape, block = state.get("shape"), state.get("blocksize")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise PlanError(f"its quant_state has shape {shape!r}, expected sizes")
    if type(block) is not int or block < 2 or block & (block - 1):
        raise PlanError(f"its quant_state has blocksize {block!r}, expected a power of two")
    count = prod(shape)
    roles = ["absmax", "quant_map"]
    nested_block: int = 1
    offset: Any = 0.0
    if "nested_absmax" in parts:
        roles += ["nested_absmax", "nested_quant_map"]
        nested, offset = state.get("nested_blocksize"), state.get("nested_offset")
        if type(nested) is not int or nested < 1 or not isinstance(offset, int | float):
            raise PlanError("its quant_state has no nested_blocksize and nested_offset")
        nested_block = nested
    codes = _spec(parts, "codes")
    blocks = -(-count // block)
    wanted = {"absmax": blocks, "quant_map": 16, "nested_absmax": -(-blocks // nested_block),
              "nested_quant_map": 256}  # fmt: skip
    for role in roles:
        if _spec(parts, role).count != wanted[role]:
            raise PlanError(f"{role} is {parts[role].spec}, expected {wanted[role]} entries")
    if codes.size_bytes != -(-count // 2):
        raise PlanError(f"the codes are {codes}, expected half a byte for each of {shape}")
    kernel = Bitsandbytes4(count, block, nested_block, float(offset))
    operands = (parts["codes"], *(parts[role] for role in roles))
    source_run = block // 2 // DTYPES[codes.dtype].storage.itemsize
    if not source_run:
        raise PlanError(f"the codes are {codes}, wider than a block of {block}")
    return Recoded(
        TensorSpec(dtype, tuple(shape)), kernel, operands, block, source_run, explain=explain
    )


def _state(tensor: LazyTensor) -> dict[str, Any]:
    """Return bitsandbytes' quant_state: JSON in a tensor of bytes, a header in all but its place.

    The weight's shape stands in it and nowhere else, so it is read when the recipe is planned.
    """
    if tensor.spec.dtype != "U8" or tensor.spec.count > _MOST_STATE_BYTES:
        raise PlanError(f"its quant_state is {tensor.spec}, expected a few bytes of JSON")
    try:
        state = json.loads(tensor.elements(0, tensor.spec.count, Scratch()).tobytes())
    except (ValueError, RecursionError):
        raise PlanError("its quant_state is not JSON") from None
    if not isinstance(state, dict):
        raise PlanError("its quant_state is no JSON object")
    return state
