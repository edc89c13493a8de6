"""How deep in a network a tensor lies, judged by its name.

A checkpoint does not say in which order layers run; numbered containers (`model.layers.12`) do.
What lies outside of them is taken as before the first layer where its name is one that input
layers have, and as after the last layer otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_INPUT = re.compile(
    r"(^|[._])(embed\w*|\w*embeddings?|wte|wpe|stem|patch\w*|tok\w*|cls_token|pos_\w+|conv1|bn1)"
    r"([._]|$)"
)
_NUMBERED = re.compile(r"^(?P<container>.*?)(?:^|\.)(?P<index>\d+)(?=\.|$)")


def layer_of(name: str) -> tuple[str, int] | None:
    """Return (container, index) of the outermost numbered layer that a name lies in."""
    found = _NUMBERED.match(name)
    return (found["container"], int(found["index"])) if found else None


def is_before_layers(name: str) -> bool:
    """Say whether a tensor outside of the numbered layers belongs to the input side."""
    return bool(_INPUT.search(name))


def layer_counts(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers (highest index + 1) of every numbered container."""
    counts: dict[str, int] = {}
    for name in names:
        if (layer := layer_of(name)) is not None:
            counts[layer[0]] = max(counts.get(layer[0], 0), layer[1] + 1)
    return counts


def fraction(name: str, counts: dict[str, int]) -> float:
    """Return a tensor's depth from 0 (first layer and before) to 1 (last layer and after)."""
    if (layer := layer_of(name)) is not None:
        last = counts[layer[0]] - 1
        return layer[1] / last if last else 0.0
    return 0.0 if is_before_layers(name) else 1.0
