"""Query heads that share key and value heads, which go on sharing the same."""

from __future__ import annotations

import re

from surgeon.base.errors import listed
from surgeon.draft import Tensors
from surgeon.model_folder.case import Case
from surgeon.model_folder.expressions import parsed
from surgeon.model_folder.rows import NEW, row_numbers
from surgeon.model_folder.said import Meaning

_KEYS = ("key_value", "kv")
_COUNT = re.compile(r".*heads")


def require_same_pairs(case: Case, meaning: Meaning) -> None:
    """Refuse query heads that would read the keys of others than before.

    The heads of a layer share the keys in their order: with 6 heads over 2, the first three read
    the first. With other numbers of heads, that may be others.
    """
    keys = {name: found for name, dims in meaning.after.items()
            if (found := _heads(dims[:1])) and any(word in found[0] for word in _KEYS)}  # fmt: skip
    for name, dims in meaning.after.items():
        if name in case.before and (
            problem := _repaired_within(case, name, dims[0] if dims else "")
        ):
            _report(case, problem)
            return
        found = _heads(dims[:1])
        if found is None or any(word in found[0] for word in _KEYS) or name not in case.before:
            continue
        query, width_key = found
        beside = [other for other, (_, width) in keys.items() if width == width_key
                  and other.rpartition(".")[2] == name.rpartition(".")[2]
                  and _outer(other) == _outer(name) and other in case.before]  # fmt: skip
        width = case.value(case.old, width_key)
        if not width or width != case.value(case.new, width_key):
            continue  # heads of another size are other heads
        problem = next(
            filter(None, (_repaired(case, name, other, int(width)) for other in beside)), ""
        )
        if problem:
            _report(case, f"{query}: {problem}")
            return


def note_unknown_heads(case: Case, meaning: Meaning) -> None:
    """Say so where heads went, or came, in a projection of several parts in an unknown order."""
    known = case.architecture
    names = [
        name
        for name, dims in meaning.after.items()
        if known is not None
        and name in case.before
        and case.before[name].spec.shape != case.after[name].spec.shape
        and _is_fused(dims[0] if dims else "")
        and known.pattern(name.rpartition(".")[0]) not in known.fused
    ]
    if names:
        case.notes.append(
            f"how heads lie in {listed(names)} is not known; taken as the recipe has it"
        )


def _is_fused(text: str) -> bool:
    """Return whether a size is that of several numbers of heads, or of several times one."""
    found = parsed(text) if text and not text.startswith("?") else None
    if found is None or not any(_COUNT.fullmatch(key) for key in found[0].keys):
        return False
    return len(found[0].terms) > 1 or found[1] != 1


def _report(case: Case, problem: str) -> None:
    case.contradiction(
        f"{problem}; keep as many heads of each group, or let whole groups go with their keys "
        "and values (narrow, shared)"
    )


def _heads(dims: tuple[str, ...]) -> tuple[str, str] | None:
    """Return (number of heads, size of one) where a dimension is their product."""
    found = parsed(dims[0]) if dims and not dims[0].startswith("?") else None
    if (
        found is None
        or (factors := found[0].factors) is None
        or (int(found[1]), int(found[2])) != (1, 0)
    ):
        return None
    counts = [key for key in factors if "head" in key and not key.endswith(("dim", "size"))]
    widths = [key for key in factors if key not in counts]
    return (counts[0], widths[0]) if len(counts) == len(widths) == 1 else None


def _outer(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[0]


def _repaired(case: Case, query: str, key: str, width: int) -> str:
    """Return what is wrong where a head would read other keys."""
    was, now = _sizes(case.before, query, key, width), _sizes(case.after, query, key, width)
    if was == now and all(case.before[n].byte_origin == case.after[n].byte_origin
                          for n in (query, key)):  # fmt: skip
        return ""
    if not all(was) or not all(now) or now[0] % now[1] or was[0] % was[1]:
        return ""
    heads = row_numbers(case.after[query], case.before[query])
    keys = row_numbers(case.after[key], case.before[key])
    for number in range(now[0]):
        head, read = heads(number * width), keys(number // (now[0] // now[1]) * width)
        if head < 0 or (read < 0 and read != NEW):
            continue
        wanted = head // width // (was[0] // was[1])
        if read == NEW or read // width != wanted:
            what = "new keys" if read == NEW else f"those of {read // width}"
            return (
                f"head {head // width} of '{query}' reads keys {wanted}, and would read {what}, "
                f"with {now[0]} heads over {now[1]}"
            )
    return ""


def _repaired_within(case: Case, name: str, text: str) -> str:
    """Return what is wrong in a projection that holds queries, then keys, then values."""
    found = parsed(text) if "+" in text and not text.startswith("?") else None
    keys = [key for key in found[0].keys if _COUNT.fullmatch(key)] if found else []
    shared = [key for key in keys if any(word in key for word in _KEYS)]
    if len(keys) != 2 or len(shared) != 1:
        return ""
    query = next(key for key in keys if key not in shared)
    old, new = ([int(case.value(config, key) or 0) for key in (query, *shared)]
                for config in (case.old, case.new))  # fmt: skip
    tensor, before = case.after[name], case.before[name]
    width, rest = divmod(before.spec.shape[0], (old[0] + 2 * old[1]) or 1)
    if rest or not all((*old, *new)) or old[0] % old[1] or new[0] % new[1]:
        return ""
    if tensor.spec.shape[0] != (new[0] + 2 * new[1]) * width:
        return ""
    heads = row_numbers(tensor, before)
    for number in range(new[0]):
        if (head := heads(number * width) // width) < 0:
            continue
        wanted = head // (old[0] // old[1])
        for what, part in (("keys", 0), ("values", 1)):
            place = new[0] + part * new[1] + number // (new[0] // new[1])
            row = heads(place * width)
            if row == NEW or (row >= 0 and row // width - old[0] - part * old[1] != wanted):
                return (
                    f"{query}: head {head} of '{name}' reads {what} {wanted}, and would read "
                    f"others, with {new[0]} heads over {new[1]}"
                )
    return ""


def _sizes(tensors: Tensors, query: str, key: str, width: int) -> tuple[int, int]:
    return tensors[query].spec.shape[0] // width, tensors[key].spec.shape[0] // width
