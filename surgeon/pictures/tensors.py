"""All tensors before and after as a tree, each with how it fares, and sizes as bars."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from surgeon.base.regions import Region, parsed
from surgeon.base.tables import plural
from surgeon.base.units import spoken_size
from surgeon.pictures.facts import Facts
from surgeon.pictures.markup import (
    Attributes,
    Markup,
    chip,
    joined,
    rounded,
    section,
    shortened,
    table,
    tag,
)
from surgeon.pictures.palette import FATE_WORDS, FATES
from surgeon.recipe.fates import CHANGED, DROPPED, KEPT, NEW, Fate, Line, fates, tree

_ORDER = (NEW, CHANGED, KEPT, DROPPED)
# No more lines of a tree: a page of them is a few MB, and nobody reads on.
_MOST_LINES = 3000
_MOST_MODULES = 16
_LONGEST_NAME = 64
_DEEPEST = 16
_MOST_BLOCKS = 24
_NOT_TOLD = (
    "A manifest tells of the result. Tensors that were dropped, and what some were before, are in "
    "the plan alone: surgeon report RECIPE INPUT."
)


def legend(signs: Iterable[str] = _ORDER) -> Markup:
    """Return what the signs mean."""
    parts = [joined([chip(sign), tag("b", {}, FATE_WORDS[sign])]) for sign in signs]
    return tag("p", {"class": "legend"}, *parts)


def summary(found: Sequence[Fate]) -> Markup:
    """Return how many tensors, and how much of them, are new, changed, kept and dropped."""
    sizes, counts = dict.fromkeys(_ORDER, 0), dict.fromkeys(_ORDER, 0)
    for fate in found:
        counts[fate.sign] += 1
        sizes[fate.sign] += int(fate.size_bytes)
    there = [sign for sign in _ORDER if counts[sign]]
    parts = [
        joined([chip(sign), tag("b", {}, f"{plural(counts[sign], 'tensor')} {FATE_WORDS[sign]}, "
                                         f"{spoken_size(sizes[sign])}")])
        for sign in there
    ]  # fmt: skip
    return joined([_stacked(sizes, sum(sizes.values()), "bar wide"),
                   tag("p", {"class": "legend"}, *parts)])  # fmt: skip


def _stacked(sizes: Mapping[str, int], full: int, kind: str) -> Markup:
    """Return a bar with a part for each sign, of which `full` fills all of it."""
    parts = [
        tag("i", {"style": f"width:{rounded(100 * size / full)}%;background:{FATES[sign]}",
                  "title": f"{FATE_WORDS[sign]}: {spoken_size(size)}"})
        for sign, size in sizes.items() if size and full
    ]  # fmt: skip
    return tag("span", {"class": kind}, *parts)


def tensors(facts: Facts, found: Sequence[Fate]) -> Markup:
    """Return a line for each tensor or module, before and after; layers that fare alike, once."""
    lines = tree(found)
    largest = max((line.size_bytes for line in lines if line.fate or line.is_kept), default=0)
    is_told = facts.told.before is not None
    rows = [_row(line, largest, is_told=is_told) for line in lines[:_MOST_LINES]]
    headers = ("", "name", "before", "after", "new part", "what was done", "size", " ")
    more = len(lines) - _MOST_LINES
    said = [tag("p", {"class": "note"}, f"{more:,} more lines are left out.")] if more > 0 else []
    note = "" if facts.told.dropped is not None else _NOT_TOLD
    body = tag("div", {"class": "wide-part"}, table(headers, rows, right=("size",)))
    return section("Tensors", legend(), body, *said, note=note)


def _row(line: Line, largest: int, *, is_told: bool) -> Sequence[str]:
    depth = f"padding-left:{rounded(1.2 * min(line.depth, _DEEPEST))}em"
    indent: Attributes = {"class": "name", "style": depth, "title": line.title}
    name = tag("span", indent, shortened(line.title, _LONGEST_NAME))
    size = spoken_size(line.size_bytes)
    fate = line.fate
    if fate is None and not line.is_kept:
        return "", name, "", "", "", "", "", ""
    sign = fate.sign if fate else KEPT
    bar = _stacked({sign: line.size_bytes}, largest, "bar")
    if fate is None:
        return chip(KEPT), name, "", "", "", f"{plural(line.count, 'tensor')} kept", size, bar
    if line.count > 1:
        size = joined([f"{line.count:,} x ", spoken_size(int(fate.size_bytes))])
    before, after = (
        tag("span", {"class": "name"}, f"{dtype} {shape}") if dtype else ""
        for dtype, shape in ((fate.was_dtype, fate.was_shape), (fate.dtype, fate.shape))
    )
    if not before and sign == CHANGED and not is_told:
        before = tag("span", {"class": "quiet"}, "not told")
    what = tag("span", {"class": "what"}, fate.what)
    return chip(sign), name, before, after, _new_part(fate), what, size, bar


def _new_part(fate: Fate) -> str:
    """Return a drawing of a tensor in which what is new has its colour, and where that is."""
    if not fate.new or not fate.dtype:
        return ""
    shape = [int(size) for size in re.findall(r"\d+", fate.shape)]
    blocks = fate.new.split(" ")
    if fate.new == ":":
        return "all of it"
    try:
        regions = [parsed(block, shape) for block in blocks if block != ":"]
    except ValueError:  # of another shape than it has in the end
        return ", ".join(blocks)
    told = ", ".join(blocks) if len(blocks) <= 3 else f"{len(blocks):,} blocks"
    where = tag("span", {"class": "name"}, f" [{told}]")
    return tag("span", {"class": "part"}, _drawing(shape, regions), where)


_DRAWN = 18.0


def _drawing(shape: Sequence[int], regions: Sequence[Region]) -> Markup:
    rows, columns = shape[0], prod(shape[1:2]) or 1
    wide = _DRAWN * (0.45 if len(shape) == 1 else 1.6 if columns > 2 * rows else 1.0)
    parts = [tag("rect", {"x": 0.5, "y": 0.5, "width": wide - 1, "height": _DRAWN - 1,
                          "fill": FATES[KEPT], "fill-opacity": 0.45})]  # fmt: skip
    for region in regions[:_MOST_BLOCKS]:
        y, height = _placed(region[0], rows, _DRAWN)
        x, width = _placed(region[1], columns, wide) if len(region) > 1 else (0.0, wide)
        parts.append(tag("rect", {"x": x, "y": y, "width": width, "height": height,
                                  "fill": FATES[NEW]}))  # fmt: skip
    view = f"0 0 {rounded(wide)} {rounded(_DRAWN)}"
    return tag("svg", {"viewBox": view, "style": f"width:{rounded(wide)}px", "role": "img",
                       "aria-label": "where it is new"}, *parts)  # fmt: skip


def _placed(part: tuple[int, int], size: int, room: float) -> tuple[float, float]:
    """Return where a part begins and how long it is; at least as long as can be seen."""
    length = max((part[1] - part[0]) / max(size, 1) * room, 2.5)
    return min(part[0] / max(size, 1) * room, room - length), length


# Sizes


def sizes(facts: Facts, found: Sequence[Fate]) -> Markup:
    """Return a bar for each module and for each dtype: how much of it is new, changed, kept."""
    there = [fate for fate in found if fate.sign != DROPPED]
    modules = _grouped((_module(fate.name), fate) for fate in there)
    dtypes = _grouped((fate.dtype, fate) for fate in there)
    files = [(name, spoken_size(size)) for name, size in facts.files]
    return section(
        "Sizes",
        _bars("modules", modules),
        _bars("dtype", dtypes),
        table(("file", "size"), files, right=("size",)),
    )


def _module(name: str) -> str:
    """Return the container of the numbered layers that a tensor lies in, or else its module."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if number is None:
        return ".".join(parts[:-1]) or name
    return ".".join([*parts[:number], "*"])


def _grouped(named: Iterable[tuple[str, Fate]]) -> dict[str, dict[str, int]]:
    groups: dict[str, dict[str, int]] = {}
    for name, fate in named:
        group = groups.setdefault(name, dict.fromkeys(_ORDER, 0))
        group[fate.sign] += int(fate.size_bytes)
    largest = sorted(groups, key=lambda name: -sum(groups[name].values()))
    kept = {name: groups[name] for name in largest[:_MOST_MODULES]}
    if rest := largest[_MOST_MODULES:]:
        sums = {sign: sum(groups[name][sign] for name in rest) for sign in _ORDER}
        kept[f"{len(rest):,} others"] = sums
    return kept


def _bars(header: str, groups: Mapping[str, Mapping[str, int]]) -> Markup:
    full = max((sum(group.values()) for group in groups.values()), default=0)
    total = sum(sum(group.values()) for group in groups.values()) or 1
    rows = []
    for name, group in groups.items():
        size = sum(group.values())
        rows.append((tag("span", {"class": "name"}, name), _stacked(group, full, "bar"),
                     spoken_size(size), f"{size / total:.1%}"))  # fmt: skip
    return table((header, " ", "size", "share"), rows, right=("size", "share"))


def found_in(facts: Facts) -> list[Fate]:
    """Return how each tensor fares; sources that are named alike in models are not repeated."""
    return fates(facts.told, is_short=True)
