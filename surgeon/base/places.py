"""Where new entries of a dimension come among the old ones: at the end, at an index, per block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.base.errors import PlanError
from surgeon.base.indices import Ranges

At = int | dict[str, Any]
# What is new is told block by block, in a manifest and to an optimizer.
_MOST_BLOCKS = 256
# What the schema of a parameter says of it.
SCHEMA: dict[str, Any] = {
    "type": ["integer", "object"],
    "properties": {
        "every": {
            "type": "integer",
            "minimum": 1,
            "description": "old entries in a block; each block gets new ones",
        },
        "at": {
            "type": "integer",
            "description": "before which entry of a block; default its end",
        },
    },
    "required": ["every"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Places:
    """Before which of `size` old entries new ones come, ascending; `count` at each of them."""

    size: int
    before: tuple[int, ...]
    count: int

    @property
    def total(self) -> int:
        """How many new entries there are."""
        return self.count * len(self.before)

    @property
    def new(self) -> Ranges:
        """The ranges that the new entries have in the end."""
        starts = [old + number * self.count for number, old in enumerate(self.before)]
        return tuple((start, start + self.count) for start in starts)

    @property
    def order(self) -> Ranges | None:
        """The ranges to select of the old entries with all new ones behind; None for all of it."""
        if self.before == (self.size,):
            return None
        found: list[tuple[int, int]] = []
        done = 0
        for number, old in enumerate(self.before):
            if done < old:
                found.append((done, old))
            found.append((self.size + number * self.count, self.size + (number + 1) * self.count))
            done = old
        return (*found, (done, self.size)) if done < self.size else tuple(found)

    def times(self, block: int) -> Places:
        """Return the same places where every entry stands for `block` entries."""
        before = tuple(old * block for old in self.before)
        return Places(self.size * block, before, self.count * block)


def places(
    at: At | None, size: int, *, count: int | None = None, to: int | None = None, what: str
) -> Places:
    """Return where new entries come: `count` of them (for each block), or as many as make `to`.

    Raises PlanError for a place that there is not, and for blocks that leave a rest; `what` is what
    messages call the entries.
    """
    before = (size,) if at is None else _before(at, size, what)
    if count is None:
        more = (to or 0) - size
        if more <= 0:
            raise PlanError(f"has {size} {what} already, not under {to}")
        count, rest = divmod(more, len(before))
        if rest:
            raise PlanError(
                f"has {size} {what} in {len(before)} blocks; {to} would not give each as many new "
                "ones"
            )
    return Places(size, before, count)


def _before(at: At, size: int, what: str) -> tuple[int, ...]:
    """Return before which old entries new ones come; raises PlanError."""
    if not isinstance(at, Mapping):
        return (_inside(int(at), size, f"{size} {what}"),)
    every = int(at["every"])
    if not size or size % every:
        raise PlanError(f"has {size} {what}, which make no blocks of {every}")
    if size // every > _MOST_BLOCKS:
        raise PlanError(
            f"has {size} {what} in {size // every} blocks, and new ones go into at most "
            f"{_MOST_BLOCKS}"
        )
    inside = _inside(int(at.get("at", every)), every, f"blocks of {every} {what}")
    return tuple(start + inside for start in range(0, size, every))


def _inside(index: int, size: int, where: str) -> int:
    """Return an index that may count from the end, as list.insert takes it; raises PlanError."""
    if not -size <= index <= size:
        raise PlanError(f"has {where}, and no place {index}: there are 0 to {size}, and -{size} to "
                        "-1 from the end")  # fmt: skip
    return index + size if index < 0 else index
