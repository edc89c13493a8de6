"""Find the dict of tensors in what a torch file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from surgeon.base.errors import CheckpointError, did_you_mean, listed
from surgeon.formats.checkpoint import Opaque, at_most, is_optimizer, is_tensor
from surgeon.formats.modules import has_hooks, is_module, state_dict
from surgeon.lazy import LazyTensor

# Deeper than what anybody nests; a name of a million keys would be as long.
_DEEPEST = 100
# So many lines that say the same are read; of more, one.
_MOST_ALIKE = 3

# Where Lightning keeps the arguments of a model: a loss with weights is none of the model's.
_SETTINGS = "hyper_parameters"

Container = dict[object, object]


class _Candidate(NamedTuple):
    """A dict of tensors, and what names it after the '#'."""

    name: str
    value: Container
    # 2 for mostly tensors, 1 where there are as many numbers beside them, 0 for numbers alone.
    rank: int


def choose(value: object, inner: str, place: str) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Return the tensors in `inner` of a torch file's value, or in its one dict of tensors.

    Also returns notes for the user. Raises CheckpointError, each line of it beginning with `place`,
    where there is no such dict, more than one, or where some of its tensors cannot be used.
    """
    notes: list[str] = []
    root = _walk(value, inner, place) if inner else value
    try:
        candidates = list(_candidates(root, inner))
    except ValueError as error:
        raise CheckpointError(f"{place}: {error}") from None
    # What is half of numbers is a model's only where there is nothing better.
    best = max((candidate.rank for candidate in candidates), default=0)
    candidates = [candidate for candidate in candidates if candidate.rank == best]
    if not candidates and inner and (mapping := _mapping(root)) and _tensor_count(mapping):
        candidates = [_Candidate(inner, mapping, 2)]
    if not candidates:
        raise CheckpointError(f"{place}: found no dict of tensors{_inside(root)}")
    if len(candidates) > 1:
        raise at_most(
            [f"{place}#{c.name}: found one of {len(candidates)} dicts of tensors; name the one "
             "that is meant" for c in candidates], place
        )  # fmt: skip
    (chosen,) = candidates
    if chosen.name != inner:
        notes.append(f"took the tensors in {chosen.name!r}")
    notes += _about_module(_walk(value, chosen.name, place) if chosen.name else value)
    return _tensors(chosen.value, place, notes), tuple(notes)


def _about_module(value: object) -> list[str]:
    if not isinstance(value, Opaque) or not is_module(value):
        return []
    notes = [
        f"read the tensors of a pickled {value.what!r} by its structure, under the names that "
        "state_dict() gives them; none of its code ran"
    ]
    if has_hooks(value):
        notes.append("the module changes its state_dict() by code of its own, which did not run: "
                     "names may differ")  # fmt: skip
    return notes


def state_dicts(value: object) -> dict[str, dict[str, LazyTensor]]:
    """Return all dicts of tensors in a torch file's value, by the words that name them."""
    return {
        found.name: {str(key): item for key, item in found.value.items() if is_tensor(item)}
        for found in _candidates(value, "")
    }


def _mapping(value: object) -> Container | None:
    """Return what is a dict, or stands for one; raises ValueError as `state_dict` does."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Opaque):
        return state_dict(value) if is_module(value) else value.items
    return None


def _entries(value: object) -> list[tuple[object, object]]:
    """Return keys and values of a container; those of a list or a tuple are its indices."""
    if isinstance(value, list | tuple):
        return [(index, item) for index, item in enumerate(value) if _is_container(item)]
    mapping = value.items if isinstance(value, Opaque) else value
    return list(mapping.items()) if isinstance(mapping, dict) else []


def _is_container(value: object) -> bool:
    return isinstance(value, dict | list | tuple) or (
        isinstance(value, Opaque) and (is_module(value) or value.items is not None)
    )


def _walk(value: object, inner: str, place: str) -> object:
    """Follow dotted keys into nested containers; of keys with dots the longest is tried first."""
    pending: list[tuple[object, str]] = [(value, inner)]
    known: set[str] = set()
    while pending:
        within, rest = pending.pop()
        if not rest:
            return within
        done = inner[: len(inner) - len(rest)]
        inside = {str(key): item for key, item in _entries(within) if _is_container(item)}
        known.update(f"{done}{key}" for key in inside)
        fitting = [key for key in inside if f"{rest}.".startswith(f"{key}.")]
        pending += [(inside[key], rest[len(key) + 1 :]) for key in sorted(fitting, key=len)]
    hint = did_you_mean(inner, known)
    raise CheckpointError(f"{place}: found no dict {inner!r}{hint or _inside(value)}")


def _is_weight(value: object) -> bool:
    """A tensor, or what would be one if its form could be used."""
    return is_tensor(value) or (isinstance(value, Opaque) and value.problem != "")


def _is_random_state(value: object) -> bool:
    return is_tensor(value) and value.spec.dtype == "U8" and len(value.spec.shape) == 1


def _is_number(value: object) -> bool:
    return is_tensor(value) and not value.spec.shape


def _tensor_count(value: object) -> int:
    return sum(map(_is_weight, value.values())) if isinstance(value, dict) else 0


def _candidate(name: str, value: Container) -> _Candidate | None:
    """Return a dict of tensors under names, if it is one.

    At least half of it is tensors, not all of them random generators' states, nor the scores that
    a callback keeps under paths of files.
    """
    weights = {key: item for key, item in value.items() if _is_weight(item)}
    if not weights or not all(isinstance(key, str) for key in value):
        return None
    # What torch.nn.Module.get_extra_state returned may be anything, once per layer.
    entries = len(value) - sum(str(key).endswith("_extra_state") for key in value)
    inner = max((_tensor_count(item) for item in value.values()), default=0)
    if len(weights) * 2 < entries or len(weights) <= inner:
        return None
    if all(map(_is_random_state, value.values())):
        return None
    if all(map(_is_number, weights.values())):
        return None if any("/" in str(key) for key in weights) else _Candidate(name, value, 0)
    return _Candidate(name, value, 2 if len(weights) * 2 > entries else 1)


def _candidates(root: object, name: str) -> Iterator[_Candidate]:
    """Yield the dicts of tensors, each once, without what is inside another or in an optimizer."""
    seen: set[int] = set()
    pending = [(name, root, 0)]
    while pending:
        name, value, depth = pending.pop()
        if not _is_container(value) or id(value) in seen or depth > _DEEPEST:
            continue
        seen.add(id(value))
        mapping = _mapping(value)
        if mapping is not None and is_optimizer(mapping):
            continue
        if mapping is not None and (found := _candidate(name, mapping)):
            yield found
        elif not is_module(value):
            pending += reversed(
                [(f"{name}.{key}" if name else str(key), item, depth + 1)
                 for key, item in _entries(value) if _is_container(item) and key != _SETTINGS]
            )  # fmt: skip


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "optimizer state" if is_optimizer(value) else f"dict of {len(value)}"
    if is_tensor(value):
        return f"tensor {value.spec}"
    return value.what if isinstance(value, Opaque) else type(value).__name__


def _inside(value: object) -> str:
    """Describe what there is instead."""
    if not isinstance(value, dict):
        return f"; it holds a {_kind(value)}"
    if not value:
        return "; it holds an empty dict"
    entries = [f"{key!r:.60} ({_kind(item)})" for key, item in list(value.items())[:10]]
    more = f" and {len(value) - 10} more" if len(value) > 10 else ""
    return f"; it holds {', '.join(entries)}{more}"


def _is_name(name: str) -> bool:
    """Safetensors has a meaning of its own for one name, and no way to write half a character."""
    return name != "__metadata__" and name.encode(errors="ignore").decode() == name


def _tensors(
    chosen: Mapping[object, object], place: str, notes: list[str]
) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    problems, left_out = [], []
    unusable: dict[str, list[str]] = {}
    for name, value in chosen.items():
        if isinstance(value, Opaque) and value.problem:
            unusable.setdefault(value.problem, []).append(str(name))
        elif not is_tensor(value):
            left_out.append(f"{name} ({_kind(value)})")
        elif not isinstance(name, str) or not _is_name(name):
            problems.append(f"{place}: tensor {name!r}: found a key that cannot be a tensor's name")
        else:
            tensors[name] = value
    for problem, names in unusable.items():
        if len(names) > _MOST_ALIKE:
            problems.append(f"{place}: tensors {listed(names)}: {problem}")
        else:
            problems += [f"{place}: tensor {name!r}: {problem}" for name in names]
    if problems:
        raise at_most(problems, place)
    if left_out:
        notes.append(f"left out {len(left_out)} entries that are not tensors: {listed(left_out)}")
    return tensors
