"""What a plan makes of each tensor, in words: as a table, and as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from surgeon.base.screen import screen
from surgeon.base.tables import plural, table
from surgeon.draft import ties
from surgeon.lazy import TensorSpec
from surgeon.output.opened import Opened
from surgeon.recipe.fates import (
    CHANGED,
    DROPPED,
    KEPT,
    NEW,
    Fate,
    Line,
    Told,
    alike,
    earlier_name,
    fates,
    tree,
)
from surgeon.recipe.plan import Plan


def lost(plan: Plan, before: Iterable[str]) -> list[str]:
    """Return the input's tensors that are in no tensor of the output, under whatever name.

    Another may have taken the name of one, as where layers move up.
    """
    used = {
        name for changes in plan.lineage.values() for change in changes for name in change.from_
    }
    lineage = plan.lineage
    return [
        name
        for name in before
        if name not in used
        and (name not in lineage or (lineage[name] and earlier_name(name, lineage[name]) != name))
    ]


def specs_before(opened: Opened, gone: Sequence[str]) -> dict[str, TensorSpec]:
    """Return what the input's tensors were that are changed, or `gone`."""
    plan, tensors = opened.plan, opened.input.tensors
    named = [earlier_name(name, changes) for name, changes in plan.lineage.items() if changes]
    return {name: tensors[name].spec for name in (*named, *gone) if name in tensors}


def _fates(opened: Opened, *, is_short: bool) -> list[Fate]:
    plan = opened.plan
    gone = lost(plan, opened.input.tensors)
    told = Told(
        {name: tensor.spec for name, tensor in plan.tensors.items()},
        plan.lineage,
        specs_before(opened, gone),
        gone,
        ties(plan.tensors),
    )
    return fates(told, is_short=is_short)


def changes_table(opened: Opened) -> str:
    """Return a row for everything that changes; on a terminal, one for layers that fare alike."""
    is_short = screen().is_terminal
    found = [fate for fate in _fates(opened, is_short=is_short) if fate.sign != KEPT]
    if is_short:
        found = alike(found)
    rows = [(fate.name, *_cells(fate)) for fate in found]
    return table(("name", "dtype", "shape", "what"), rows) if rows else ""


def changes_tree(opened: Opened) -> str:
    """Return modules and tensors under each other, each with a sign for how it fares."""
    rows = [_row(line) for line in tree(_fates(opened, is_short=True))]
    legend = f"signs: {NEW} new, {CHANGED} changed, {DROPPED} dropped, {KEPT} kept"
    return f"{table(('', 'name', 'dtype', 'shape', 'what'), rows)}\n\n{legend}"


def _row(line: Line) -> tuple[str, ...]:
    title = f"{'  ' * line.depth}{line.title}"
    if line.fate:
        return line.fate.sign, title, *_cells(line.fate)
    if line.is_kept:
        return KEPT, title, "", "", f"{plural(line.count, 'tensor')} kept"
    return "", title, "", "", ""


def _cells(fate: Fate) -> tuple[str, str, str]:
    """Return the dtype and the shape, before and after where they differ, and what was done."""
    return (
        _before_after(fate.was_dtype, fate.dtype),
        _before_after(fate.was_shape, fate.shape),
        fate.what,
    )


def _before_after(before: str, after: str) -> str:
    return before or after if before == after or not before or not after else f"{before} -> {after}"
