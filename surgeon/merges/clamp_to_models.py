"""A model kept between others."""

from collections.abc import Sequence

import numpy as np

from surgeon.merges.shared import Arithmetic, merge
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other", "third"]},
    paper="clamp of sd-mecha with a stiffness of 0, https://github.com/ljleb/sd-mecha",
    models=(2, None),
)
def clamp_to_models() -> Arithmetic:
    """Keep the base model's values between those of other models.

    min(max(b, min xᵢ), max xᵢ), element by element: the base model where it lies between the
    least and the largest value that the others have there, else the nearer of the two. After
    merges that add changes up, such as task arithmetic, what went farther than any model goes back.
    """
    return Arithmetic(_between, hides_operands=True)


def _between(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    base, first, *others = blocks
    least, most = first.copy(), first.copy()
    for block in others:
        np.minimum(least, block, out=least)
        np.maximum(most, block, out=most)
    return np.clip(base, least, most, out=out)
