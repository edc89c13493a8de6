"""What `Run.state_dict` returns, as data: read back whole, or refused with the wrong key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from surgeon.base.documents import Key, MisfitError, Rule, read
from surgeon.training.errors import ManifestError

VERSION = 1
Json = Mapping[str, Any]
# What torch's C++ takes.
_MOST = 1 << 63


def _no_bounds(region: tuple[tuple[int, ...], ...]) -> str:
    wrong = [bounds for bounds in region if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]]
    return f"{list(wrong[0])} is not [start, stop]" if wrong else ""


@dataclass(frozen=True, kw_only=True)
class GroupState:
    """A group: the settings that the manifest gave, and those of the moment."""

    name: str
    given: Json
    settings: Json


@dataclass(frozen=True, kw_only=True)
class PartState:
    """What the optimizer keeps for some elements of a parameter."""

    name: str
    region: Annotated[tuple[tuple[int, ...], ...], Rule(_no_bounds)]
    state: Json


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a stage is: what it and the run's earlier stages have done."""

    version: Annotated[int, Key("surgeon_run")]
    stage: str
    begun: tuple[str, ...]
    is_finished: bool
    optimizer: str
    groups: tuple[GroupState, ...]
    state: tuple[PartState, ...]
    scheduler: Json | None = None


def run_state(state: object) -> RunState:
    """Read a state back; raises ManifestError, with the key, for anything else."""
    if not isinstance(state, Mapping) or "surgeon_run" not in state:
        raise ManifestError("not a state of a run: it has no 'surgeon_run' version")
    version = state["surgeon_run"]
    if type(version) is not int or version != VERSION:
        raise ManifestError(
            f"is version {version!r:.60} of a run's state, and this surgeon reads {VERSION}"
        )
    if "scheduler" not in state:
        raise ManifestError("not a whole state of a run: scheduler: is missing")
    without = {key: value for key, value in state.items() if key != "scheduler"}
    try:
        return read(RunState, without if state["scheduler"] is None else dict(state))
    except MisfitError as error:
        raise ManifestError(f"not a whole state of a run: {error}") from None


def unlike(saved: object, now: object, place: str, *, exactly: bool = False) -> Iterator[str]:
    """Say where a saved value cannot stand for one that torch has just made.

    Those are values of another kind, mappings of other keys, lists of another length. With
    `exactly` flags, words and what is not set have to be equal: they choose what torch does.
    """
    match now:
        case Mapping():
            yield from _unlike_mapping(saved, now, place, exactly)
        case list() | tuple():
            if not isinstance(saved, list | tuple) or len(saved) != len(now):
                yield f"{place}: {_shown(saved)} is not a list of {len(now)}"
                return
            for index, (old, new) in enumerate(zip(saved, now, strict=True)):
                yield from unlike(old, new, f"{place}[{index}]", exactly=exactly)
        case bool() | str() | None if exactly:
            if type(saved) is not type(now) or saved != now:
                yield f"{place}: {_shown(saved)} in the state, {now!r} here"
        case bool() | str():
            if type(saved) is not type(now):
                yield f"{place}: {_shown(saved)} is not as {now!r}"
        case int() | float() | Tensor():
            if not _is_number(saved, now):
                yield f"{place}: {_shown(saved)} is not a number"


def _unlike_mapping(
    saved: object, now: Mapping[Any, Any], place: str, exactly: bool
) -> Iterator[str]:
    if not isinstance(saved, Mapping):
        yield f"{place}: {_shown(saved)} is not a mapping"
        return
    yield from (f"{place}.{key}: is missing" for key in now if key not in saved)
    yield from (f"{place}.{key}: is unknown" for key in saved if key not in now)
    for key in now:
        if key in saved:
            yield from unlike(saved[key], now[key], f"{place}.{key}", exactly=exactly)


def _is_number(value: object, now: object) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 if not isinstance(now, Tensor) else value.shape == now.shape
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or -_MOST <= value < _MOST


def _shown(value: object) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"
    )
