"""How each tensor fares: kept, changed, new or dropped, and in words what was done to it.

Of a plan, or of the documents that tell of one: the manifest, and what `plan --json` prints.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

from surgeon.base.folding import folded, times
from surgeon.base.regions import split_block
from surgeon.base.tables import json_text, shape_text
from surgeon.draft.registry import OPS
from surgeon.lazy import TensorSpec
from surgeon.recipe.lineage import Change

_VERBS = {"rename": "renamed from", "copy": "copied from", "tie": "tied to"}
# A value of a config takes no more of a line; labels can be a thousand.
_WIDEST = 60
# Deeper than any network; a name may have thousands of dots.
_DEEPEST = 64
# How a tensor fares; the command line has a colour for each, and pictures have.
NEW, CHANGED, DROPPED, KEPT = "+", "~", "-", "="
Changes = Sequence[Change]
Specs = Mapping[str, TensorSpec]


class Fate(NamedTuple):
    """One tensor of the result, or one that is dropped; `what` is empty where it is kept.

    All cells are text, so that layers that fare alike can be folded into one. `was_dtype` and
    `was_shape` are empty where nothing was before, or nobody knows what. `new` are the blocks that
    were created, as slices: `7:8`, or `:` for all of it.
    """

    name: str
    was_dtype: str
    was_shape: str
    dtype: str
    shape: str
    what: str
    sign: str
    new: str
    size_bytes: str


def alike(found: Iterable[Fate]) -> list[Fate]:
    """Return fates, one for layers that fare alike; of what a step's numbers are, the spans."""
    return [*map(Fate._make, folded(found, within=[Fate._fields.index("what")]))]


@dataclass(frozen=True)
class Told:
    """What there is to know of a result: `before` and `dropped` are None where it was not told."""

    tensors: Specs
    lineage: Mapping[str, Changes]
    before: Specs | None
    dropped: Sequence[str] | None
    aliases: Mapping[str, str]


def fates(told: Told, *, is_short: bool) -> list[Fate]:
    """Return how each tensor fares, those that are dropped last."""
    found = []
    for name, spec in told.tensors.items():
        changes = told.lineage[name]
        earlier = earlier_name(name, changes)
        what = [_in_words(change, name, is_short=is_short) for change in changes]
        if what and name in told.aliases:
            what.append(f"tied to {told.aliases[name]}")
        if told.before is None:
            old, is_old = spec_before(spec, changes), earlier is not None
        else:
            old = told.before.get(earlier or "")
            is_old = old is not None
        sign = _sign(changes, told.lineage, is_old=is_old)
        # A new layer was not what had its number before.
        was = None if sign == NEW else old if changes else spec
        found.append(
            Fate(
                name,
                was.dtype if was else "",
                shape_text(was.shape) if was else "",
                spec.dtype,
                shape_text(spec.shape),
                "; ".join(dict.fromkeys(what)),
                sign,
                _new(changes),
                str(0 if name in told.aliases else spec.size_bytes),
            )
        )
    for name in told.dropped or ():
        was = (told.before or {}).get(name)
        kind = (was.dtype, shape_text(was.shape)) if was else ("", "")
        size = str(was.size_bytes if was else 0)
        found.append(Fate(name, *kind, "", "", "dropped", DROPPED, "", size))
    return found


def _sign(changes: Changes, lineage: Mapping[str, Changes], *, is_old: bool) -> str:
    if not changes:
        return KEPT
    for change in reversed(changes):
        if change.op in OPS and OPS[change.op].group == "structure":
            if change.new:
                return NEW
            # What moved on leaves its name, for another or for none; what was copied stays there.
            if len(change.from_) == 1 and lineage.get(change.from_[0]) != ():
                return CHANGED
    return CHANGED if is_old else NEW


def _new(changes: Changes) -> str:
    blocks = [split_block(block)[1] or ":" for change in changes for block in change.new]
    return " ".join(dict.fromkeys(blocks))


# Steps after which a tensor has the dtype and the shape that it had before, besides all merges.
_KEEPING = {
    "add", "clamp", "fill", "lora_merge", "multiply", "reinit", "rename", "scale", "tie", "untie",
    "weight_align",
}  # fmt: skip


def spec_before(spec: TensorSpec, changes: Changes) -> TensorSpec | None:
    """Return what a tensor was before, as far as its lineage alone tells; None where it does not.

    What grew by whole rows or columns was smaller by those.
    """
    shape = list(spec.shape)
    for change in changes:
        if change.op == "widen":
            for block in change.new:
                slices = (split_block(block)[1] or "").split(",")
                grown = [(dim, part) for dim, part in enumerate(slices) if part not in ("", ":")]
                if len(grown) != 1 or grown[0][0] >= len(shape):
                    return None
                start, _, stop = grown[0][1].partition(":")
                shape[grown[0][0]] -= int(stop) - int(start)
        elif not (change.op in _KEEPING or (change.op in OPS and OPS[change.op].group == "merge")):
            return None
    return TensorSpec(spec.dtype, tuple(shape)) if min(shape, default=0) >= 0 else None


def earlier_name(name: str, changes: Changes) -> str | None:
    """Return what the input calls a tensor; None where it was made anew, as a copy is."""
    for change in reversed(changes):
        if not change.from_:
            continue
        if change.op == "rename":
            name = change.from_[0]
        elif change.op in OPS and OPS[change.op].group == "structure" and name not in change.from_:
            return None
    return name


# Modules, one under the other


@dataclass(frozen=True)
class Line:
    """A line of a tree: a tensor, or a module; `is_kept` where all in it is, and folded away.

    It stands for `count` tensors of `size_bytes` in all; of tied ones, the owner counts.
    """

    depth: int
    title: str
    count: int
    size_bytes: int
    fate: Fate | None = None
    is_kept: bool = False


@dataclass(frozen=True)
class _Leaf:
    fate: Fate
    count: int

    @property
    def size_bytes(self) -> int:
        return int(self.fate.size_bytes) * self.count


_Branch = dict[str, Any]


def tree(found: Iterable[Fate]) -> list[Line]:
    """Return modules and tensors under each other; layers that fare alike are one.

    So is a module in which everything is kept.
    """
    rows = list(found)
    # A name may have in it what looks as if it were of several.
    own = {fate.name for fate in rows}
    root: _Branch = {}
    for fate in alike(rows):
        *modules, leaf = fate.name.split(".", _DEEPEST)
        branch = root
        for module in modules:
            branch = branch.setdefault(f"{module}.", {})  # a tensor may be called like a module
        # One name may be of a tensor that is dropped, and of one that takes its place.
        count = 1 if fate.name in own else times(fate.name)
        branch.setdefault(leaf, []).append(_Leaf(fate, count))
    return list(_lines(root, 0))


def _lines(branch: _Branch, depth: int) -> Iterator[Line]:
    for name, content in branch.items():
        if isinstance(content, list):
            for leaf in content:
                yield Line(depth, name, leaf.count, leaf.size_bytes, leaf.fate)
            continue
        title = name
        while len(content) == 1 and isinstance(inner := next(iter(content.values())), dict):
            title, content = f"{title}{next(iter(content))}", inner
        below = _below(content)
        sums = (sum(leaf.count for leaf in below), sum(leaf.size_bytes for leaf in below))
        if all(leaf.fate.sign == KEPT for leaf in below) and len(below) > 1:
            yield Line(depth, title.removesuffix("."), *sums, is_kept=True)
            continue
        if len(content) == 1:  # a module of one tensor is no level of its own
            yield from _lines({f"{title}{next(iter(content))}": below}, depth)
            continue
        yield Line(depth, title.removesuffix("."), *sums)
        yield from _lines(content, depth + 1)


def _below(branch: _Branch) -> list[_Leaf]:
    found: list[_Leaf] = []
    for content in branch.values():
        found += content if isinstance(content, list) else _below(content)
    return found


# In words


def _in_words(change: Change, name: str, *, is_short: bool) -> str:
    """Return one item of a lineage in words."""
    inits = f" ({', '.join(change.init)})" if change.init else ""
    words = [f"{_block(block)} new{inits}".lstrip() for block in change.new]
    if change.from_:
        sources = ", ".join(_source(source, name, is_short=is_short) for source in change.from_)
        merges = change.op in OPS and OPS[change.op].group == "merge"
        if change.into:
            verb = f"{change.into}: {change.op} of"
        else:
            verb = _VERBS.get(change.op, f"{change.op} {'with' if merges else 'from'}")
        words.append(f"{verb} {sources}")
    if change.parameters:
        given = [f"{word} {short_json(value)}" for word, value in change.parameters.items()]
        words = [f"{', '.join(words)} ({', '.join(given)})"]
    return ", ".join(words) or change.op


def _source(source: str, name: str, *, is_short: bool) -> str:
    """Return a tensor that another was made from; of models, their names do if its is the same."""
    model, colon, own = source.partition(":")
    return model if is_short and colon and own == name else source


def _block(block: str) -> str:
    """Return `rows 7:8` for `fc.weight[7:8]`, nothing for a whole tensor."""
    _, slices = split_block(block)
    if slices is None:
        return ""
    parts = slices.split(",")
    if len(parts) == 1:
        return f"rows {slices}"
    return f"columns {parts[1]}" if len(parts) == 2 and parts[0] == ":" else f"[{slices}]"


def short_json(value: object) -> str:
    """Return a value of a config on part of a line."""
    text = json_text(valid(value))
    if len(text) <= _WIDEST:
        return text
    if isinstance(value, dict | list):
        return f"({len(value):,} entries)"
    return f"{text[: _WIDEST - 3]}..."


def valid(value: Any) -> Any:
    """Return a value of a config as JSON can hold it: transformers writes infinities, too."""
    match value:
        case float() if not isfinite(value):
            return json.dumps(value)
        case dict():
            return {key: valid(item) for key, item in value.items()}
        case list() | tuple():
            return [valid(item) for item in value]
    return value
