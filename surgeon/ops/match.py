"""match: names and shapes must be exactly another model's."""

from __future__ import annotations

from typing import Annotated, Any

from surgeon.draft import Draft
from surgeon.dtypes import dtype_named
from surgeon.errors import CheckFailedError, PlanError, did_you_mean
from surgeon.registry import op


@op(
    group="check",
    example={"like": "other"},
    exactly_one=("shapes", "like"),
)
def match(
    draft: Draft,
    *,
    shapes: Annotated[
        str | dict[str, Any] | None,
        'a JSON file, or an object: {name: [sizes]} or {name: {"shape": [...], "dtype": "F32"}}',
    ] = None,
    like: Annotated[str | None, "a model of the recipe, or a checkpoint's path"] = None,
) -> None:
    """Stop the run unless names and shapes are exactly these.

    There is a line for each difference. A dtype is compared where the shapes file states one, not
    with `like`.
    """
    expected = _expected(draft, shapes, like)
    problems = []
    for name, (shape, dtype) in expected.items():
        if name not in draft.tensors:
            hint = did_you_mean(name, draft.tensors.keys() - expected.keys())
            problems.append(f"'{name}' {shape} is missing{hint}")
        elif draft.spec(name).shape != shape:
            problems.append(
                f"expected '{name}' to have shape {shape}, found {draft.spec(name).shape}"
            )
        elif dtype is not None and draft.spec(name).dtype != dtype:
            problems.append(f"expected '{name}' to be {dtype}, found {draft.spec(name).dtype}")
    problems += [
        f"'{name}' {draft.spec(name).shape} is not expected"
        for name in draft.tensors
        if name not in expected
    ]
    if problems:
        raise CheckFailedError(*problems)


def _expected(
    draft: Draft, shapes: str | dict[str, Any] | None, like: str | None
) -> dict[str, tuple[tuple[int, ...], str | None]]:
    if like is not None:
        tensors = draft.models[like] if like in draft.models else draft.outside.open_model(like)
        return {name: (tensor.spec.shape, None) for name, tensor in tensors.items()}
    found = draft.outside.read_json(shapes) if isinstance(shapes, str) else shapes
    where = shapes if isinstance(shapes, str) else "shapes"
    if not isinstance(found, dict):
        raise PlanError(f"{where}: not an object of names and shapes")
    return {name: _stated(name, value, where) for name, value in found.items()}


def _stated(name: str, value: Any, where: str) -> tuple[tuple[int, ...], str | None]:
    shape, dtype = (
        (value.get("shape"), value.get("dtype")) if isinstance(value, dict) else (value, None)
    )
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise PlanError(f"{where}: '{name}' has no shape such as [8, 128]")
    if dtype is None:
        return tuple(shape), None
    if not isinstance(dtype, str) or dtype_named(dtype) is None:
        raise PlanError(f"{where}: '{name}' has no dtype {dtype!r}")
    return tuple(shape), dtype_named(dtype)
