"""Every deterministic method of mergekit, with options that make both definitions the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.conformance import oracles
from tests.conformance.sides import Json
from tests.merges.oracles import add_up, agree


@dataclass(frozen=True)
class Method:
    """A configuration, its oracle, and the kinds of degenerate tensors that differ, with reasons.

    `refuses` is for what mergekit does not merge at all.
    """

    config: Mapping[str, Any]
    oracle: oracles.Oracle
    differs: Mapping[str, str]
    refuses: str = ""


def method(
    name: str,
    *models: str,
    oracle: oracles.Oracle,
    base: str | None = "base",
    weights: list[float] | None = None,
    differs: Mapping[str, str] | None = None,
    refuses: str = "",
    **parameters: Any,
) -> Method:
    entries: list[Json] = [{"model": model} for model in models]
    for entry, weight in zip(entries, weights or [], strict=bool(weights)):
        entry["parameters"] = {"weight": weight}
    config = {"merge_method": name, "models": entries, "dtype": "float64"}
    config |= {"base_model": base} if base else {}
    config |= {"parameters": parameters} if parameters else {}
    return Method(config, oracle, differs or {}, refuses)


ALL = ("first", "second", "third")
# Weights that no sum over models that agree makes zero.
W = [0.5, 0.7, -0.1]
P = [0.5, 0.7, 0.4]

# Kinds of degenerate tensors, and why mergekit makes something else of them.
_ZERO = "a zero vector has no angle: surgeon draws a straight line, mergekit takes a right angle"
_SHORT = "mergekit takes norms below 1e-7 for 1e-7"
_EQUAL = "of equal magnitudes mergekit takes what its sort leaves first, surgeon the first"
_ROUNDING = "for opposite directions rounding decides on mergekit's arc"
# On another machine they may be the same.
BY_CHANCE = (_EQUAL, _ROUNDING)
_ABSOLUTE = "mergekit compares with an absolute threshold, surgeon with the changes' size"
_NEGATIVE = "mergekit's t is negative; surgeon keeps the base"
_NO_DIRECTION = "a tensor on which no model has a direction"
_PRODUCTS = "mergekit takes products of norms below 1e-6 for 1e-6"

_ARC = {"tiny changes": _SHORT}
_ARC_OF_CHANGES = {
    "one unchanged": _ZERO,
    "opposite changes": _ROUNDING,
    **_ARC,
}
_LEFT_BY_SORTING = {"constant": _EQUAL}
_STOCK = {
    **dict.fromkeys(("constant", "one element changed", "opposite changes"), _NEGATIVE),
    "tiny changes": _PRODUCTS,
}
_TINY = {"tiny changes": _ABSOLUTE}

METHODS: Mapping[str, Method] = {
    "linear": method(
        "linear", *ALL, base=None, weights=[1, 2, 0.5], oracle=oracles.average([1, 2, 0.5])
    ),
    "slerp": method(
        "slerp", "base", "first", t=0.3, oracle=oracles.slerp(0.3),
        differs={"base is zero": _ZERO, "tiny changes": _ZERO},
    ),
    "nuslerp": method(
        "nuslerp", "first", "second", base=None, weights=[1, 2],
        oracle=oracles.nuslerp([1, 2], "tensor", relative=False),
        differs=_ARC,
    ),
    "nuslerp, rows": method(
        "nuslerp", "first", "second", base=None, weights=[1, 2], nuslerp_flatten=False,
        oracle=oracles.nuslerp([1, 2], "row", relative=False),
        differs=_ARC,
    ),
    "nuslerp, columns": method(
        "nuslerp", "first", "second", base=None, weights=[1, 2], nuslerp_flatten=False,
        nuslerp_row_wise=True, oracle=oracles.nuslerp([1, 2], "column", relative=False),
        differs=_ARC,
    ),
    "nuslerp with a base": method(
        "nuslerp", "first", "second", weights=[1, 2],
        oracle=oracles.nuslerp([1, 2], "tensor", relative=True),
        differs=_ARC_OF_CHANGES,
    ),
    "nuslerp with a base, rows": method(
        "nuslerp", "first", "second", weights=[1, 2], nuslerp_flatten=False,
        oracle=oracles.nuslerp([1, 2], "row", relative=True),
        differs=_ARC_OF_CHANGES,
    ),
    "nuslerp with a base, columns": method(
        "nuslerp", "first", "second", weights=[1, 2], nuslerp_flatten=False,
        nuslerp_row_wise=True, oracle=oracles.nuslerp([1, 2], "column", relative=True),
        differs=_ARC_OF_CHANGES,
    ),
    # 1e-8 is what mergekit adds to norms.
    "multislerp": method(
        "multislerp", *ALL, base=None, weights=P, eps=1e-300,
        oracle=oracles.multislerp(P, relative=False),
        refuses=_NO_DIRECTION,
    ),
    "multislerp with a base": method(
        "multislerp", *ALL, weights=P, eps=1e-300, oracle=oracles.multislerp(P, relative=True),
        refuses=_NO_DIRECTION,
    ),
    "multislerp, not normalized": method(
        "multislerp", *ALL, weights=P, eps=1e-300, normalize_weights=False,
        oracle=oracles.multislerp(P, relative=True, normalize=False),
        refuses=_NO_DIRECTION,
    ),
    "karcher": method(
        "karcher", *ALL, base=None, oracle=oracles.karcher(1e-5, 10),
        differs={"tiny changes": "mergekit takes norms below the tolerance for zero"},
    ),
    "karcher, to the end": method(
        "karcher", *ALL, base=None, tol=1e-12, max_iter=50, oracle=oracles.karcher(1e-12, 50)
    ),
    "task_arithmetic": method(
        "task_arithmetic", *ALL, weights=W, **{"lambda": 0.8},
        oracle=oracles.task_arithmetic(W, 0.8, normalize=False),
    ),
    "task_arithmetic, normalize": method(
        "task_arithmetic", *ALL, weights=W, normalize=True,
        oracle=oracles.task_arithmetic(W, 1.0, normalize=True),
    ),
    "ties": method(
        "ties", *ALL, weights=P, density=0.4, **{"lambda": 0.8}, oracle=oracles.ties(0.4, P, 0.8),
        differs=_LEFT_BY_SORTING,
    ),
    "breadcrumbs": method(
        "breadcrumbs", *ALL, weights=[1, 1, 1], density=0.6, gamma=0.05,
        oracle=oracles.breadcrumbs(0.6, 0.05, add_up),
        differs=_LEFT_BY_SORTING,
    ),
    "breadcrumbs_ties": method(
        "breadcrumbs_ties", *ALL, weights=[1, 1, 1], density=0.6, gamma=0.05,
        oracle=oracles.breadcrumbs(0.6, 0.05, agree),
        differs=_LEFT_BY_SORTING,
    ),
    "model_stock": method(
        "model_stock", *ALL, oracle=oracles.model_stock("tensor"),
        differs=_STOCK,
    ),
    "model_stock, filter_wise": method(
        "model_stock", *ALL, filter_wise=True, oracle=oracles.model_stock("row"),
        differs={**_STOCK, "opposite models": _NEGATIVE},
    ),
    "nearswap": method("nearswap", "base", "first", t=0.1, oracle=oracles.nearswap(0.1)),
    "arcee_fusion": method(
        "arcee_fusion", "first", oracle=oracles.fusion,
        differs=dict.fromkeys(("large", "tiny changes"), "mergekit adds 1e-8 to probabilities"),
    ),
    "sce": method(
        "sce", *ALL, oracle=oracles.sce(1),
        differs=_TINY,
    ),
    "sce, select_topk": method(
        "sce", *ALL, select_topk=0.4, oracle=oracles.sce(0.4),
        differs={
            **_LEFT_BY_SORTING, **_TINY,
            "one element changed": "mergekit takes the fraction of the elements that differ: none",
        },
    ),
    "ram": method(
        "ram", *ALL, oracle=oracles.ram(1e-5),
        differs=_TINY,
    ),
    # Ratios that float32 holds: mergekit's boosts are of that precision.
    "ramplus_tl": method(
        "ramplus_tl", *ALL, r=0.5, alpha=0.25, oracle=oracles.ram_plus(1e-5, 0.5, 0.25),
        differs=_TINY,
    ),
}  # fmt: skip
