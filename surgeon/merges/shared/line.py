"""The straight line from one model to another: what merges fall back to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from surgeon.lazy import Kernel
from surgeon.numeric.dtypes import Array


def interpolation(t: float) -> Kernel:
    """Return the kernel of b + t (x - b)."""

    def combine(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
        # Subtracted, not added: -0 less what is nothing stays -0.
        np.subtract(blocks[0], blocks[1], out=out)
        out *= t
        return np.subtract(blocks[0], out, out=out)

    return combine
