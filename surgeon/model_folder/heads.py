"""The numbers of attention heads, and the size of one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction

from surgeon.model_folder.case import Case
from surgeon.model_folder.expressions import Base

_WIDTH = re.compile(r".*(dim|d_kv|size|channels|d_head)")
_COUNT = re.compile(r".*head.*")


def follow_heads(case: Case, found: Mapping[Base, Fraction]) -> None:
    """Follow the numbers of heads: heads of the same size as before, else as many as before."""
    groups: dict[str, dict[str, Fraction]] = {}
    for base, total in found.items():
        if (factors := base.factors) is None:
            continue
        widths = [key for key in factors if _WIDTH.fullmatch(_last(key))]
        counts = [key for key in factors if key not in widths and _COUNT.fullmatch(_last(key))]
        if len(widths) == 1 and len(counts) == 1:
            groups.setdefault(widths[0], {})[counts[0]] = total
    simple = {base.key: size for base, size in found.items() if base.key is not None}
    for width_key, totals in groups.items():
        _follow_group(case, totals, width_key, simple.get(width_key))
    for count_key, total_key in (case.architecture.heads if case.architecture else {}).items():
        if total_key in simple:
            _follow_shared(case, count_key, simple[total_key], total_key)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _follow_group(
    case: Case, totals: Mapping[str, Fraction], width_key: str, said: Fraction | None
) -> None:
    """Follow heads whose size is a number of the config."""
    width = case.value(case.old, width_key)
    if not width:
        return
    if said is not None or case.states(width_key):
        width = case.value(case.new, width_key) or width
    else:
        width = _width(case, totals, width)
    for key, total in totals.items():
        if (total / width).denominator != 1:
            _not_whole(case, key, total, width)
        elif case.value(case.new, key) != total / width:
            case.follow(key, int(total / width))
    if case.value(case.new, width_key) != width:
        case.follow(width_key, int(width))
    _require_whole_groups(case, list(totals))


def _follow_shared(case: Case, key: str, total: Fraction, total_key: str) -> None:
    """Follow heads that share a size among them: it is a multiple of their number."""
    old_count, old_total = case.value(case.old, key), case.value(case.old, total_key)
    if not old_count or not old_total or (old_total / old_count).denominator != 1:
        return
    width = _width(case, {key: total}, old_total / old_count)
    if (total / width).denominator != 1:
        _not_whole(case, key, total, width)
    elif case.value(case.new, key) != total / width:
        case.follow(key, int(total / width))
        if case.states(key):
            case.contradiction(
                f"output.config.{key} is {json.dumps(case.look_up(case.stated, key))}, which does "
                f"not divide {_number(total)}"
            )


def _not_whole(case: Case, key: str, total: Fraction, width: Fraction) -> None:
    case.contradiction(
        f"{key}: {_number(total)} is not a multiple of {_number(width)}, the size of a "
        f"head; state {key} in output.config"
    )


def _width(case: Case, totals: Mapping[str, Fraction], width: Fraction) -> Fraction:
    """Return the size of a head that goes with the totals, and with counts that are stated."""
    for key, total in totals.items():
        count = case.value(case.new, key)
        if case.states(key) and count and (total / count).denominator == 1:
            return total / count
    if all((total / width).denominator == 1 for total in totals.values()):
        return width
    counts = {key: case.value(case.old, key) for key in totals}
    as_many = {total / (counts[key] or 1) for key, total in totals.items()}
    (same, *others) = as_many
    return width if others or same.denominator != 1 else same


def _require_whole_groups(case: Case, keys: list[str]) -> None:
    """Report query heads that cannot be shared out among key and value heads."""
    ordered = sorted(keys, key=lambda key: ("key_value" in key or "kv" in key, key))
    counts = [case.value(case.new, key) for key in ordered]
    if len(counts) == 2 and counts[0] and counts[1] and (counts[0] / counts[1]).denominator != 1:
        case.contradiction(
            f"{ordered[0]} {counts[0]} is not a multiple of {ordered[1]} {counts[1]}; change both "
            "alike"
        )


def _number(size: Fraction) -> str:
    return str(size.numerator) if size.denominator == 1 else f"{float(size):g}"
