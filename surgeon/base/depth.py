"""How deep in a network a tensor lies, judged by its name.

A checkpoint does not say in which order layers run; numbered containers (`model.layers.12`) do.
Numbers only give their order: in Sequential(Linear, ReLU, Linear) there are two layers, 0 and 2,
and where a recipe has dropped layers those that are left are counted. What lies outside of them is
taken as before the first layer where its name is one that input layers have, and as after the last
layer otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# The layers of one container by their number, counted from 0.
Positions = Mapping[int, int]
_INPUT = re.compile(
    # Runs that end at an underscore, which is an end anyway: no text is gone over twice.
    r"(^|[._])(embed[^\W_]*|[^\W_]*embeddings?|wte|wpe|stem|patch[^\W_]*|tok[^\W_]*|cls_token|"
    r"pos_\w[^\W_]*|conv1|bn1)([._]|$)"
)
_NUMBERED = re.compile(r"^(?P<container>.*?)(?:^|\.)(?P<index>\d+)(?=\.|$)")


def layer_of(name: str) -> tuple[str, int] | None:
    """Return (container, number) of the outermost numbered layer that a name lies in."""
    found = _NUMBERED.match(name)
    return (found["container"], int(found["index"])) if found else None


def layer_in(container: str, name: str) -> int | None:
    """Return the number of the layer of one container that a name lies in.

    The container without a name is the model itself, as a Sequential is one.
    """
    prefix = f"{container}." if container else ""
    if not name.startswith(prefix):
        return None
    number = name.removeprefix(prefix).partition(".")[0]
    return int(number) if number.isdecimal() else None


def called(container: str) -> str:
    """Return how messages call a container."""
    return f"'{container}'" if container else "'' (the top level)"


def positions(numbers: Iterable[int | None]) -> Positions:
    """Return {number: position} of the layers that there are, counted from 0."""
    there = sorted({number for number in numbers if number is not None})
    return {number: position for position, number in enumerate(there)}


def all_positions(names: Iterable[str]) -> dict[str, Positions]:
    """Return the positions of the layers of every outermost container."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        if (layer := layer_of(name)) is not None:
            numbers.setdefault(layer[0], set()).add(layer[1])
    return {container: positions(found) for container, found in numbers.items()}


def fraction(name: str, layers: Mapping[str, Positions]) -> float:
    """Return a tensor's depth from 0 (first layer and before) to 1 (last layer and after)."""
    if (layer := layer_of(name)) is not None:
        there = layers[layer[0]]
        return there[layer[1]] / max(len(there) - 1, 1)
    return 0.0 if is_before_layers(name) else 1.0


def distance(name: str, container: str, layers: Positions) -> int:
    """Return how many layers of a container lie between a tensor and the output: 0 after it.

    The last layer is at 1, the first at their number, what comes before it one further, as in
    BEiT's and ELECTRA's layer-wise learning-rate decay.
    """
    if (number := layer_in(container, name)) is not None:
        return len(layers) - layers[number]
    return len(layers) + 1 if is_before_layers(name) else 0


def is_before_layers(name: str) -> bool:
    """Say whether a tensor outside of the numbered layers belongs to the input side."""
    return bool(_INPUT.search(name))
