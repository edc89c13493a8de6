"""The tokenizer that lies in a folder, or in a tokenizer.json by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surgeon.base.errors import CheckpointError, MissingError, PlanError
from surgeon.base.files import link_out, read_regular
from surgeon.base.strict_json import read_json
from surgeon.tokens.edits import require_merge
from surgeon.tokens.tokenizer import (
    ADDED,
    CONFIG,
    DOCUMENT,
    OTHER_FORMS,
    SPECIAL,
    TEMPLATE,
    Tokenizer,
    require_known,
)

# The largest vocabularies in use, of 256 000 tokens with their merges, take 35 MB.
_MOST_BYTES = 100_000_000


def has_tokenizer(folder: Path | None) -> bool:
    """Say whether a folder holds a tokenizer that can be read."""
    return folder is not None and (folder / DOCUMENT).is_file()


def read_tokenizer(place: Path) -> Tokenizer:
    """Return the tokenizer of a folder, or of a tokenizer.json.

    Raises PlanError where there is none, and CheckpointError for one that cannot be read.
    """
    folder = place.parent if place.name.endswith(".json") else place
    document_at = place if place.name.endswith(".json") else place / DOCUMENT
    if not document_at.is_file():
        raise PlanError(f"{folder}: there is no {document_at.name}{_hint(folder)}")
    if place is folder:
        for name in (DOCUMENT, CONFIG, SPECIAL, ADDED, TEMPLATE):
            if problem := link_out(folder / name):
                raise CheckpointError(f"{folder / name}: {problem}")
    document = _read(document_at)
    names = [n for n in (CONFIG, SPECIAL, ADDED) if (folder / n).is_file()]
    made = Tokenizer(
        label=str(folder),
        document=document,
        beside={name: _read(folder / name) for name in names},
        other_forms=tuple(name for name in OTHER_FORMS if (folder / name).is_file()),
        template=read_text(folder / TEMPLATE) if (folder / TEMPLATE).is_file() else None,
    )
    try:
        require_known(made)
        for merge in document["model"].get("merges") or ():
            require_merge(merge)
        numbers = list(made.ids.values())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{document_at}: is no tokenizer: {error!r}") from None
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(f"{document_at}: has tokens without a number")
    if len(set(numbers)) != len(numbers):
        raise CheckpointError(f"{document_at}: has two tokens of one number")
    return made


def read_text(place: Path) -> str:
    """Return the text of a file; raises MissingError, or CheckpointError where it is none."""
    try:
        return read_regular(place, _MOST_BYTES).decode()
    except FileNotFoundError:
        raise MissingError(f"{place}: there is no such file") from None
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{place}: is no text: {error}") from None


def _hint(folder: Path) -> str:
    there = [name for name in OTHER_FORMS if (folder / name).is_file()]
    if there:
        return (
            f", but {there[0]}: load the folder with transformers and save the tokenizer, which "
            "writes one"
        )
    return ", which is what a folder's tokens are read from"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, most_bytes=_MOST_BYTES, allow_infinite=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is no JSON object")
    return found
