"""Low frequencies of one model, high ones of another."""

from collections.abc import Sequence
from math import prod
from typing import Annotated

import numpy as np

from surgeon.merges.shared import Arithmetic, TensorContext, Varying, WholeArithmetic, merge
from surgeon.merges.shared.line import interpolation
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other"]},
    paper="after crossover of sd-mecha, with another filter, https://github.com/ljleb/sd-mecha",
    models=1,
)
def crossover(
    *,
    at: TensorContext,
    t: Annotated[
        float, Varying(0, 1), "the share of frequencies, the highest, that are the other model's"
    ] = 0.5,
    width: Annotated[
        float, Varying(0), "how gradual the change is, as a share of all frequencies"
    ] = 0.0,
) -> Arithmetic | WholeArithmetic:
    """Take low frequencies from the base model, and high ones from another.

    b + F⁻¹(m · F(x - b)), F the discrete Fourier transform over all dimensions. A frequency k has
    the radius √(mean of (2 |k_d| / n_d)²) over the dimensions; u is the share of frequencies of a
    larger radius, counting half of those of the same one, and m = 1 where u < t, else 0; with
    `width` w, m = min(max((t (1 + w) - u) / w, 0), 1), which for a large w is an interpolation.
    Numbers by themselves are interpolated, b + t (x - b). Computed in float64, as a whole.
    """
    if prod(at.shape) < 2:
        return Arithmetic(interpolation(t))
    axes = tuple(range(len(at.shape)))

    def combine(values: Sequence[Array]) -> Array:
        base, other = values
        spectrum = np.fft.rfftn(base - other, axes=axes)
        spectrum *= _filter(at.shape, t, width)
        return np.asarray(base - np.fft.irfftn(spectrum, s=at.shape, axes=axes))

    # The spectrum and its copies; radii of all frequencies, sorted, and what is made of them.
    return WholeArithmetic(combine, spare_bytes=12 * 8 * prod(at.shape))


def _filter(shape: tuple[int, ...], t: float, width: float) -> Array:
    """Return the other model's share of each frequency, as `rfftn` lays them out."""
    squares = np.zeros((1,) * len(shape))
    for dim, size in enumerate(shape):
        counts = np.minimum(np.arange(size), size - np.arange(size))
        along = [1] * len(shape)
        along[dim] = size
        squares = squares + ((2 * counts / size) ** 2).reshape(along)
    # Sums of the same numbers in another order differ in their last bits.
    radii = np.round(squares, 12)
    ordered = np.sort(radii, axis=None)
    half = radii[..., : shape[-1] // 2 + 1]
    above = ordered.size - np.searchsorted(ordered, half, side="right")
    beside = np.searchsorted(ordered, half, side="right") - np.searchsorted(ordered, half)
    larger = (above + beside / 2) / ordered.size
    if width == 0:
        return np.asarray(larger < t, np.float64)
    return np.asarray(np.clip((t * (1 + width) - larger) / width, 0.0, 1.0))
