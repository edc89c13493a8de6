"""The steps that make one tensor of experts that a checkpoint has apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations

Shape = tuple[int, ...]
_WHICH = " (in the order in which the model has them)"


def put_together(name: str, shape: Shape, apart: Mapping[str, Shape]) -> str:
    """Return the steps of a recipe for a parameter of all experts, as JSON.

    `apart` are the tensors of its module that are numbered, such as `experts.3.w1.weight`. Those of
    one last name are stacked; of two, which fill a dimension together, each expert's are joined
    first. Where neither fits, the steps are named without their tensors.
    """
    module = name.rpartition(".")[0]
    prefix = f"{module}." if module else ""
    kinds = {n.removeprefix(prefix).partition(".")[2]: size for n, size in apart.items()}
    for rest, size in kinds.items():
        if size == shape[1:]:
            return json.dumps({"op": "stack", "from": f"{prefix}{{e}}.{rest}", "into": name})
    for (first, one), (second, other) in combinations(kinds.items(), 2):
        for dim in range(len(one)):
            joined = (*one[:dim], one[dim] + other[dim], *one[dim + 1 :])
            if len(one) == len(other) and joined == shape[1:]:
                own = f"{prefix}{{e}}.together"
                parts = [f"{prefix}{{e}}.{rest}" for rest in (first, second)]
                steps = [
                    {"op": "concat", "from": parts, "into": own, "dim": dim},
                    {"op": "stack", "from": own, "into": name},
                ]
                return ", ".join(map(json.dumps, steps)) + _WHICH
    return "steps that concat what belongs together in each expert, then stack them"
