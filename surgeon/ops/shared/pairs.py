"""Tensors that a step changes by others, each by one of its own: who goes with whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from surgeon.base.errors import Hints, PlanError
from surgeon.base.lists import as_list
from surgeon.draft import Draft
from surgeon.lazy import LazyTensor, TensorSpec
from surgeon.numeric.dtypes import DTYPES
from surgeon.ops.shared.arithmetic import Integers, floats
from surgeon.ops.shared.moves import destinations

# Says of two tensors' specs why they do not go together, or nothing; specs are shown besides.
Misfit = Callable[[TensorSpec, TensorSpec], str | None]


def same_shape(ours: TensorSpec, theirs: TensorSpec) -> str | None:
    """Refuse tensors of different shapes."""
    return None if ours.shape == theirs.shape else ""


def pairs(
    draft: Draft,
    target: str | list[str],
    from_: str | list[str],
    model: str | None,
    integers: Integers,
    *,
    done: str,
    misfit: Misfit = same_shape,
) -> Iterator[tuple[str, LazyTensor, LazyTensor]]:
    """Yield (name, tensor, the other tensor), tied names once; raises PlanError for all misfits.

    `done` is what is done to a tensor, such as 'added to'.
    """
    others = draft.tensors if model is None else draft.model(model)
    where = "the state" if model is None else f"model '{model}'"
    moves = dict(destinations(draft, as_list(target), as_list(from_)))
    problems: list[str] = []
    hint = Hints(others)
    found: dict[int, tuple[str, LazyTensor]] = {}
    for name in floats(draft, list(moves), integers):
        source = moves[name]
        if source not in others:
            problems.append(f"there is no '{source}' in {where} for '{name}'{hint(source)}")
            continue
        ours, theirs = draft[name], others[source]
        what = misfit(ours.spec, theirs.spec)
        if what is None and DTYPES[theirs.spec.dtype].kind != "float":
            what = ""
        if what is not None:
            shown = f"'{name}' is {ours.spec} but '{source}' in {where} is {theirs.spec}"
            problems.append(f"{shown}; {what}" if what else shown)
            continue
        first, other = found.setdefault(id(ours), (name, theirs))
        if other is not theirs:
            problems.append(f"'{name}' is tied to '{first}', and both would be {done}; untie it")
    if problems:
        raise PlanError(*problems)
    yield from ((name, draft[name], theirs) for name, theirs in found.values())
