"""Merged changes kept where several models need them."""

from typing import Annotated, Any, Literal

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.lazy import Blocks, StoredBlocks
from surgeon.merges.shared import Arithmetic, TensorContext, Varying, merge
from surgeon.merges.shared.election import divisor_table, election, undefined
from surgeon.merges.shared.pruning import largest
from surgeon.merges.shared.task_vectors import Weights, changes_of, weighted_changes
from surgeon.numeric import compiled
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other"], "at_least": 1},
    paper="Wang et al. 2024, Localizing task information, https://arxiv.org/abs/2405.07813",
)
def consensus(
    *,
    at: TensorContext,
    weights: Weights,
    mix: Annotated[
        Literal["task_arithmetic", "ties"], "how task vectors are merged"
    ] = "task_arithmetic",
    density: Annotated[
        list[float],
        Varying(above=0, maximum=1, per="model", default=1),
        "the fraction of each task vector, its largest magnitudes, that is merged; default 1",
    ],
    at_least: Annotated[int, "how many models must need an element", {"minimum": 1}] = 2,
    lambda_: Annotated[
        list[float],
        Varying(minimum=0, per="model", default=1),
        "how much of the other models' change a model's own must exceed to be needed; default 1",
    ],
    scale: Annotated[float, Varying(), "what the merged task vector is multiplied by"] = 1.0,
) -> Arithmetic:
    """Merge task vectors, keep what at least so many models need.

    With the base model b and dᵢ = xᵢ - b: m = Σ wᵢ sᵢ, or what `ties` makes of them, where sᵢ
    are the `density` largest magnitudes of dᵢ; model i needs an element where |dᵢ| > λᵢ |m - dᵢ|
    (its TALL mask); b + scale · m where at least `at_least` models do, b elsewhere. The paper finds
    λᵢ, from 0.2 to 0.6, and the scale by validation, and takes two models for enough.
    """
    if at_least > len(weights):
        raise PlanError(f"'at_least' is {at_least} of {len(weights)} model(s)")
    pruning = largest(at, density=density)
    elect = election(at, weights, normalize=True) if mix == "ties" else _add

    def combine(blocks: Blocks, statistics: Any, out: Array) -> Array:
        elect(weighted_changes(blocks, pruning, weights, statistics), out)
        votes = np.zeros(len(out), np.uint16)
        spare = np.empty_like(out)
        for block, limit in zip(blocks[1:], lambda_, strict=True):
            change = np.subtract(block, blocks[0])
            np.subtract(out, change, out=spare)
            np.abs(spare, out=spare)
            if limit != 1:
                spare *= limit
            votes += np.abs(change, out=change) > spare
        if scale != 1:
            out *= scale
        # NaN and Inf stay, to be seen.
        np.copyto(out, 0.0, where=(votes < at_least) & np.isfinite(out))
        return np.add(blocks[0], out, out=out)

    divisors = divisor_table(weights, normalize=True) if mix == "ties" else None

    def compiled_form(blocks: StoredBlocks, statistics: Any, dtype: str, out: Array) -> bool:
        changes = changes_of(blocks, pruning, weights, statistics)
        fits, defined = compiled.agreed(
            blocks, changes, divisors, lambda_, at_least, scale, dtype, out
        )
        if not defined:
            raise undefined(at, weights)
        return fits

    few = mix != "ties" or divisors is not None
    return Arithmetic(
        combine, pruning.statistics, held_bytes=pruning.held_bytes,
        compiled=compiled_form if few else None,
    )  # fmt: skip


def _add(contributions: list[Array], out: Array) -> Array:
    np.copyto(out, contributions[0])
    for contribution in contributions[1:]:
        out += contribution
    return out
