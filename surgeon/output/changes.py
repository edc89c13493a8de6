"""What a plan makes of each tensor, in words: as a table, and as a tree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

from surgeon.base.folding import folded, times
from surgeon.base.regions import split_block
from surgeon.base.screen import screen
from surgeon.base.tables import json_text, plural, shape_text, table
from surgeon.draft import ties
from surgeon.draft.registry import OPS
from surgeon.output.opened import Opened
from surgeon.recipe.lineage import Change
from surgeon.recipe.plan import Plan

_VERBS = {"rename": "renamed from", "copy": "copied from", "tie": "tied to"}
# A value of a config takes no more of a line; labels can be a thousand.
_WIDEST = 60
# Deeper than any network; a name may have thousands of dots.
_DEEPEST = 64
# How a tensor fares; the command line has a colour for each.
NEW, CHANGED, DROPPED, KEPT = "+", "~", "-", "="


def lost(plan: Plan) -> list[str]:
    """Return the input's tensors that are in no tensor of the output, under whatever name."""
    if not plan.dropped:
        return []
    used = {
        name for changes in plan.lineage.values() for change in changes for name in change.from_
    }
    return [name for name in plan.dropped if name not in used]


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


class _Row(NamedTuple):
    """One tensor of the result, or one that is dropped; `what` is empty where it is kept."""

    name: str
    dtype: str
    shape: str
    what: str
    sign: str


def _rows(opened: Opened, *, is_short: bool) -> list[_Row]:
    plan, before = opened.plan, opened.input.tensors
    aliases = ties(plan.tensors)
    rows = []
    for name, tensor in plan.tensors.items():
        changes = plan.lineage[name]
        old = before.get(_earlier_name(name, changes) or "")
        spec, was = tensor.spec, old.spec if old else tensor.spec
        what = [_change(change, name, is_short=is_short) for change in changes]
        if what and name in aliases:
            what.append(f"tied to {aliases[name]}")
        dtype = _before_after(was.dtype, spec.dtype)
        shape = _before_after(shape_text(was.shape), shape_text(spec.shape))
        sign = _sign(changes, plan, is_old=old is not None)
        rows.append(_Row(name, dtype, shape, "; ".join(dict.fromkeys(what)), sign))
    for name in lost(plan):
        spec = before[name].spec
        rows.append(_Row(name, spec.dtype, shape_text(spec.shape), "dropped", DROPPED))
    return rows


def _sign(changes: Sequence[Change], plan: Plan, *, is_old: bool) -> str:
    if not changes:
        return KEPT
    for change in reversed(changes):
        if change.op in OPS and OPS[change.op].group == "structure":
            if change.new:
                return NEW
            # What moved on leaves its name, for another or for none; what was copied stays there.
            if len(change.from_) == 1 and plan.lineage.get(change.from_[0]) != ():
                return CHANGED
    return CHANGED if is_old else NEW


def changes_table(opened: Opened) -> str:
    """Return a row for everything that changes; on a terminal, one for layers that fare alike."""
    is_short = screen().is_terminal
    found = _rows(opened, is_short=is_short)
    rows: list[tuple[str, ...]] = [row[:4] for row in found if row.sign != KEPT]
    if is_short:
        rows = folded(rows)
    return table(("name", "dtype", "shape", "what"), rows) if rows else ""


_Branch = dict[str, Any]


def changes_tree(opened: Opened) -> str:
    """Return modules and tensors under each other, each with a sign for how it fares.

    Layers that fare alike are one; so is a module in which everything is kept.
    """
    root: _Branch = {}
    for row in map(_Row._make, folded(_rows(opened, is_short=True))):
        *modules, leaf = row.name.split(".", _DEEPEST)
        branch = root
        for module in modules:
            branch = branch.setdefault(f"{module}.", {})  # a tensor may be called like a module
        # One name may be of a tensor that is dropped, and of one that takes its place.
        branch.setdefault(leaf, []).append(row)
    lines: list[tuple[str, ...]] = []
    _add_lines(root, 0, lines)
    legend = f"signs: {NEW} new, {CHANGED} changed, {DROPPED} dropped, {KEPT} kept"
    return f"{table(('', 'name', 'dtype', 'shape', 'what'), lines)}\n\n{legend}"


def _add_lines(branch: _Branch, depth: int, lines: list[tuple[str, ...]]) -> None:
    for name, content in branch.items():
        if isinstance(content, list):
            lines += [(row.sign, f"{'  ' * depth}{name}", *row[1:4]) for row in content]
            continue
        title = name
        while len(content) == 1 and isinstance(inner := next(iter(content.values())), dict):
            title, content = f"{title}{next(iter(content))}", inner
        below = _tensors(content)
        shown_title = f"{'  ' * depth}{title.removesuffix('.')}"
        if all(row.sign == KEPT for row in below) and len(below) > 1:
            count = sum(times(row.name) for row in below)
            lines.append((KEPT, shown_title, "", "", f"{plural(count, 'tensor')} kept"))
            continue
        if len(content) == 1:  # a module of one tensor is no level of its own
            _add_lines({f"{title}{next(iter(content))}": below}, depth, lines)
            continue
        lines.append(("", shown_title, "", "", ""))
        _add_lines(content, depth + 1, lines)


def _tensors(branch: _Branch) -> list[_Row]:
    found: list[_Row] = []
    for content in branch.values():
        found += content if isinstance(content, list) else _tensors(content)
    return found


def _before_after(before: str, after: str) -> str:
    return after if before == after else f"{before} -> {after}"


def _earlier_name(name: str, changes: Sequence[Change]) -> str | None:
    """Return what the input calls a tensor; None where it was made anew, as a copy is."""
    for change in reversed(changes):
        if not change.from_:
            continue
        if change.op == "rename":
            name = change.from_[0]
        elif change.op in OPS and OPS[change.op].group == "structure" and name not in change.from_:
            return None
    return name


def _change(change: Change, name: str, *, is_short: bool) -> str:
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
