"""Methods that drop changes at random: what both keep is drawn from the same distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tests.conformance.models import LAYERS, shapes
from tests.conformance.sides import Job, Json, Made, Tensors

DENSITY, _EPSILON = 0.4, 0.3
_BINS = 10


def _job(method: str, seed: int, *, rescale: bool, **parameters: float) -> Job:
    # One model, all of whose elements changed, so that what was kept can be seen.
    model: Json = {"model": "third", "parameters": {"weight": 1}}
    config = {
        "merge_method": method,
        "base_model": "base",
        "models": [model],
        "dtype": "float64",
        "parameters": {"density": DENSITY, "rescale": rescale, **parameters},
    }
    return Job(config, seed=seed)


_METHODS = {
    "dare_linear": {},
    "dare_ties": {},
    "della_linear": {"epsilon": _EPSILON},
    "della": {"epsilon": _EPSILON},
}
JOBS: Mapping[tuple[str, bool], Job] = {
    (method, rescale): _job(method, number, rescale=rescale, **parameters)
    for number, (method, parameters) in enumerate(_METHODS.items())
    for rescale in (True, False)
}


# mergekit draws for float64 tensors in float32, and returns what it keeps in that precision.
FLOAT32 = 1e-6
# What one of a few hundred sums of chances may be off, in standard deviations.
CHANCE = 5.0


@dataclass(frozen=True)
class Drawn:
    """What one side kept.

    `kept` is the fraction of all elements; `deviation` the largest one of the fraction kept in a
    tenth of the ranks from its probability, in standard deviations; `l1` the largest relative
    difference of a tensor's sum of magnitudes to that of its task vector; `value` the largest one
    of what is kept to the change, times one factor for the whole tensor.
    """

    kept: float
    deviation: float
    l1: float
    value: float


def drawn(made: Tensors, operands: list[Tensors], *, ranked: bool) -> Drawn:
    """Return what became of a single model's changes."""
    base, model = operands
    kept_of = torch.zeros(_BINS, dtype=torch.float64)
    expected_of, variance_of = torch.zeros_like(kept_of), torch.zeros_like(kept_of)
    count, l1, value = 0, 0.0, 0.0
    for name, tensor in made.items():
        change, left = model[name] - base[name], tensor - base[name]
        kept = left != 0
        before, after = float(change.abs().sum()), float(left.abs().sum())
        l1 = max(l1, abs(after / before - 1))
        factors = (left / change)[kept]
        value = max(value, float((factors / factors.mean() - 1).abs().max()))
        place = _places(change)
        chances = torch.full_like(place, DENSITY)
        if ranked:
            chances = DENSITY - _EPSILON + 2 * _EPSILON * place
        bins = (place * _BINS).long().clamp(max=_BINS - 1).flatten()
        kept_of.index_add_(0, bins, kept.double().flatten())
        expected_of.index_add_(0, bins, chances.flatten())
        variance_of.index_add_(0, bins, (chances * (1 - chances)).flatten())
        count += tensor.numel()
    deviation = float(((kept_of - expected_of) / variance_of.sqrt()).abs().max())
    return Drawn(float(kept_of.sum()) / count, deviation, l1, value)


def _places(change: torch.Tensor) -> torch.Tensor:
    """Return, for each element, its rank by magnitude in its row, from 0 to 1."""
    rows = change.abs().reshape(-1, change.shape[-1])
    ranks = rows.argsort(dim=1).argsort(dim=1).double()
    return (ranks / (rows.shape[1] - 1)).reshape(change.shape)


def both(made: Mapping[tuple[str, bool], Made]) -> dict[tuple[str, bool], tuple[Drawn, Drawn]]:
    """Return what surgeon and mergekit kept, for each job."""
    found = {}
    for key, sides in made.items():
        ranked = key[0].startswith("della")
        ours = drawn(sides.ours, sides.operands, ranked=ranked)
        found[key] = ours, drawn(sides.theirs, sides.operands, ranked=ranked)
    return found


def allowed() -> float:
    """How much the fraction kept may differ from the density: five standard deviations."""
    count = sum(math.prod(shape) for shape in shapes(LAYERS).values())
    return CHANCE * math.sqrt(DENSITY * (1 - DENSITY) / count)
