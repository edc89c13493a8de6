"""rearrange: dimensions taken apart, reordered and put together, in the words of einops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated

from surgeon.base.errors import PlanError, UsageError, listed
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Rearranged, TensorSpec
from surgeon.ops.shared.counts import Count, number
from surgeon.ops.shared.grouping import require_bytes

_TOKEN = re.compile(r"\s*(\.\.\.|[A-Za-z_]\w*|1(?!\w)|[()])")
_REST = "..."
# A dimension that is taken apart: its axes, the outermost first.
Side = list[list[str]]


@op(
    group="structure",
    example={
        "target": "encoder.0",
        "pattern": "(head half two) ... -> (head two half) ...",
        "sizes": {"head": 2, "two": 2},
    },
)
def rearrange(
    draft: Draft,
    *,
    target: Target,
    pattern: Annotated[
        str,
        "the dimensions before and after '->': names, '1', '...' for all others, and in "
        "parentheses those that make one dimension",
        {"minLength": 1},
    ],
    sizes: Annotated[
        dict[str, Count] | None,
        "sizes of the names, all but one of each pair of parentheses",
        {"propertyNames": {"pattern": r"^[A-Za-z_]\w*$"}},
    ] = None,
) -> None:
    """Take dimensions apart, put them into another order and together again.

    As `einops.rearrange`: `(head half two) ... -> (head two half) ...` brings the rows of each
    head from pairs to halves, as rotary embeddings of another convention need. With `...` a
    weight and its bias are turned alike. A size is a number, or what the config beside the input
    says: `{"config": "num_attention_heads"}`. Raises where a tensor does not fit the pattern.
    """
    before, after = _sides(pattern)
    given = {name: number(draft, size, f"size '{name}'") for name, size in (sizes or {}).items()}
    if unknown := [name for name in given if name not in {n for dim in before for n in dim}]:
        raise PlanError(f"sizes has {listed(unknown)}, which '{pattern}' does not name")
    changes: dict[str, LazyTensor] = {}
    problems: list[str] = []
    for name in draft.select(target):
        try:
            changes[name] = _rearranged(name, draft[name], before, after, given)
        except PlanError as error:
            problems += [f"{problem} ('{pattern}')" for problem in error.problems]
    if problems:
        raise PlanError(*problems)
    draft.replace(changes)


def _sides(pattern: str) -> tuple[Side, Side]:
    """Return a pattern's two sides; raises PlanError for one that has no meaning."""
    sides = pattern.split("->")
    if len(sides) != 2:
        raise PlanError(f"'{pattern}' must have one '->', with the dimensions on both sides")
    try:
        before, after = _side(sides[0]), _side(sides[1])
    except UsageError as error:
        raise PlanError(*(f"'{pattern}': {problem}" for problem in error.problems)) from None
    ours, theirs = (Counter(n for dim in side for n in dim if n != "1") for side in (before, after))
    if twice := [name for name, times in (ours | theirs).items() if times > 1]:
        raise PlanError(f"'{pattern}' has {listed(twice)} twice on one side")
    if missing := sorted((ours - theirs) + (theirs - ours)):
        raise PlanError(f"'{pattern}' has {listed(missing)} on one side alone")
    return before, after


def _side(text: str) -> Side:
    dims: Side = []
    inside: list[str] | None = None
    place, text = 0, text.rstrip()
    while place < len(text):
        if not (found := _TOKEN.match(text, place)):
            raise UsageError(f"'{text[place:].strip()}' is no name, '1', '...' or parenthesis")
        place, token = found.end(), found[1]
        if token == "(" and inside is None:
            inside = []
        elif token == ")" and inside is not None:
            dims.append(inside)
            inside = None
        elif token in "()":
            raise UsageError("parentheses must be in pairs, and not in one another")
        elif token == _REST and inside is not None:
            raise UsageError("'...' stands for whole dimensions, and not in parentheses")
        elif inside is None:
            dims.append([token])
        else:
            inside.append(token)
    if inside is not None:
        raise UsageError("parentheses must be in pairs, and not in one another")
    return dims


def _rearranged(
    name: str, tensor: LazyTensor, before: Side, after: Side, given: Mapping[str, int]
) -> LazyTensor:
    spec = tensor.spec
    require_bytes(name, spec)
    has_rest = [_REST] in before
    rest = len(spec.shape) - len(before) + 1 if has_rest else 0
    if rest < 0 or (not has_rest and len(before) != len(spec.shape)):
        raise PlanError(f"'{name}' is {spec}, and has other dimensions than the pattern")
    # What '...' stands for gets names that nobody can write.
    others = [[f"...{index}"] for index in range(rest)]
    before, after = _spread(before, others), _spread(after, others)
    sizes: dict[str, int] = {}
    for size, axes in zip(spec.shape, before, strict=True):
        sizes |= _sizes(name, spec, size, axes, given)
    axes = [axis for dim in before for axis in dim if axis != "1"]
    final = [axis for dim in after for axis in dim if axis != "1"]
    apart = tuple(sizes[axis] for axis in axes)
    shape = tuple(prod(sizes[axis] for axis in dim if axis != "1") for dim in after)
    try:
        taken = Rearranged(tensor, tuple(range(len(spec.shape))), apart)
        return Rearranged(taken, tuple(axes.index(axis) for axis in final), shape)
    except PlanError as error:  # too many pieces of it are new
        raise error.at(f"'{name}'") from None


def _spread(side: Side, others: Sequence[list[str]]) -> Side:
    return [part for dim in side for part in (others if dim == [_REST] else [dim])]


def _sizes(
    name: str, spec: TensorSpec, size: int, axes: Sequence[str], given: Mapping[str, int]
) -> dict[str, int]:
    """Return the sizes of a dimension's axes, one of which may follow from the rest."""
    known = {axis: given[axis] for axis in axes if axis in given}
    open_ = [axis for axis in axes if axis not in given and axis != "1"]
    product = prod(known.values())
    spelled = axes[0] if len(axes) == 1 else f"({' '.join(axes)})"
    if len(open_) > 1:
        raise PlanError(f"'{name}' is {spec}: give the size of {listed(open_[:-1])}")
    if size % product or (not open_ and product != size):
        known_text = ", ".join(f"{axis} {value}" for axis, value in known.items())
        raise PlanError(
            f"'{name}' is {spec}: a dimension of {size} is not {spelled}"
            + (f" with {known_text}" if known_text else "")
        )
    return known | dict.fromkeys(open_, size // product)
