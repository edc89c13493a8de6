"""dequantize: quantised weights as the numbers that they stand for."""

from __future__ import annotations

from typing import Annotated

from surgeon.base import patterns
from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.quantised import by_name, groups
from surgeon.draft.registry import op
from surgeon.numeric.dtypes import DTYPES, require_dtype
from surgeon.ops.shared.codes import dequantised, usual_dtype


@op(
    group="values",
    example={"target": "packed", "dtype": "bfloat16"},
    paper="Open Compute Project 2023, Microscaling Formats (MX) specification; Frantar et al. "
    "2022, GPTQ, https://arxiv.org/abs/2210.17323; Lin et al. 2023, AWQ, "
    "https://arxiv.org/abs/2306.00978; Dettmers et al. 2023, QLoRA (NF4), "
    "https://arxiv.org/abs/2305.14314",
)
def dequantize(
    draft: Draft,
    *,
    target: Target = "**",
    dtype: Annotated[
        str | None, "BF16, F16, F32 or F64; default the config's, else BF16", {"format": "dtype"}
    ] = None,
    model: Annotated[str | None, "the model whose weights are meant; default the state"] = None,
) -> None:
    """Turn quantised weights into the numbers that they stand for.

    Reads FP8 and int8 with a scale per tensor, row or block, MXFP4, GPTQ (2, 3, 4 and 8 bits), AWQ
    (the gemm layout), bitsandbytes (NF4, FP4, int8), compressed-tensors' packed integers, and
    GGUF's Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K. Computed in float32, as the formats' own
    libraries do, and rounded once. A weight takes the place of its codes, scales and other
    companions go, and a folder's `quantization_config` follows. Experts in MXFP4 become (experts,
    inputs, outputs), as GPT-OSS keeps them. What is not quantised stays as it is.
    """
    tensors = draft.tensors if model is None else draft.model(model)
    config = draft.outside.read_config(model)
    settings = config.get("quantization_config")
    settings = settings if isinstance(settings, dict) else {}
    wanted = require_dtype(dtype) if dtype else usual_dtype(config)
    if DTYPES[wanted].kind != "float" or DTYPES[wanted].bits < 16:
        raise PlanError(f"'dtype' is {wanted}, expected a floating-point dtype of 16 bits or more")
    if model is None:
        selected = draft.select(target)
    else:
        selected = patterns.select(target, tensors, special={}, optional=draft.optional)
    found = by_name(groups(tensors, settings))
    chosen = {found[name].codes: found[name] for name in selected if name in found}
    if not chosen and not draft.optional:
        raise PlanError(f"{target!r} selects no quantised weight")
    made = dequantised(tensors, chosen.values(), wanted, settings)
    if model is None:
        draft.tensors = made
    else:
        draft.models[model] = made
