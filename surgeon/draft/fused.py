"""How heads lie in a projection that holds queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

# A part (q, k, v, or g for a gate of queries), and the number of the head.
Head = tuple[str, int]
_NAMES = {"q": "queries", "k": "keys", "v": "values", "g": "gates"}


@dataclass(frozen=True)
class FusedHeads:
    """A projection of a known class: `size` rows a head, in groups that each have every part.

    `order` is that of the parts within a group. `groups` is a number, or None where there is one
    for each head of keys; `queries` and `keys` count heads, along dimension `dim`.
    """

    model_type: str
    order: str
    groups: int | None
    queries: int
    keys: int
    size: int
    dim: int

    def __str__(self) -> str:
        parts = ", then ".join(_NAMES[part] for part in self.order)
        groups = self.keys if self.groups is None else self.groups
        return f"{parts}" + (f", in each of {groups} groups" if groups > 1 else "")

    @property
    def heads(self) -> list[Head]:
        """The heads in the order of their rows."""
        lists = {part: range(self.keys if part in "kv" else self.queries) for part in self.order}
        return list(self.laid({part: list(numbers) for part, numbers in lists.items()}))

    def laid(self, lists: Mapping[str, Sequence[int]]) -> Iterator[Head]:
        """Yield heads in the order of their rows, where these are the heads of each part."""
        groups = len(lists["k"]) if self.groups is None else self.groups
        for group in range(groups):
            for part in self.order:
                own = lists[part]
                first, last = group * len(own) // groups, (group + 1) * len(own) // groups
                yield from ((part, number) for number in own[first:last])

    def parts_in(self, ranges: Sequence[tuple[int, int]]) -> list[str]:
        """Return what rows are of, such as queries and keys."""
        heads = self.heads
        found = {
            heads[place][0]
            for start, stop in ranges
            for place in range(start // self.size, -(-stop // self.size))
        }
        return [_NAMES[part] for part in self.order if part in found]

    def is_kept(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Return whether rows in this order are heads that read the keys that they did.

        Rows that are not whole heads are heads of another size: nothing is known of them.
        """
        starts: list[int] = []
        for start, stop in ranges:
            if start % self.size or stop % self.size:
                return True
            starts += range(start, stop, self.size)
        heads = self.heads
        kept = [heads[start // self.size] for start in starts]
        lists = {part: [number for own, number in kept if own == part] for part in self.order}
        keys, queries = lists["k"], lists.get("q", [])
        if not keys or any(lists[part] != keys for part in "v" if part in lists):
            return False
        if any(len(lists[part]) % len(keys) or lists[part] != queries for part in "qg"
               if part in lists):  # fmt: skip
            return False
        each, now = self.queries // self.keys, len(queries) // len(keys)
        pairs = all(head // each == keys[place // now] for place, head in enumerate(queries))
        return pairs and list(self.laid(lists)) == kept
