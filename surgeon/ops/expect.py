"""expect: stop the run unless the state is as it should be."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from surgeon.base.errors import CheckFailedError, PlanError
from surgeon.base.lists import as_list
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Scratch, TensorSpec
from surgeon.lazy.values import is_finite_tensor, same_values
from surgeon.numeric.dtypes import require_dtype


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
) -> None:
    """Stop the run unless tensors are as they should be.

    Nothing is written then. What looks at values is checked by `apply`, everything else by `plan`
    already.
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
    shared = draft.shared() if tied is not None else set()
    for name in names:
        problems += _differences(name, draft.spec(name), shape, dtype)
        if tied is not None and (name in shared) != tied:
            problems.append(f"expected '{name}' {'' if tied else 'not '}to be tied")
    models = as_list(equal_to or [])
    for model in models:
        others = draft.model(model)
        for name in names:
            if name not in others:
                problems.append(f"'{name}' is not in model '{model}'")
            elif others[name].spec != draft.spec(name):
                problems.append(
                    f"'{name}' is {draft.spec(name)} here but {others[name].spec} in '{model}'"
                )
            else:
                draft.check(partial(_require_equal, name, model, draft[name], others[name]))
    if problems:
        raise CheckFailedError(*problems)
    if finite is not None:
        for name in names:
            draft.check(partial(_require_finite, name, finite, draft[name]))


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


def _require_equal(
    name: str, model: str, ours: LazyTensor, theirs: LazyTensor, scratch: Scratch
) -> None:
    if not same_values(ours, theirs, scratch):
        raise CheckFailedError(
            f"expected '{name}' to be equal in model '{model}'; the values differ"
        )


def _require_finite(name: str, finite: bool, tensor: LazyTensor, scratch: Scratch) -> None:
    if is_finite_tensor(tensor, scratch) != finite:
        wanted = "only finite values" if finite else "NaN or Inf"
        raise CheckFailedError(f"expected '{name}' to hold {wanted}")
