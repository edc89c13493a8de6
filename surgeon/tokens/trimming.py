"""What has to stay of a vocabulary so that text is cut into the tokens that are wanted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

from surgeon.base.errors import PlanError, listed
from surgeon.tokens.edits import parts_of, result_of
from surgeon.tokens.tokenizer import Tokenizer

_LINES = 1000
_CHARACTERS = 1_000_000
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def used_in(tokenizer: Tokenizer, text: str) -> set[str]:
    """Return the tokens that a text is cut into, line by line."""
    found: set[int] = set()
    for lines in _portions(text):
        found.update(*tokenizer.pieces_of_each(lines))
    return {tokenizer.tokens[number] for number in found}


def named_in_templates(tokenizer: Tokenizer) -> set[str]:
    """Return the added tokens that a chat template writes, which would be cut as text without."""
    added = (str(entry["content"]) for entry in tokenizer.added)
    return {token for token in added if any(token in text for text in tokenizer.templates)}


def needed(tokenizer: Tokenizer, wanted: Collection[str]) -> set[str]:
    """Return the wanted tokens with all that makes them, and what text cannot do without.

    That are special tokens, those put around texts, bytes that characters fall back to, and the
    parts that merges put a token together from.
    """
    found = {*wanted} | tokenizer.specials | set(_around(tokenizer.document.get("post_processor")))
    found |= set(_bytes(tokenizer))
    if tokenizer.kind == "BPE":
        made = _Merges(tokenizer)
        for token in [token for token in found if token in tokenizer.model_ids]:
            found |= made.parts(token) or set()
    return found & tokenizer.ids.keys()


def unreachable(tokenizer: Tokenizer, tokens: Iterable[str]) -> list[str]:
    """Return tokens that no merges make."""
    if tokenizer.kind != "BPE" or tokenizer.document["model"].get("ignore_merges"):
        return []
    made, apart = _Merges(tokenizer), {entry["content"] for entry in tokenizer.added}
    return sorted(
        token
        for token in tokens
        if token in tokenizer.model_ids
        and token not in apart
        and token not in _BYTES
        and made.parts(token) is None
    )


def lost_characters(tokenizer: Tokenizer, kept: Collection[str]) -> list[str]:
    """Return the characters that had a token and have none, where no bytes take their place."""
    if any(True for _ in _bytes(tokenizer)):
        return []
    prefix = str(tokenizer.document["model"].get("continuing_subword_prefix") or "")
    gone = (token.removeprefix(prefix) if len(token) > 1 else token
            for token in tokenizer.model_ids.keys() - set(kept))  # fmt: skip
    return sorted({token for token in gone if len(token) == 1})


def require_same_pieces(before: Tokenizer, after: Tokenizer, text: str) -> None:
    """Raise PlanError where a text is cut into other pieces than before."""
    for lines in _portions(text):
        pairs = zip(lines, before.pieces_of_each(lines), after.pieces_of_each(lines), strict=True)
        for line, old, new in pairs:
            was, now = ([one.tokens[n] for n in ids] for one, ids in ((before, old), (after, new)))
            if was != now:
                raise PlanError(
                    f"{line[:60]!r} would be cut into {listed(now, 8)}, and was into "
                    f"{listed(was, 8)}"
                )


def _portions(text: str) -> Iterator[list[str]]:
    """Yield the lines of a text, of each portion once; PlanError for one that is too long.

    The library takes some 60 bytes for each character that it cuts.
    """
    start = 0
    while start < len(text):
        stop = start + _CHARACTERS
        stop = len(text) if stop >= len(text) else text.rfind("\n", start, stop) + 1
        if not stop:
            raise PlanError(
                f"the text has a line of more than {_CHARACTERS:,} characters; break it into lines"
            )
        lines = [*dict.fromkeys(text[start:stop].splitlines(keepends=True))]
        yield from (lines[first : first + _LINES] for first in range(0, len(lines), _LINES))
        start = stop


def _around(processor: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the tokens that are put around texts."""
    if not processor:
        return
    for inner in processor.get("processors") or []:
        yield from _around(inner)
    for entry in (processor.get("special_tokens") or {}).values():
        yield from entry["tokens"]
    for word in ("sep", "cls"):
        if isinstance(processor.get(word), list):
            yield processor[word][0]


def _bytes(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the tokens that stand for bytes, of which any text can be made."""
    if tokenizer.document["model"].get("byte_fallback"):
        yield from (token for token in _BYTES if token in tokenizer.model_ids)
    parts = ("pre_tokenizer", "decoder", "normalizer")
    if any(is_byte_level(tokenizer.document.get(part)) for part in parts):
        yield from (token for token in alphabet() if token in tokenizer.model_ids)


def is_byte_level(part: Any) -> bool:
    if isinstance(part, dict):
        return part.get("type") == "ByteLevel" or any(map(is_byte_level, part.values()))
    return isinstance(part, list) and any(map(is_byte_level, part))


def alphabet() -> Sequence[str]:
    """Return the characters that GPT-2 writes for bytes: printable ones as they are.

    https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


class _Merges:
    """The merges of a BPE model by what they put together."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        model = tokenizer.document["model"]
        self._ids = tokenizer.model_ids
        self._prefix = str(model.get("continuing_subword_prefix") or "")
        self._suffix = str(model.get("end_of_word_suffix") or "")
        self._made = {
            parts_of(merge): (rank, result_of(merge, model))
            for rank, merge in enumerate(model["merges"])
        }

    def parts(self, token: str) -> set[str] | None:
        """Return all that merging the characters of a token makes; None where it is not the token.

        Within a text, what is merged inside a piece is the same: nothing is merged across its ends.
        """
        symbols = self._characters(token)
        found = {symbol for symbol in symbols if symbol in self._ids}
        # Places of symbols that are merged into the one before become None.
        left: list[str | None] = [*symbols]
        before, after = [*range(-1, len(symbols) - 1)], [*range(1, len(symbols) + 1)]
        waiting: list[tuple[int, int, tuple[str, str]]] = []

        def note(place: int) -> None:
            follows = after[place] if place >= 0 else len(left)
            if follows < len(left):
                pair = (str(left[place]), str(left[follows]))
                if pair in self._made:
                    heappush(waiting, (self._made[pair][0], place, pair))

        for place in range(len(symbols)):
            note(place)
        count = len(symbols)
        while waiting:
            _, place, pair = heappop(waiting)
            follows = after[place]
            if follows >= len(left) or (left[place], left[follows]) != pair:
                continue  # one of the two was merged since
            made = self._made[pair][1]
            left[place], left[follows] = made, None
            after[place] = after[follows]
            if after[place] < len(left):
                before[after[place]] = place
            found.add(made)
            count -= 1
            note(before[place])
            note(place)
        return found if count == 1 and left[0] == token and token in self._ids else None

    def _characters(self, token: str) -> list[str]:
        """Return the characters of a token as a word begins and ends with them."""
        ends = bool(self._suffix) and token.endswith(self._suffix)
        goes_on = bool(self._prefix) and token.startswith(self._prefix) and token != self._prefix
        plain = token.removesuffix(self._suffix) if ends else token
        plain = plain.removeprefix(self._prefix) if goes_on else plain
        symbols = [char if not place and not goes_on else f"{self._prefix}{char}"
                   for place, char in enumerate(plain)]  # fmt: skip
        if ends and symbols:
            symbols[-1] += self._suffix
        return symbols
