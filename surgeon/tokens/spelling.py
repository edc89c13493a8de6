"""Tokens of two tokenizers that stand for the same text, however each writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from surgeon.tokens.tokenizer import Tokenizer
from surgeon.tokens.trimming import alphabet, is_byte_level

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "▁"


def counterparts(own: Tokenizer, other: Tokenizer) -> Mapping[str, str]:
    """Return {token of `other`: the token of `own` that stands for the same}.

    That is the one with the same role, such as the end of a text, or else of the same bytes.
    """
    found = {
        theirs: own.roles[role]
        for role, theirs in reversed([*other.roles.items()])
        if own.roles.get(role) in own.ids and theirs in other.ids
    }
    taken = {*found.values()}
    ours = _spelled(own)
    for spelling, token in _spelled(other).items():
        match = ours.get(spelling)
        if token not in found and match is not None and match not in taken:
            found[token] = match
    return found


def _spelled(tokenizer: Tokenizer) -> dict[bytes | str, str]:
    """Return {what a token stands for: the token}; of tokens alike, one that is no bare byte."""
    parts = ("pre_tokenizer", "decoder", "normalizer")
    by_bytes = any(is_byte_level(tokenizer.document.get(part)) for part in parts)
    byte_of = {char: byte for byte, char in enumerate(alphabet())} if by_bytes else {}
    added = {entry["content"] for entry in tokenizer.added}
    prefix = str(tokenizer.document["model"].get("continuing_subword_prefix") or "")
    found: dict[bytes | str, str] = {}
    for token in tokenizer.ids:
        spelling = token if token in added else _bytes_of(token, byte_of, prefix)
        if spelling not in found or _BYTE.fullmatch(found[spelling]):
            found[spelling] = token
    return found


def _bytes_of(token: str, byte_of: Mapping[str, int], prefix: str) -> bytes:
    if byte_of and all(char in byte_of for char in token):
        return bytes(byte_of[char] for char in token)
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    if prefix:  # where words begin, the others write a space
        return (
            token.removeprefix(prefix).encode()
            if token.startswith(prefix)
            else b" " + token.encode()
        )
    return token.replace(_SPACE, " ").encode()
