"""quantize: weights as FP8 codes and scales."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import numpy as np

from surgeon.base.errors import PlanError, listed
from surgeon.base.patterns import Target
from surgeon.draft import Draft, Tensors
from surgeon.draft.quantised import by_name, groups
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Recoded, TensorSpec
from surgeon.lazy.values import require_finite
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.numeric.quantised import BlockScales

_BLOCK = 128
_FLOAT32 = np.dtype(np.float32)
# Neither transformers nor vLLM reads codes in these: embeddings, output heads, routers.
_KEPT = {"embed_tokens", "lm_head", "wte", "wpe", "shared", "word_embeddings", "embed_in",
         "embed_out", "embed_positions", "gate", "router", "score", "classifier"}  # fmt: skip


@op(
    group="values",
    example={"target": "encoder.0", "granularity": "row"},
    paper="Micikevicius et al. 2022, FP8 Formats for Deep Learning, "
    "https://arxiv.org/abs/2209.05433; DeepSeek-AI 2024, DeepSeek-V3 (blocks of 128 x 128), "
    "https://arxiv.org/abs/2412.19437",
)
def quantize(
    draft: Draft,
    *,
    target: Target,
    format: Annotated[Literal["fp8"], "E4M3 codes"] = "fp8",
    granularity: Annotated[
        Literal["block", "row"], "what shares a scale: 128 x 128 entries, or a row"
    ] = "block",
) -> None:
    """Turn the weights of linear layers into FP8 codes and scales.

    Of the target, matrices called `weight`; embeddings, output heads and routers stay as they are,
    since no loader reads codes there. A scale is its entries' largest magnitude / 448, in F32, and
    codes are rounded to nearest even. Blocks get `weight_scale_inv`, and the folder's config the
    entry that transformers and vLLM read as "fp8"; rows get `weight_scale` and an entry of
    "compressed-tensors". Activations are quantised while the model runs. Raises for a matrix that
    is not whole blocks, and for NaN and Inf.
    """
    already = by_name(groups(draft.tensors))
    kept: list[str] = []
    problems: list[str] = []
    result: dict[str, Tensors] = {}
    made: dict[int, tuple[LazyTensor, LazyTensor]] = {}
    scale_leaf = "weight_scale_inv" if granularity == "block" else "weight_scale"
    for name in draft.select(target):
        module, _, leaf = name.rpartition(".")
        spec = draft.spec(name)
        if name in already or leaf != "weight" or len(spec.shape) != 2:
            continue
        if DTYPES[spec.dtype].kind != "float" or DTYPES[spec.dtype].bits < 16:
            continue
        if module.rpartition(".")[2] in _KEPT:
            kept.append(name)
            continue
        scale_name = f"{module}.{scale_leaf}" if module else scale_leaf
        block = (_BLOCK, _BLOCK) if granularity == "block" else (1, spec.shape[1])
        if problem := _problem(draft, spec, block, scale_name):
            problems.append(f"'{name}' {problem}")
            continue
        tensor = draft[name]
        if id(tensor) not in made:
            made[id(tensor)] = _encoded(name, tensor, block)
        codes, scales = made[id(tensor)]
        result[name] = {name: codes, scale_name: scales}
    if problems:
        raise PlanError(*problems)
    if not result and not draft.optional:
        raise PlanError(f"{target!r} selects no matrix of a linear layer to quantise")
    if kept:
        draft.notes.append(f"{listed(kept)}: stay as they are, since no loader reads codes there")
    tensors: Tensors = {}
    for name, tensor in draft.tensors.items():
        tensors |= result.get(name, {name: tensor})
    draft.tensors = tensors


def _problem(draft: Draft, spec: TensorSpec, block: tuple[int, int], scale_name: str) -> str | None:
    """Say why a matrix cannot be quantised."""
    if not spec.count:
        return f"is {spec}, which has no entries"
    if spec.shape[0] % block[0] or spec.shape[1] % block[1]:
        return (
            f"is {spec}, not whole blocks of {block[0]} x {block[1]}; leave it out, or say "
            '"granularity": "row"'
        )
    if scale_name in draft.tensors:
        return f"would get '{scale_name}', which is there already"
    return None


def _encoded(
    name: str, tensor: LazyTensor, block: tuple[int, int]
) -> tuple[LazyTensor, LazyTensor]:
    """Return a matrix's codes and its scales."""
    (rows, columns), (high, wide) = tensor.spec.shape, block
    run = high * columns
    codes = Recoded(
        TensorSpec("F8_E4M3", (rows, columns)), BlockScales(columns, block, codes=True),
        (tensor,), run, run, _FLOAT32, partial(_explain, name),
    )  # fmt: skip
    scales = Recoded(
        TensorSpec("F32", (rows // high, columns // wide)), BlockScales(columns, block, False),
        (tensor,), columns // wide, run, _FLOAT32, partial(_explain, name),
    )  # fmt: skip
    return codes, scales


def _explain(name: str, values: Array) -> None:
    require_finite(values, f"'{name}'")
