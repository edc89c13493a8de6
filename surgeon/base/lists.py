"""One thing or several: what recipes may write either way."""

from __future__ import annotations

from collections.abc import Iterable


def as_list(words: str | Iterable[str]) -> list[str]:
    """Return one word, or several, as a list."""
    return [words] if isinstance(words, str) else list(words)
