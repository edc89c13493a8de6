"""Find the dict of tensors in what a torch file holds, and take wrapper prefixes off its names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from surgeon.base.errors import CheckpointError, did_you_mean, listed
from surgeon.formats.checkpoint import Held, Opaque, at_most, is_optimizer
from surgeon.lazy import LazyTensor, Stored

_WRAPPERS = ("module.", "_orig_mod.")
Value = TypeVar("Value")


def choose(value: object, inner: str, place: str) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Return the tensors in `inner` of a torch file's value, or in its one dict of tensors.

    Also returns notes for the user. Raises CheckpointError, each line of it beginning with `place`,
    where there is no such dict, more than one, or where some of its tensors cannot be used.
    """
    notes = []
    root = _walk(value, inner, place) if inner else value
    candidates = list(_candidates(root, inner))
    if not candidates and inner and isinstance(root, dict) and _tensor_count(root):
        candidates = [(inner, root)]
    if not candidates:
        raise CheckpointError(f"{place}: found no dict of tensors{_inside(root)}")
    if len(candidates) > 1:
        raise CheckpointError(
            *(f"{place}#{name}: found one of {len(candidates)} dicts of tensors; name the one "
              "that is meant" for name, _ in candidates)
        )  # fmt: skip
    ((name, chosen),) = candidates
    if name != inner:
        notes.append(f"took the tensors in {name!r}")
    return _tensors(chosen, place, notes), tuple(notes)


def state_dicts(value: object) -> dict[str, dict[str, LazyTensor]]:
    """Return all dicts of tensors in a torch file's value, by the words that name them."""
    return {
        name: {str(key): item for key, item in found.items() if isinstance(item, Held)}
        for name, found in _candidates(value, "")
    }


def unwrapped(names: Mapping[str, Value]) -> tuple[dict[str, Value], str]:
    """Return the mapping with the wrapper prefixes that all names share taken off, and them."""
    removed = ""
    while names and (
        wrapper := next((w for w in _WRAPPERS if all(_starts(n, removed + w) for n in names)), "")
    ):
        removed += wrapper
    if not removed:
        return dict(names), ""
    return {name[len(removed) :]: value for name, value in names.items()}, removed


def _starts(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and len(name) > len(prefix)


def _walk(value: object, inner: str, place: str) -> object:
    """Follow dotted keys into nested dicts; of keys with dots the longest is tried first."""
    pending: list[tuple[object, str]] = [(value, inner)]
    known: set[str] = set()
    while pending:
        within, rest = pending.pop()
        if not rest:
            return within
        if not isinstance(within, dict):
            continue
        done = inner[: len(inner) - len(rest)]
        keys = [key for key, item in within.items() if isinstance(item, dict)]
        known.update(f"{done}{key}" for key in keys)
        fitting = [key for key in map(str, keys) if f"{rest}.".startswith(f"{key}.")]
        texts = {str(key): item for key, item in within.items()}
        for key in sorted(fitting, key=len):
            pending.append((texts[key], rest[len(key) + 1 :]))
    hint = did_you_mean(inner, known)
    raise CheckpointError(f"{place}: found no dict {inner!r}{hint or _inside(value)}")


def _is_weight(value: object) -> bool:
    """A tensor, or what would be one if its form could be used."""
    return isinstance(value, Held) or (isinstance(value, Opaque) and value.problem != "")


def _is_random_state(value: object) -> bool:
    return isinstance(value, Stored) and value.spec.dtype == "U8" and len(value.spec.shape) == 1


def _tensor_count(value: object) -> int:
    return sum(map(_is_weight, value.values())) if isinstance(value, dict) else 0


def _is_state_dict(value: dict[object, object]) -> bool:
    """Mostly tensors under names, not all of them random generators' states, and few beside."""
    count = _tensor_count(value)
    # What torch.nn.Module.get_extra_state returned may be anything, once per layer.
    extra = sum(isinstance(key, str) and key.endswith("_extra_state") for key in value)
    inner = max((_tensor_count(item) for item in value.values()), default=0)
    return (
        count * 2 > len(value) - extra
        and count > inner
        and all(isinstance(key, str) for key in value)
        and not all(map(_is_random_state, value.values()))
    )


def _candidates(root: object, name: str) -> Iterator[tuple[str, dict[object, object]]]:
    """Yield the dicts of tensors, each once, without what is inside another or in an optimizer."""
    seen: set[int] = set()
    pending = [(name, root)]
    while pending:
        name, value = pending.pop()
        if not isinstance(value, dict) or id(value) in seen or is_optimizer(value):
            continue
        seen.add(id(value))
        if _is_state_dict(value):
            yield name, value
        else:
            pending += reversed(
                [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
            )


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "optimizer state" if is_optimizer(value) else f"dict of {len(value)}"
    if isinstance(value, Held):
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
    for name, value in chosen.items():
        if isinstance(value, Opaque) and value.problem:
            problems.append(f"{place}: tensor {name!r}: {value.problem}")
        elif not isinstance(value, Held):
            left_out.append(f"{name} ({_kind(value)})")
        elif not isinstance(name, str) or not _is_name(name):
            problems.append(f"{place}: tensor {name!r}: found a key that cannot be a tensor's name")
        else:
            tensors[name] = value
    if problems:
        raise at_most(problems, place)
    if left_out:
        notes.append(f"left out {len(left_out)} entries that are not tensors: {listed(left_out)}")
    return tensors
