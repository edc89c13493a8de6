"""Where recipes are: files, and those that come with surgeon, by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from surgeon.base import strict_json
from surgeon.base.errors import MissingError, UsageError, did_you_mean

# Ten times the largest recipe that a program would write.
MOST_BYTES = 100_000_000


def read_json(path: Path, label: str) -> Any:
    """Read a JSON file strictly; raises UsageError, MissingError where there is none."""
    try:
        return strict_json.read_json(path, most_bytes=MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"{label}: cannot be read: {error.strerror}") from None
    except OSError as error:
        raise UsageError(f"{label}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{label}: {error}") from None


def ready_made() -> dict[str, Path]:
    """Return the recipes that come with surgeon, by name."""
    beside = Path(__file__).parents[1] / "recipes"  # where a wheel puts them
    folder = beside if beside.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def source_of(name: str) -> str:
    """Return a ready-made recipe as its file has it."""
    return ready_made()[name].read_text("utf-8")


def find(location: str) -> Path:
    """Return the path of a recipe; raises UsageError where there is none."""
    if os.path.exists(location):  # noqa: PTH110 (Path.exists raises for names that are too long)
        return Path(location)
    known = ready_made()
    if location in known:
        return known[location]
    hint = did_you_mean(location, known)
    raise UsageError(f"{location}: no such recipe file{hint or '; `surgeon recipes` lists ours'}")
