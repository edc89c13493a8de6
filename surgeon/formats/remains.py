"""What a killed run left beside an output: whoever names that output next finishes or undoes it.

A run publishes by swapping names: its manifest first, then the optimizer's state, the weights last.
By then everything is written and flushed, so a manifest that is in place can always be followed by
what it names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import CheckpointError
from surgeon.base.files import read_regular, reading, sha256_of
from surgeon.base.strict_json import MOST_BYTES as LONGEST_HEADER
from surgeon.base.strict_json import parse_object
from surgeon.formats.safetensors import header_sha256
from surgeon.formats.swapping import (
    aside_of,
    flush,
    is_ours,
    lock,
    mend,
    swap,
    temporary_beside,
    tokens_beside,
)

WEIGHTS_SUFFIX = ".safetensors"
MANIFEST_SUFFIX, STATE_SUFFIX = ".manifest.json", ".optimizer.safetensors"
_SETTLED = "a killed run was replacing it: "
_LONGEST_MANIFEST = 250_000_000
_DEEPEST_MANIFEST = 200


def places_of(output: Path) -> list[Path]:
    """Return the names that an output's parts have, in the order in which they appear."""
    names = [output]
    if output.suffix == WEIGHTS_SUFFIX:
        names = [output.with_suffix(MANIFEST_SUFFIX), output.with_suffix(STATE_SUFFIX), output]
    return [Path(os.path.realpath(name)) for name in names]


def settled(output: Path) -> str:
    """Finish or undo what a killed run had begun to publish; return what was done, or nothing.

    Raises CheckpointError where it cannot be done.
    """
    if isinstance(output, Elsewhere) or output.name in ("", "..") or "\0" in str(output):
        return ""
    places = places_of(output)
    done = [one for token in tokens_beside(places) for one in _settled(output, places, token)]
    return f"{_SETTLED}{', '.join(done)}" if done else ""


def _settled(output: Path, places: list[Path], token: str) -> list[str]:
    """Settle what one run left, whose names have this token."""
    if not any(_has_remains(place, token) for place in places):
        return []
    try:
        held = _locked(places[-1], token)
    except OSError:
        return []  # another run is at it, or they are nothing of ours
    try:
        return _put_back(places, token) + _finished(places, token)
    except OSError as error:
        names = [name for place in places for name in _remains(place, token)]
        left = [str(name) for name in names if os.path.lexists(name)]
        raise CheckpointError(
            f"{output}: a killed run left {', '.join(left)}, which cannot be put in place: "
            f"{(error.strerror or str(error)).lower()}"
        ) from None
    finally:
        if held is not None:
            os.close(held)


def told(path: Path | str, notes: Iterable[str]) -> list[str]:
    """Return which notes of an opened checkpoint say that it was settled, with its path."""
    return [f"{path}: {note}" for note in notes if note.startswith(_SETTLED)]


def _remains(place: Path, token: str) -> tuple[Path, Path]:
    return temporary_beside(place, token), aside_of(place, token)


def _has_remains(place: Path, token: str) -> bool:
    return any(map(os.path.lexists, _remains(place, token)))


def _locked(place: Path, token: str) -> int | None:
    """Lock what the weights' run would hold; raises OSError where another process does.

    None where it is complete, and only what it replaced is still there.
    """
    for name in _remains(place, token):
        with suppress(FileNotFoundError):
            if os.path.lexists(name) and not is_ours(name):
                raise PermissionError
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(name, flags)
            try:
                # Without locks nobody can say whether the run is over; but one that is alive is
                # between two names for an instant, and goes on as is done here.
                lock(descriptor)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor
    return None


def _put_back(places: list[Path], token: str) -> list[str]:
    """Mend swaps that took several steps; say what came back."""
    back = [place for place in places if mend(place, token)]
    for place in back:
        flush(place.parent)
    return [f"{place.name} is back, from {aside_of(place, token).name}" for place in back]


def _finished(places: list[Path], token: str) -> list[str]:
    """Follow a manifest that is in place before what it names; say what came into place."""
    if len(places) == 1:
        return []
    manifest, state, weights = places
    complete = temporary_beside(weights, token)
    # In place is what was replaced, then what replaces it was completed, and its manifest after it.
    if not _modified(weights) <= _modified(complete) <= _modified(manifest):
        return []
    wanted = _manifest(manifest)
    if not wanted or _header_sha256(complete) != wanted["header_sha256"]:
        return []
    kept = temporary_beside(state, token)
    if not wanted["state_sha256"]:
        moves = [state] if os.path.lexists(state) and not os.path.lexists(kept) else []
    elif _sha256(state) == wanted["state_sha256"]:
        moves = []
    elif _sha256(kept) == wanted["state_sha256"]:
        moves = [state]
    else:
        return []
    for place in (*moves, weights):
        swap(place, token)
    flush(weights.parent)
    for place in places:
        with suppress(OSError):
            temporary_beside(place, token).unlink()
    return ["all of it was written, and is in place now"]


def _manifest(path: Path) -> Mapping[str, str] | None:
    """Return the hashes that a manifest states; None where there is none that can be read."""
    try:
        text = read_regular(path, _LONGEST_MANIFEST)
        found: dict[str, Any] = parse_object(
            text, most_bytes=_LONGEST_MANIFEST, deepest=_DEEPEST_MANIFEST, allow_surrogates=True
        )
        state = found.get("optimizer_state")
        return {
            "header_sha256": str(found["checkpoint"]["header_sha256"]),
            "state_sha256": str(state["sha256"]) if state else "",
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _header_sha256(path: Path) -> str:
    """Return the hash of a safetensors file's header; empty where it has none."""
    try:
        with reading(path) as file:
            size = file.read(8)
            length = int.from_bytes(size, "little")
            header = size + file.read(length if length <= LONGEST_HEADER else 0)
    except (OSError, ValueError):
        return ""
    return header_sha256(header) if len(header) == 8 + length else ""


def _sha256(path: Path) -> str:
    try:
        return sha256_of([path])
    except (OSError, ValueError):
        return ""


def _modified(path: Path) -> int:
    """Return when a file was last written to; before all others where there is none."""
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return -1
