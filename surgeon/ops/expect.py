"""expect: stop the run unless the state is as it should be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from surgeon.base.errors import CheckFailedError, PlanError
from surgeon.base.lists import as_list
from surgeon.base.patterns import Target
from surgeon.base.units import parse_size, spoken_size
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Scratch, TensorSpec
from surgeon.lazy.values import close_values, is_finite_tensor, is_zero_tensor, same_values
from surgeon.numeric.dtypes import DTYPES, require_dtype
from surgeon.ops.shared.matrix_rank import rank_of

_WITHIN: dict[str, Any] = {"additionalProperties": False, "minProperties": 1}
_COUNT = {"type": "integer", "minimum": 0}
_SIZE = {"type": ["string", "integer"], "format": "size"}
# A number, or limits of which each may be left out.
_BOUNDS: dict[str, Any] = {
    "type": ["integer", "object"],
    "minimum": 0,
    "properties": {"min": _COUNT, "max": _COUNT},
    **_WITHIN,
}
Bounds = int | dict[str, Any]


@op(group="check", example={"target": "classifier.weight", "shape": [7, 8], "dtype": "F32"})
def expect(
    draft: Draft,
    *,
    target: Target,
    count: Annotated[int | None, "how many tensors", {"minimum": 0}] = None,
    shape: Annotated[list[int | None] | None, "the shape; null for any size"] = None,
    dtype: Annotated[str | None, "the dtype", {"format": "dtype"}] = None,
    exists: Annotated[bool | None, "false: nothing matches"] = None,
    finite: Annotated[bool | None, "true: neither NaN nor Inf; looks at the values"] = None,
    equal_to: Annotated[
        str | list[str] | None, "models whose tensors are the same; looks at the values"
    ] = None,
    tied: Annotated[bool | None, "whether each tensor shares its values with another"] = None,
    zero: Annotated[
        bool | None, "true: nothing but zeros; false: not all zeros; looks at the values"
    ] = None,
    atol: Annotated[
        float | None,
        "with `equal_to`: |ours - theirs| may be as large as this + rtol * |theirs|",
        {"minimum": 0},
    ] = None,
    rtol: Annotated[
        float | None, "with `equal_to`: as torch.allclose has it", {"minimum": 0}
    ] = None,
    dimensions: Annotated[
        Bounds | None, "how many dimensions each has, or {min, max}", _BOUNDS
    ] = None,
    elements: Annotated[Bounds | None, "how many elements each has, or {min, max}", _BOUNDS] = None,
    size: Annotated[
        dict[str, Any] | None,
        "{min, max}: the bytes of all of them together, such as 5GB; tied ones count once",
        {"properties": {"min": _SIZE, "max": _SIZE}, **_WITHIN},
    ] = None,
    matrix_rank: Annotated[
        Bounds | None,
        "the rank of each as a matrix, or {min, max}; looks at the values",
        _BOUNDS,
    ] = None,
) -> None:
    """Stop the run unless tensors are as they should be.

    Nothing is written then. What looks at values is checked by `apply`, everything else by `plan`
    already. With a tolerance, floating-point dtypes may differ, NaN is close to nothing, and
    integers have to be equal. `matrix_rank` counts singular values above the largest one times the
    larger side times the dtype's epsilon, as numpy.linalg.matrix_rank does.
    """
    names = _select(draft, target, exists=exists, count=count)
    problems: list[str] = []
    if exists is not None and bool(names) != exists:
        problems.append(
            f"expected no tensor to match {target!r}, found '{names[0]}'"
            if names
            else f"expected a tensor to match {target!r}, found none"
        )
    if count is not None and len(names) != count:
        problems.append(f"expected {count} tensors to match {target!r}, found {len(names)}")
    shared = draft.shared() | {*draft.tied_by_config().values()} if tied is not None else set()
    for name in names:
        spec = draft.spec(name)
        problems += _differences(name, spec, shape, dtype)
        problems += _outside(name, "dimensions", dimensions, len(spec.shape))
        problems += _outside(name, "elements", elements, spec.count)
        if matrix_rank is not None and (len(spec.shape) != 2 or DTYPES[spec.dtype].kind != "float"):
            problems.append(f"expected '{name}' to be a matrix of floats, found {spec}")
        if tied is not None and (name in shared) != tied:
            problems.append(f"expected '{name}' {'' if tied else 'not '}to be tied")
    models = as_list(equal_to or [])
    tolerance = None if atol is None and rtol is None else (atol or 0.0, rtol or 0.0)
    if tolerance and not models:
        raise PlanError("'atol' and 'rtol' are for 'equal_to', which is missing")
    for model in models:
        others = draft.model(model)
        for name in names:
            if name not in others:
                problems.append(f"'{name}' is not in model '{model}'")
            elif not _comparable(draft.spec(name), others[name].spec, tolerance):
                problems.append(
                    f"'{name}' is {draft.spec(name)} here but {others[name].spec} in '{model}'"
                )
            else:
                pair = draft[name], others[name]
                draft.check(partial(_require_equal, name, model, *pair, tolerance))
    if size is not None:
        tensors = {id(draft[name]): draft.spec(name).size_bytes for name in names}
        problems += _beyond(target, size, sum(tensors.values()))
    if problems:
        raise CheckFailedError(*problems)
    for name in names:
        if finite is not None:
            draft.check(partial(_require_finite, name, finite, draft[name]))
        if zero is not None:
            draft.check(partial(_require_zero, name, zero, draft[name]))
        if matrix_rank is not None:
            draft.check(partial(_require_rank, name, matrix_rank, draft[name]))


def _select(
    draft: Draft, target: str | list[str], *, exists: bool | None, count: int | None
) -> list[str]:
    """Return what the target selects; nothing at all is no mistake where that is the question."""
    try:
        return draft.select(target)
    except PlanError as error:
        if exists is False or count == 0:
            return []
        raise CheckFailedError(*error.problems) from None


def _differences(
    name: str, found: TensorSpec, shape: list[int | None] | None, dtype: str | None
) -> list[str]:
    problems = []
    if shape is not None and (
        len(shape) != len(found.shape)
        or any(w not in (None, f) for w, f in zip(shape, found.shape, strict=True))
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        problems.append(f"expected '{name}' to have shape ({wanted}), found {found.shape}")
    if dtype is not None and require_dtype(dtype) != found.dtype:
        problems.append(f"expected '{name}' to be {require_dtype(dtype)}, found {found.dtype}")
    return problems


def _outside(name: str, what: str, bounds: Bounds | None, found: int) -> list[str]:
    """Say where a number is not within its bounds."""
    if bounds is None or _within(bounds, found):
        return []
    return [f"expected '{name}' to have {_spoken(bounds)} {what}, found {found}"]


def _within(bounds: Bounds, found: int) -> bool:
    if not isinstance(bounds, dict):
        return found == bounds
    return bool(bounds.get("min", found) <= found <= bounds.get("max", found))


def _spoken(bounds: Bounds) -> str:
    if not isinstance(bounds, dict):
        return str(bounds)
    words = {"min": "at least", "max": "at most"}
    return " and ".join(f"{words[key]} {bounds[key]}" for key in words if key in bounds)


def _beyond(target: str | list[str], bounds: Mapping[str, Any], found: int) -> list[str]:
    limits = {key: parse_size(value) for key, value in bounds.items()}
    if _within(limits, found):
        return []
    shown = _spoken({key: spoken_size(limit) for key, limit in limits.items()})
    return [f"expected {target!r} to have {shown}, found {spoken_size(found)} ({found} bytes)"]


def _comparable(
    ours: TensorSpec, theirs: TensorSpec, tolerance: tuple[float, float] | None
) -> bool:
    kinds = DTYPES[ours.dtype].kind, DTYPES[theirs.dtype].kind
    if tolerance and kinds == ("float", "float"):
        return ours.shape == theirs.shape
    return ours == theirs


def _require_equal(
    name: str, model: str, ours: LazyTensor, theirs: LazyTensor,
    tolerance: tuple[float, float] | None, scratch: Scratch,
) -> None:  # fmt: skip
    if tolerance and DTYPES[ours.spec.dtype].kind == "float":
        atol, rtol = tolerance
        if far := close_values(ours, theirs, atol, rtol, scratch):
            raise CheckFailedError(
                f"expected '{name}' to be close in model '{model}' (atol {atol:g}, rtol {rtol:g}); "
                f"{far.count} of {ours.spec.count} values are not, the farthest by {far.most:g}"
            )
    elif not same_values(ours, theirs, scratch):
        raise CheckFailedError(
            f"expected '{name}' to be equal in model '{model}'; the values differ"
        )


def _require_zero(name: str, zero: bool, tensor: LazyTensor, scratch: Scratch) -> None:
    if is_zero_tensor(tensor, scratch) != zero:
        raise CheckFailedError(
            f"expected '{name}' to hold {'only zeros' if zero else 'something besides zeros'}"
        )


def _require_rank(name: str, bounds: Bounds, tensor: LazyTensor, scratch: Scratch) -> None:
    found = rank_of(name, tensor, scratch)
    if not _within(bounds, found):
        raise CheckFailedError(f"expected '{name}' to have rank {_spoken(bounds)}, found {found}")


def _require_finite(name: str, finite: bool, tensor: LazyTensor, scratch: Scratch) -> None:
    if is_finite_tensor(tensor, scratch) != finite:
        wanted = "only finite values" if finite else "NaN or Inf"
        raise CheckFailedError(f"expected '{name}' to hold {wanted}")
