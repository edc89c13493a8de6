"""Take a model's values where they are near the base model's, and go some way towards the rest."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from surgeon.lazy import StoredBlocks
from surgeon.merges.shared import Arithmetic, Varying, merge
from surgeon.numeric import compiled
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other"], "t": 0.1},
    paper="Alchemonaut 2024, NearSwap, https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    models=1,
)
def nearswap(
    *, t: Annotated[float, Varying(0), "the most that a value changes by; 0 keeps the base model"]
) -> Arithmetic:
    """Move every value of the base model towards a model's, by no more than t.

    α = clamp(t / |b - x|, 0, 1), elementwise, and α x + (1-α) b: so x where |b - x| ≤ t, else b and
    t towards x. Where both are equal, that value.

    mergekit 0.1.5 takes |b - x| < 1e-6 for 1e-6, so that with t < 1e-6 nearer values swap in part.
    """

    def combine(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
        state, model = blocks
        np.subtract(model, state, out=out)
        near = np.abs(out) <= t
        np.copysign(t, out, out=out)
        out += state
        np.copyto(out, model, where=near)
        return out

    def compiled_form(blocks: StoredBlocks, statistics: None, dtype: str, out: Array) -> bool:
        return compiled.swapped(blocks, t, dtype, out)

    # What is infinitely far away would change the base model by t.
    return Arithmetic(combine, hides_operands=True, compiled=compiled_form)
