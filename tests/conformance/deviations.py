"""What surgeon computes otherwise than mergekit on purpose: both sides, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.conformance import oracles
from tests.conformance.methods import ALL, Method, method
from tests.merges.oracles import add_up

_ABSOLUTE = "mergekit compares changes with an absolute 1e-6, surgeon with their own size"


@dataclass(frozen=True)
class Deviation:
    """A method on a family of models of which surgeon follows its oracle, and mergekit does not."""

    family: str
    method: Method
    why: str


DEVIATIONS: Mapping[str, Deviation] = {
    "nuslerp of models that are near": Deviation(
        "near",
        method("nuslerp", "first", "second", base=None, weights=[1, 2],
               oracle=oracles.nuslerp([1, 2], "tensor", relative=False)),
        "beyond a cosine of 0.9995 surgeon takes a straight line, as in slerp; mergekit the arc",
    ),
    "model_stock of small changes": Deviation(
        "tiny", method("model_stock", *ALL, oracle=oracles.model_stock("tensor")),
        "mergekit takes products of norms below 1e-6 for 1e-6, so that small changes are lost",
    ),
    "sce of small changes": Deviation(
        "tiny", method("sce", *ALL, oracle=oracles.sce(1)), _ABSOLUTE,
    ),
    "sce, select_topk": Deviation(
        "ordinary", method("sce", "first", "second", select_topk=0.4, oracle=oracles.sce(0.4)),
        "mergekit takes the fraction of the elements that differ, surgeon of all",
    ),
    "ram of small changes": Deviation(
        "tiny", method("ram", *ALL, oracle=oracles.ram(1e-5)),
        "mergekit's epsilon is absolute, surgeon's relative to the size of a model's changes",
    ),
    "ramplus_tl": Deviation(
        "ordinary", method("ramplus_tl", *ALL, oracle=oracles.ram_plus(1e-5, 0.1, 0.2)),
        "mergekit computes boosts in float32",
    ),
    "nearswap of small changes": Deviation(
        "tiny", method("nearswap", "first", t=1e-7, oracle=oracles.nearswap(1e-7)),
        "mergekit takes changes below 1e-6 for 1e-6",
    ),
    "breadcrumbs of a high density": Deviation(
        "ordinary",
        method("breadcrumbs", *ALL, weights=[1, 1, 1], density=0.97, gamma=0.05,
               oracle=oracles.breadcrumbs(0.97, 0.05, add_up)),
        "where density and gamma are more than 1, mergekit drops fewer of the largest",
    ),
}  # fmt: skip
