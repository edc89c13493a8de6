"""Texts as the tokenizer of a model folder takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from surgeon.base.errors import PlanError

_FILE = "tokenizer.json"


def token_ids(folder: Path | None, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of texts, with the special tokens that the tokenizer adds.

    Raises PlanError where there is no tokenizer, or nothing that reads it.
    """
    if folder is None or not (folder / _FILE).is_file():
        where = f"there is no {_FILE} in {folder}" if folder else "the input is no model folder"
        raise PlanError(f"texts need a tokenizer, and {where}")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise PlanError(
            "texts are taken apart by the package tokenizers: pip install "
            "'surgeon-checkpoints[tokenizers]'"
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(folder / _FILE))
    except Exception as error:  # the library raises plain Exception
        raise PlanError(f"{folder / _FILE}: {error}".replace("\n", " ")) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
