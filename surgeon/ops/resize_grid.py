"""resize_grid: position embeddings and relative-position tables for another grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Annotated, Literal

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import Joined, LazyTensor, Selected, TensorSpec, WholeTensor
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.numeric.interpolation import SMOOTH, Mode, Taps, resampled, taps

_SIZES = {
    "minimum": 1,
    "maximum": 100_000,
    "items": {"type": "integer", "minimum": 1, "maximum": 100_000},
    "minItems": 2,
    "maxItems": 2,
}
Grid = int | list[int]
_FEWEST_OFFSETS = 3


@op(
    group="size",
    example={
        "target": "embed.weight", "from": [2, 2], "to": [3, 3], "mode": "bicubic", "extra": 1,
    },
)  # fmt: skip
def resize_grid(
    draft: Draft,
    *,
    target: Target,
    from_: Annotated[Grid, "positions now: n, or [height, width]", _SIZES],
    to: Annotated[Grid, "positions then: n, or [height, width]", _SIZES],
    mode: Annotated[
        Mode,
        "linear for n positions, bilinear for [height, width], geometric for `relative`, others "
        "for both",
    ],
    align_corners: Annotated[bool, "the outermost positions stay where they are"] = False,
    antialias: Annotated[bool, "smooth before sampling fewer positions, as PIL does"] = False,
    extra: Annotated[
        int, "entries that are no positions and stay, such as a class token's", {"minimum": 0}
    ] = 0,
    extra_at: Annotated[Literal["first", "last"], "where those are"] = "first",
    relative: Annotated[
        bool, "the entries are offsets within a window: 2n - 1, or (2h - 1) (2w - 1) of them"
    ] = False,
) -> None:
    """Resize position embeddings to another grid by interpolation.

    Of a tensor (..., positions, features), such as (1, 197, 768) with `extra` 1, (77, 512), or with
    `relative` a Swin table (169, heads), the positions are read as a grid in row-major order.
    Values are those of torch.nn.functional.interpolate with `size`, computed in float64 and rounded
    once; n positions are one row of an image. With `geometric`, old offsets lie farther apart the
    farther out they are, by a factor up to 1.5 for which the outermost meet, and values are linear
    between them, as in timm's resize_rel_pos_bias_table, but for sides of a size that stays, which
    timm resamples. Entries that are no positions keep their bits. Buffers that follow from the
    grid, such as position_ids or relative_position_index, are the new model's own: delete or leave
    them. Raises where the sizes do not fit, and while writing for NaN, Inf or results beyond the
    dtype's range.
    """
    before, after = _sides(from_, relative), _sides(to, relative)
    _check_words(before, after, mode, align_corners, antialias)
    if mode == "geometric" and (not relative or min(before) < _FEWEST_OFFSETS):
        raise PlanError("'geometric' is for offsets within a window of 2 or more; say \"relative\"")
    along = [
        taps(mode, old, new, align_corners=align_corners, antialias=antialias)
        for old, new in zip(before, after, strict=True)
    ]
    names = draft.select(target)
    problems = [line for name in names for line in _misfits(name, draft.spec(name), before, extra)]
    if problems:
        raise PlanError(*problems)
    if before == after:
        return
    changes: dict[str, LazyTensor] = {}
    for name in names:
        tensor = draft[name]
        dim, count = len(tensor.spec.shape) - 2, prod(before)
        start = extra if extra_at == "first" else 0
        positions = Selected(tensor, dim, ((start, start + count),)) if extra else tensor
        resized = _resize(name, positions, dim, before, after, along)
        if extra:
            kept = (0, extra) if extra_at == "first" else (count, count + extra)
            parts = [Selected(tensor, dim, (kept,)), resized]
            resized = Joined(tuple(parts if extra_at == "first" else reversed(parts)), dim)
        changes[name] = resized
    draft.replace(changes)


def _sides(grid: Grid, relative: bool) -> list[int]:
    sides = [grid] if isinstance(grid, int) else list(grid)
    return [2 * side - 1 for side in sides] if relative else sides


def _check_words(
    before: Sequence[int], after: Sequence[int], mode: Mode, align_corners: bool, antialias: bool
) -> None:
    """Raise PlanError for parameters that do not go together."""
    problems = []
    if len(before) != len(after):
        problems.append("'from' and 'to' are both a number, or both [height, width]")
    wrong = {"linear": 2, "bilinear": 1}.get(mode)
    if len(before) == wrong:
        other = "bilinear" if mode == "linear" else "linear"
        problems.append(f"'{mode}' is for grids of {3 - wrong} dimension(s); say '{other}'")
    if mode not in SMOOTH:
        words = {"align_corners": align_corners, "antialias": antialias}
        problems += [f"'{word}' has no meaning for '{mode}'" for word, on in words.items() if on]
    if problems:
        raise PlanError(*problems)


def _misfits(name: str, spec: TensorSpec, before: Sequence[int], extra: int) -> list[str]:
    """Return the line that says why a tensor does not hold this grid, if it does not."""
    if DTYPES[spec.dtype].kind != "float" or len(spec.shape) < 2:
        return [f"'{name}' is {spec}, which are no embeddings (..., positions, features)"]
    found, wanted = spec.shape[-2], prod(before)
    if found == wanted + extra:
        return []
    grid = " x ".join(map(str, before)) + (f" = {wanted}" if len(before) > 1 else "")
    line = f"'{name}' is {spec}: {found} entries, but the grid has {grid}"
    line += f" and there are {extra} extra" if extra else ""
    if found > wanted and not extra:
        line += f'; say "extra": {found - wanted} if the rest are no positions'
    return [line]


def _resize(
    name: str,
    positions: LazyTensor,
    dim: int,
    before: Sequence[int],
    after: Sequence[int],
    along: Sequence[Taps],
) -> LazyTensor:
    spec = positions.spec.resized(dim, prod(after))
    # Beside operand and result there are at most the grid between two dimensions, a sum and a term.
    largest = prod(map(max, before, after)) * spec.count // prod(after)
    return WholeTensor(
        spec,
        partial(_interpolate, before, along),
        (positions,),
        spare_bytes=4 * 8 * largest,
        explain=partial(_explain, name, spec.dtype),
    )


def _interpolate(before: Sequence[int], along: Sequence[Taps], values: Sequence[Array]) -> Array:
    (array,) = values
    grid = array.reshape(-1, *before, array.shape[-1])
    for axis, each in enumerate(along, start=1):
        grid = resampled(grid, axis, each)
    return grid


def _explain(name: str, dtype: str, values: Sequence[Array]) -> None:
    if not np.isfinite(values[0]).all():
        raise PlanError(f"'{name}' holds NaN or Inf, which cannot be interpolated")
    raise PlanError(f"'{name}' cannot be interpolated: {dtype} cannot hold the result")
