"""The one reader of JSON: it bounds everything that Python's json lets through.

Refused, with a ValueError that says what: what is longer or nested deeper than is sensible, a byte
order mark, UTF-16, NaN and infinities, numbers beyond float64, a name twice in one object, halves
of surrogate pairs.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from surgeon.base.errors import listed
from surgeon.base.files import read_regular

# 100 MB of JSON takes 8 s and 1.3 GB to parse; 100 000 tensors need 12 MB.
MOST_BYTES = 25_000_000
# 25 MB of `{},` become 1.3 GB. A tensor takes 7 in a header and 10 bytes for each in a manifest.
_MOST_VALUES = 5_000_000
_LEAST_BYTES = 8
# What reads recipes and configs goes down by calling itself, a few calls for each level.
DEEPEST = 100
# The largest float64 has as many digits.
_LARGEST = 1.7976931348623157e308
_DIGITS = 309
_NO_BRACKETS = bytes(code for code in range(256) if code not in b"[]{}")
_ONLY_DIGITS = bytes(0x30 if code in b"0123456789" else 0x20 for code in range(256))
_QUOTE, _BACKSLASH = b'"\\'
_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def read_json(path: Path, *, most_bytes: int = MOST_BYTES, allow_infinite: bool = False) -> Any:
    """Return what a JSON file holds; raises ValueError, or OSError where it cannot be read."""
    return parse_json(
        read_regular(path, most_bytes), most_bytes=most_bytes, allow_infinite=allow_infinite
    )


def parse_object(
    text: bytes,
    *,
    most_bytes: int = MOST_BYTES,
    deepest: int = DEEPEST,
    allow_surrogates: bool = False,
) -> dict[str, Any]:
    """Return a JSON object that starts with the first byte; raises ValueError for anything else."""
    if not text.startswith(b"{"):
        raise ValueError(f"found {text[:4]!r} where the JSON object should start, expected '{{'")
    value: dict[str, Any] = parse_json(
        text, most_bytes=most_bytes, deepest=deepest, allow_surrogates=allow_surrogates
    )
    return value


def parse_json(
    text: bytes,
    *,
    most_bytes: int = MOST_BYTES,
    deepest: int = DEEPEST,
    allow_infinite: bool = False,
    allow_surrogates: bool = False,
) -> Any:
    """Return the value of a JSON text; raises ValueError for what is refused.

    `allow_infinite` lets NaN and the infinities through, which transformers writes into configs,
    and `allow_surrogates` halves of pairs, which are how Python spells a file's name that is not
    UTF-8.
    """
    if len(text) > most_bytes:
        raise ValueError(f"longer than {most_bytes:,} bytes")
    most_values = max(_MOST_VALUES, len(text) // _LEAST_BYTES)
    if text.count(b",") + text.count(b"[") + text.count(b"{") > most_values:
        raise ValueError(f"holds more than {most_values:,} values")
    hooks: dict[str, Any] = {
        "parse_constant": _NOT_FINITE.__getitem__ if allow_infinite else _no_constant,
        "parse_float": _finite,
    }
    if b"0" * _DIGITS in text.translate(_ONLY_DIGITS):
        hooks["parse_int"] = _whole
    try:
        decoded = text.decode()
        _require_shallow(text, deepest)
        value = json.loads(decoded, **hooks)
        if type(value) is not dict or _has_more_keys(decoded, value):
            json.loads(decoded, **hooks, object_pairs_hook=_unique)
        if "\\u" in decoded and not allow_surrogates:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{where}: {error.msg}{_habit(error.doc, error.pos)}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is not Unicode") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _habit(text: str, place: int) -> str:
    """Return a hint where a text is not JSON by a habit from Python or JavaScript."""
    rest, before = text[place:].lstrip(), text[:place].rstrip()
    if before.endswith(",") and rest[:1] in ("]", "}"):
        return "; no comma goes before a closing bracket"
    if rest.startswith(("//", "/*", "#")):
        return "; JSON has no comments"
    if rest.startswith("'"):
        return "; strings are in double quotes"
    words = {"True": "true", "False": "false", "None": "null"}
    return next((f"; JSON writes {w}" for p, w in words.items() if rest.startswith(p)), "")


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if abs(value) > _LARGEST:
        raise _beyond(number)
    return value


def _whole(number: str) -> int:
    # As many digits take Python seconds, so it refuses them by itself.
    if len(number) > 2 * _DIGITS or abs(value := int(number)) > _LARGEST:
        raise _beyond(number)
    return value


def _beyond(number: str) -> ValueError:
    shown = number if len(number) <= 20 else f"{number[:20]}..."
    return ValueError(f"{shown} is beyond the largest number")


def _require_shallow(text: bytes, deepest: int) -> None:
    """Raise for what is nested too deeply; brackets in strings count as if they were none."""
    brackets = text.translate(None, _NO_BRACKETS)
    for _ in range(deepest):
        if not brackets:
            return
        fewer = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    if brackets and _is_deeper(text, deepest):
        raise ValueError("nested too deeply")


def _is_deeper(text: bytes, deepest: int) -> bool:
    """Say whether a text is nested deeper, character by character."""
    depth = 0
    in_string = is_escaped = False
    for code in text:
        if in_string:
            if is_escaped:
                is_escaped = False
            elif code == _BACKSLASH:
                is_escaped = True
            else:
                in_string = code != _QUOTE
        elif code == _QUOTE:
            in_string = True
        elif code in b"[{":
            depth += 1
            if depth > deepest:
                return True
        elif code in b"]}":
            depth -= 1
    return False


def _has_more_keys(text: str, value: dict[str, Any]) -> bool:
    """Say whether JSON may hold more keys than became those of an object and the objects in it.

    Each has a colon. Strings may hold colons too, and objects deeper inside keys: then it is for
    `_unique` to say, which takes twice as long. JSON in a string, as in our own metadata, is told
    by its escaped quotes.
    """
    in_strings = text.count('\\":') if "\\" in text and "\\\\" not in text else 0
    found = len(value) + sum([len(item) for item in value.values() if type(item) is dict])
    return text.count(":") - in_strings != found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = sorted(name for name, number in counts.items() if number > 1)
        raise ValueError(f"{listed(twice)} is there twice in one object")
    return values
