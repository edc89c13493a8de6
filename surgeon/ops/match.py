"""match: names and shapes must be exactly another model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from surgeon.base.errors import CheckFailedError, Hints, PlanError, UsageError
from surgeon.draft import Draft, ModuleTensor
from surgeon.draft.registry import op
from surgeon.numeric.dtypes import dtype_named


@op(
    group="check",
    example={"like": "other"},
    exactly_one=("shapes", "like", "module", "transformers"),
)
def match(
    draft: Draft,
    *,
    shapes: Annotated[
        str | dict[str, Any] | None,
        'a JSON file, or an object: {name: [sizes]} or {name: {"shape": [...], "dtype": "F32"}}',
    ] = None,
    like: Annotated[str | None, "a model of the recipe, or a checkpoint's path"] = None,
    module: Annotated[
        str | None,
        "package.module:factory of a torch module; its code is run, with --allow-code only",
        {"pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"},
    ] = None,
    kwargs: Annotated[dict[str, Any] | None, "what the module's factory is called with"] = None,
    transformers: Annotated[
        bool | None,
        "true: the class of transformers that the output's config.json names",
        {"const": True},
    ] = None,
) -> None:
    """Stop the run unless names and shapes are exactly these.

    There is a line for each difference. A dtype is compared where the shapes file states one, not
    with `like` or `module`. A module is built on the meta device, and its parameters and persistent
    buffers are compared; names that it ties are one tensor here, of which one name is enough.

    With `transformers`, it is the result of all steps that is compared, with the config as it will
    be written: transformers loads it, without values, into the class that `architectures` names,
    with its own conversions of names. Nothing may be missing, unexpected, of another shape or tied
    otherwise. It takes `pip install "surgeon-checkpoints[transformers]"`; code of the folder's own
    is run with --allow-code only.
    """
    if kwargs is not None and module is None:
        raise UsageError("'kwargs' are those of a 'module', and there is none")
    if transformers:
        draft.class_asked = True
        return
    built = draft.outside.build_module(module, kwargs or {}) if module is not None else {}
    expected = (
        {name: (tensor.shape, None) for name, tensor in built.items()}
        if module is not None
        else _read_expected(draft, shapes, like)
    )
    tied = {tensor.owner for name, tensor in built.items() if name in draft.tensors}
    problems = []
    hint = Hints(draft.tensors.keys() - expected.keys())
    for name, (shape, dtype) in expected.items():
        if name not in draft.tensors:
            if name in built and built[name].owner in tied:
                continue
            problems.append(f"'{name}' {shape} is missing{hint(name)}")
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
    problems += _tied_otherwise(draft, built)
    if problems:
        raise CheckFailedError(*problems)


def _tied_otherwise(draft: Draft, built: Mapping[str, ModuleTensor]) -> list[str]:
    """Return a line for each name that is tied to another in the module and not here, or here."""
    problems = []
    first: dict[str, str] = {}
    here: dict[int, str] = {}
    for name, tensor in built.items():
        if name not in draft.tensors:
            continue
        owner = first.setdefault(tensor.owner, name)
        if draft[owner] is not draft[name]:
            problems.append(f"'{name}' and '{owner}' are one tensor in the module; tie them")
        other = here.setdefault(id(draft[name]), name)
        if built[other].owner != tensor.owner:
            problems.append(f"'{name}' and '{other}' are two tensors in the module; untie them")
    return problems


def _read_expected(
    draft: Draft, shapes: str | dict[str, Any] | None, like: str | None
) -> dict[str, tuple[tuple[int, ...], str | None]]:
    if like is not None:
        tensors = draft.models[like] if like in draft.models else draft.outside.open_model(like)
        return {name: (tensor.spec.shape, None) for name, tensor in tensors.items()}
    found = draft.outside.read_json(shapes) if isinstance(shapes, str) else shapes
    where = shapes if isinstance(shapes, str) else "shapes"
    if not isinstance(found, dict):
        raise PlanError(f"{where}: not an object of names and shapes")
    return {name: _read_shape(name, value, where) for name, value in found.items()}


def _read_shape(name: str, value: Any, where: str) -> tuple[tuple[int, ...], str | None]:
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
