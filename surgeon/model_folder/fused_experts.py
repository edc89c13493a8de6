"""Experts that lie in one tensor, as transformers 5 has them in memory, and loads them too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

Dims = tuple[str, ...]

# What holds experts that lie apart, with their gate, up and down projection.
_APART = {"mlp": ("gate_proj", "up_proj", "down_proj"), "block_sparse_moe": ("w1", "w3", "w2")}
_FUSED = "mlp"
_WEIGHT = "weight"


class FusedRow(NamedTuple):
    """Tensors of one name that hold what several had, with what their sizes may be."""

    parts: tuple[str, ...]
    kinds: tuple[Dims, ...]
    stands_for: tuple[tuple[str, ...], ...]


def fused_rows(
    rows: Mapping[tuple[str, ...], Sequence[Dims]], counts: Mapping[str, str]
) -> Iterator[FusedRow]:
    """Yield the tensors that may take the place of experts one by one, and of their router."""
    for parts in rows:
        holder = parts[-5] if len(parts) > 4 else ""
        names = _APART.get(holder)
        if names is None or parts[-4] != "experts" or parts[-2:] != (names[0], _WEIGHT):
            continue
        count = counts.get(".".join(parts[:-3]))
        gate, up, down = ((*parts[:-2], name, _WEIGHT) for name in names)
        kinds = [kind for kind in rows[gate] if len(kind) == 2 and not {*"+-?"} & {*kind[0]}]
        if count is None or not kinds or up not in rows or down not in rows:
            continue
        inside = (*parts[:-5], _FUSED, "experts")
        both = tuple((count, f"2*{size}", width) for size, width in kinds)
        back = tuple((count, *kind) for kind in rows[down])
        yield FusedRow((*inside, "gate_up_proj"), both, (gate, up))
        yield FusedRow((*inside, "down_proj"), back, (down,))
        if holder == _FUSED:
            continue
        router = (*parts[:-4], "gate")
        for other, sizes in rows.items():
            if other[: len(router)] == router:
                moved = (*parts[:-5], _FUSED, *other[len(router) - 1 :])
                yield FusedRow(moved, tuple(sizes), (other,))
