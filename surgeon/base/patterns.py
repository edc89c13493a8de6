"""The name-pattern language: match names, capture parts of them, write new names.

`*` is one dotted segment or part of one, `**` any number of segments (none included), `(q|k|v)`
alternatives, `{i}` captures one segment (or part of one), `{rest**}` one or more, `re:` is a
full-match regular expression with named groups. A pattern that names a module selects every
tensor under it, and a destination then keeps what comes after the module's name.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import BuiltinMethodType
from typing import Annotated

from surgeon.base import bounded
from surgeon.base.bounded import Found, Fullmatch, TakesTooLongError
from surgeon.base.errors import Hints, PlanError, UsageError, did_you_mean
from surgeon.base.lists import as_list

Captures = Mapping[str, str]

Name = Annotated[str, "a tensor, module or pattern", {"minLength": 1, "format": "name-pattern"}]
Destination = Annotated[
    str, "a name; captures of the other side in braces", {"minLength": 1, "format": "destination"}
]
Target = Annotated[
    str | list[Name],
    "tensors or modules, by name or pattern; a list is a union, a leading '!' removes",
    {"minLength": 1, "minItems": 1, "format": "name-pattern"},
]

Names = Annotated[
    str | list[Name],
    "a pattern, or several",
    {"minLength": 1, "minItems": 1, "format": "name-pattern"},
]
Destinations = Annotated[
    str | list[Destination],
    "the new name of each; captures of the other side in braces",
    {"minLength": 1, "minItems": 1, "format": "destination"},
]

# Parsing takes a microsecond for each character. A list may hold more.
_LONGEST = 20_000
_SEVERAL = re.compile(r"\*{3,}|\*\*(?:\.\*\*)+")
_TOKEN = re.compile(r"\*\*|\*|\{(?P<capture>[A-Za-z_]\w*)(?P<many>\*\*)?\}|[().|{}]|[^*().|{}]+")
# What follows the name of a module that a pattern matched; not a name that a user can write.
UNDER = "_under_"


def _segment_edge(tokens: Sequence[str], index: int) -> bool:
    return not 0 <= index < len(tokens) or tokens[index] in "(|)"


def _translate(pattern: str) -> str:
    """Return the regular expression that a pattern means."""
    found = list(_TOKEN.finditer(_SEVERAL.sub("**", pattern)))
    tokens = [token[0] for token in found]
    written: list[str] = []
    captured: set[str] = set()
    depth = skip = 0
    for index, token in enumerate(tokens):
        if skip:
            skip -= 1
            continue
        before, after = index - 1, index + 1
        if token == "**":
            starts = _segment_edge(tokens, before)
            ends = _segment_edge(tokens, after)
            if starts and not ends and tokens[after] == ".":
                written.append(r"(?:[^.]+\.)*")
                skip = 1
            elif not starts and tokens[before] == "." and (ends or tokens[after] == "."):
                written.pop()
                written.append(r"(?:\.[^.]+)*")
            else:
                written.append(".*")
        elif token == "*":
            alone = all(
                _segment_edge(tokens, side) or tokens[side] == "." for side in (before, after)
            )
            written.append("[^.]+" if alone else "[^.]*")
        elif name := found[index]["capture"]:
            if name in captured:
                written.append(f"(?P={name})")
            else:
                inside = ".+" if found[index]["many"] else "[^.]+"
                written.append(f"(?P<{name}>{inside})")
                captured.add(name)
        elif token in "()|":
            depth += {"(": 1, ")": -1, "|": 0}[token]
            if depth < 0 or (token == "|" and depth == 0):
                raise UsageError(f"'{pattern}': '{token}' without a '(' before it")
            written.append("(?:" if token == "(" else token)
        elif token in "{}":
            raise UsageError(f"'{pattern}': a capture is written {{name}} or {{name**}}")
        else:
            written.append(re.escape(token))
    if depth:
        raise UsageError(f"'{pattern}': '(' without a ')'")
    return "".join(written)


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> Fullmatch:
    """Return what matches all of a name; raises UsageError, as does that for too long a name."""
    if len(pattern) > _LONGEST:
        raise UsageError(f"'{pattern[:60]}...' is longer than {_LONGEST:,} characters")
    written, flags = pattern[3:], 0
    if not pattern.startswith("re:"):
        written, flags = f"{_translate(pattern)}(?:\\.(?P<{UNDER}>.+))?", re.DOTALL
    try:
        found = bounded.compiled(written, flags)
    except TakesTooLongError as error:
        raise UsageError(f"'{pattern}' {error}") from None
    except ValueError as error:
        raise UsageError(f"'{pattern}' is not a regular expression: {error}") from None

    def match(name: str) -> Found | None:
        try:
            return found(name)
        except TakesTooLongError as error:
            raise UsageError(f"'{pattern}' {error}") from None

    # Python's own where it is known to be fast, which needs no guard.
    return found if isinstance(found, BuiltinMethodType) else match


def check(pattern: str) -> None:
    """Raise UsageError where a pattern, perhaps with a leading '!' or '@', is malformed."""
    if pattern.startswith("@"):
        if pattern not in SPECIAL:
            raise UsageError(f"'{pattern}' is unknown{did_you_mean(pattern, SPECIAL)}")
    else:
        compiled(pattern.removeprefix("!"))


SPECIAL = ("@new", "@vectors")


def match(pattern: str, name: str) -> Captures | None:
    """Return what a pattern captures in a name, None where it does not match."""
    found = compiled(pattern)(name)
    return found.groupdict() if found else None


def braced(captures: Captures) -> Captures:
    """Return what a pattern's braces captured, without what came under a module's name."""
    return {name: captured for name, captured in captures.items() if name != UNDER}


def captured(pattern: str, names: Iterable[str]) -> list[tuple[str, Captures]]:
    """Return the names that a pattern matches, each with what it captures."""
    fullmatch = compiled(pattern)
    return [(name, found.groupdict()) for name in names if (found := fullmatch(name))]


def modules(names: Iterable[str]) -> set[str]:
    """Return every module that holds one of these tensors, directly or deeper."""
    found: set[str] = set()
    for name in names:
        while (name := name.rpartition(".")[0]) and name not in found:
            found.add(name)
    return found


def select(
    target: str | Sequence[str],
    names: Collection[str],
    *,
    special: Mapping[str, Collection[str]],
    optional: bool = False,
    hint: Hints | None = None,
) -> list[str]:
    """Return the names that a target selects, in the order of `names`.

    `special` says what `@new` and `@vectors` are. Raises PlanError, a line for each pattern that
    matches nothing, unless `optional`; `hint` is shared by whoever reports several such errors.
    """
    chosen: set[str] = set()
    removed: set[str] = set()
    unmatched = []
    for pattern in as_list(target):
        plain = pattern.removeprefix("!")
        is_special = plain in special
        found = set(special[plain]) if is_special else set(filter(compiled(plain), names))
        (removed if plain != pattern else chosen).update(found)
        if not found:
            unmatched.append(plain)
    if unmatched and not optional:
        raise PlanError(*nothing_matches(unmatched, names, hint))
    chosen -= removed
    if not chosen and not optional:
        raise PlanError(f"{target!r} removes everything that it selects")
    return [name for name in names if name in chosen]


def hints(names: Collection[str]) -> Hints:
    """Return hints at names and the modules that hold them."""
    return Hints([*names, *modules(names)])


def nothing_matches(
    patterns: Iterable[str], names: Collection[str], hint: Hints | None = None
) -> Iterator[str]:
    """Yield a line for each of the patterns that says so, with the nearest names."""
    hint = hint or hints(names)
    empty = {"@new": "this recipe has created nothing", "@vectors": "no tensor has rank <= 1"}
    for pattern in patterns:
        if pattern in SPECIAL:
            yield f"'{pattern}' matches nothing: {empty[pattern]}"
        elif pattern.startswith("re:") and (found := min(
            filter(compiled(pattern), modules(names)), default=None
        )):  # fmt: skip
            yield (
                f"no tensor matches '{pattern}', which is held to whole names of tensors, and "
                rf"'{found}' is a module; '\..*' at the end matches what is under it"
            )
        else:
            yield f"no tensor matches '{pattern}'{hint(pattern)}"


_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _calculate(node: ast.expr, captures: Captures) -> int:
    match node:
        case ast.Constant(value=int(value)) if type(value) is int:
            return value
        case ast.Name(id=name) if name in captures:
            if not captures[name].isdecimal():
                raise PlanError(f"{{{name}}} is '{captures[name]}', not a number to calculate with")
            return int(captures[name])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            a, b = _calculate(left, captures), _calculate(right, captures)
            if not b and isinstance(op, ast.FloorDiv | ast.Mod):
                raise PlanError("a division by zero")
            return int(_OPERATIONS[type(op)](a, b))
    there = ", ".join(f"{{{name}}}" for name in braced(captures)) or "none"
    raise PlanError(
        f"'{ast.unparse(node)}' is neither a capture nor arithmetic with captures; there are "
        f"{there}"
    )


_BRACES = re.compile(r"\{([^{}]*)\}")


def check_destination(destination: str) -> None:
    """Raise UsageError where a destination is malformed."""
    rest = _BRACES.sub("", destination)
    if found := re.search(r"[*(){}|]", rest):
        raise UsageError(
            f"'{destination}': '{found[0]}' has no meaning in a destination; "
            "capture what varies as {name} on the other side"
        )
    for inside in _BRACES.findall(destination):
        try:
            ast.parse(inside.strip().removesuffix("**"), mode="eval")
        except SyntaxError:
            raise UsageError(f"'{destination}': {{{inside}}} is not a capture") from None


@lru_cache(maxsize=4096)
def _template(destination: str) -> tuple[tuple[str, str | None], ...]:
    """Split a destination into pairs of literal text and of what stands in braces after it."""
    parts = _BRACES.split(destination)
    inside = [part.strip().removesuffix("**") for part in parts[1::2]]
    return tuple(zip(parts[::2], [*inside, None], strict=True))


def used(destination: str) -> list[str]:
    """Return the captures that a destination uses, each once."""
    return list(
        dict.fromkeys(
            node.id
            for inside in _BRACES.findall(destination)
            for node in ast.walk(ast.parse(inside.strip().removesuffix("**"), mode="eval"))
            if isinstance(node, ast.Name)
        )
    )


def expand(destination: str, captures: Captures) -> str:
    """Write a name with what the other side captured; keeps what came under a module's name."""
    written = ""
    for literal, inside in _template(destination):
        written += literal
        if inside is not None:
            captured = captures.get(inside)
            written += _number(inside, captures, destination) if captured is None else captured
    rest = captures.get(UNDER)
    return written if rest is None else f"{written}.{rest}"


def _number(inside: str, captures: Captures, destination: str) -> str:
    """Return what arithmetic with captures comes to."""
    value = _calculate(ast.parse(inside, mode="eval").body, captures)
    if value < 0:
        raise PlanError(f"{{{inside}}} is {value} in '{destination}'")
    return str(value)


def under(target: str | Sequence[str], name: str) -> str | None:
    """Return what of a selected name comes after the module that a target names.

    None where a pattern of the target matches the tensor's own name.
    """
    shortest: str | None = name
    for pattern in as_list(target):
        if pattern in SPECIAL:
            return None
        if not pattern.startswith("!") and (captures := match(pattern, name)) is not None:
            rest = captures.get(UNDER)
            if rest is None:
                return None
            shortest = min(shortest or rest, rest, key=len)
    return shortest
