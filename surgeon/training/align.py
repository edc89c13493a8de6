"""Weight aligning: bring the new rows of a layer to the mean norm of its old ones.

Zhao et al. 2020, Maintaining Discrimination and Fairness in Class Incremental Learning,
https://arxiv.org/abs/1911.07053, equation 8. As there, biases stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from torch import nn

from surgeon.base.regions import Region
from surgeon.training.cover import Block
from surgeon.training.errors import ManifestError
from surgeon.training.sharded import index, is_sharded, local, owned


@torch.no_grad()
def align(alignments: Sequence[Sequence[Block]], parameters: Mapping[str, nn.Parameter]) -> None:
    """Scale each parameter's new rows in place; nothing is scaled where one of them cannot be.

    Computed in float64 and rounded once. Raises ManifestError for rows of which a norm is not
    finite, or of which all are zero.
    """
    rows: dict[str, list[Region]] = {}
    for blocks in alignments:
        for block in blocks:
            rows.setdefault(block.name, []).append(block.region)
    factors = {name: _factor(name, parameters[name], new) for name, new in rows.items()}
    for name, new in rows.items():
        parameter = parameters[name]
        for region in new:
            part = local(parameter)[index(region, owned(name, parameter))]
            # By way of the processor, which has float64 wherever the parameter lies.
            part.copy_((part.cpu().double() * factors[name]).to(part.dtype))


def _factor(name: str, parameter: nn.Parameter, new: Sequence[Region]) -> float:
    weights: Any = parameter.detach()
    everything = weights.full_tensor() if is_sharded(parameter) else weights
    norms = torch.linalg.vector_norm(everything.flatten(1).cpu(), dim=1, dtype=torch.float64)
    is_new = torch.zeros(len(norms), dtype=torch.bool)
    for (start, stop), *_ in new:
        is_new[start:stop] = True
    old_mean, new_mean = float(norms[~is_new].mean()), float(norms[is_new].mean())
    for what, mean in (("old", old_mean), ("new", new_mean)):
        if not isfinite(mean) or mean == 0:
            raise ManifestError(
                f"'{name}' cannot be aligned: the mean norm of its {what} rows is {mean:g}"
            )
    return old_mean / new_mean
