"""Configurations as people write them: imported by surgeon, they give mergekit's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.conformance.sides import Job, Json


def entry(model: str, *layers: int, **parameters: Any) -> Json:
    found: Json = {"model": model}
    if layers:
        found["layer_range"] = list(layers)
    if parameters:
        found["parameters"] = parameters
    return found


def whole(
    method: str, *models: str | Json, dtype: str | None = "float64", base: str | None = None,
    **rest: Any,
) -> Json:  # fmt: skip
    """Return a configuration of whole models; those that are only named have no parameters."""
    listed = [entry(model) if isinstance(model, str) else model for model in models]
    config = {"merge_method": method, "models": listed, **rest}
    return config | ({"dtype": dtype} if dtype else {}) | ({"base_model": base} if base else {})


def sliced(method: str, *slices: list[Json] | Json, base: str | None = None, **rest: Any) -> Json:
    """Return a configuration of slices: their sources, or objects with more than that."""
    parts = [{"sources": part} if isinstance(part, list) else part for part in slices]
    config = {"merge_method": method, "slices": parts, "dtype": "float64", **rest}
    return config | ({"base_model": base} if base else {})


# As in many a model card.
_BY_MODULE = {
    "t": [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
}

CONFIGURATIONS: Mapping[str, Job] = {
    name: Job(config)
    for name, config in {
        "weights of models and a common one": whole(
            "linear", entry("first", weight=0.3), "second", "third", parameters={"weight": 2}
        ),
        "gradients": whole(
            "linear", entry("first", weight=[0, 1]), entry("second", weight=[1, 0.5, 0.2, 0.9, 2])
        ),
        "numbers in words": whole(
            "linear", entry("first", weight="1e-1"), entry("second", weight=1)
        ),
        "filters with and without gradients": whole(
            "linear",
            entry("first", weight=[{"filter": "mlp.up", "value": [0.1, 0.9]},
                                   {"filter": "embed", "value": 3}, {"value": [1, 2]}]),
            entry("second", weight=[{"filter": "self_attn", "value": 5}]),
            parameters={"weight": [{"filter": "norm", "value": 0.25}, {"filter": "*", "value": 1}]},
        ),
        "filters by layer": whole(
            "linear", entry("first", weight=[{"filter": "layers.1.", "value": 0.1}, {"value": 1}]),
            entry("second", weight=1),
        ),
        "a parameter that says nothing": whole(
            "linear", entry("first", weight=[]), "second",
            parameters={"weight": 0.7, "normalize": False},
        ),
        "linear with a base that is listed": whole(
            "linear", entry("first", weight=1), entry("base", weight=2), base="base"
        ),
        "linear with a base that is not listed": whole(
            "linear", entry("first", weight=1), entry("second", weight=2), base="base",
            parameters={"weight": 0.5},
        ),
        "slerp by module": sliced(
            "slerp", [entry("base", 0, 4), entry("first", 0, 4)], base="base", parameters=_BY_MODULE
        ),
        "slerp towards the first": whole(
            "slerp", "first", "base", base="base", parameters=_BY_MODULE
        ),
        "slerp of a model and a base that is not listed": whole(
            "slerp", "first", base="base", parameters={"t": 0.4}
        ),
        "slices with gradients of their own": sliced(
            "slerp",
            {"sources": [entry("base", 0, 2), entry("first", 0, 2)],
             "parameters": {"t": [0, 0.2]}},
            {"sources": [entry("base", 2, 3), entry("first", 2, 3)],
             "parameters": {"t": [0.3, 0.9]}},
            {"sources": [entry("base", 3, 4), entry("first", 3, 4)]},
            base="base", parameters={"t": [{"filter": "lm_head", "value": 0.6}, {"value": 0.5}]},
        ),
        "slices whose models have parameters": sliced(
            "linear",
            [entry("first", 0, 1, weight=1),
             entry("second", 0, 1, weight=[{"filter": "mlp", "value": 3}, {"value": 2}])],
            [entry("first", 1, 4, weight=[0.1, 0.9]), entry("second", 1, 4, weight=[2, 1, 0.5])],
        ),
        "slices and a base that is none of their sources": sliced(
            "linear", [entry("first", 0, 4, weight=1), entry("second", 0, 4, weight=3)], base="base"
        ),
        "nuslerp with a base that is listed": whole(
            "nuslerp", entry("first", weight=[1, 2]), "base", entry("second", weight=3),
            base="base", parameters={"nuslerp_flatten": False},
        ),
        "ties with a base that is listed": whole(
            "ties", "base", entry("first", density=[1, 0.2], weight=0.5),
            entry("second", density=0.3, weight=[{"filter": "mlp", "value": 0.4}, {"value": 0}]),
            base="base", parameters={"normalize": True, "int8_mask": True, "lambda": [1, 0.7]},
        ),
        "ties by slices": sliced(
            "ties",
            [entry("base", 0, 2), entry("first", 0, 2, weight=1),
             entry("second", 0, 2, weight=0.5)],
            [entry("base", 2, 4), entry("first", 2, 4, weight=[0.2, 1]),
             entry("second", 2, 4, weight=0.5, density=0.9)],
            base="base", parameters={"density": 0.4},
        ),
        "densities of 1 of random methods": whole(
            "dare_ties", entry("first", weight=0.4), entry("second", weight=0.7), base="base"
        ),
        "della of density 1": whole(
            "della", entry("first", weight=0.4), entry("second", weight=0.7), base="base"
        ),
        "della_linear of density 1": whole(
            "della_linear", entry("first", weight=0.4), entry("second", weight=0.7), base="base"
        ),
        "dare_linear of density 1": whole(
            "dare_linear", entry("first", weight=0.4), entry("second", weight=0.7), base="base"
        ),
        "breadcrumbs of density 1": whole(
            "breadcrumbs", entry("first", weight=0.4), entry("second", weight=0.7), base="base"
        ),
        "breadcrumbs_ties of density 1, normalize": whole(
            "breadcrumbs_ties", entry("first", weight=0.4), entry("second", weight=0.7),
            base="base", parameters={"normalize": True},
        ),
        "breadcrumbs whose parameters vary": whole(
            "breadcrumbs", entry("first", weight=0.4, density=[0.9, 0.2]),
            entry("second", weight=0.7, gamma=[0.02, 0.1]), base="base",
            parameters={"density": 0.5},
        ),
        "sce whose fraction varies": whole(
            "sce", "first", "second", "third", base="base", parameters={"select_topk": [0.1, 0.7]}
        ),
        "nearswap whose t varies": whole(
            "nearswap", "base", "first", base="base", parameters={"t": [0.05, 0.3]}
        ),
        "one model passed through": whole("passthrough", "first"),
        "one model, scaled by name": whole(
            "passthrough",
            entry("first", scale=[{"filter": "o_proj", "value": 0},
                                  {"filter": "mlp", "value": 0.5}]),
            parameters={"scale": 2},
        ),
        "a stack of two models": sliced(
            "passthrough", [entry("first", 0, 3)], [entry("second", 1, 4)]
        ),
        "a stack of one model": sliced(
            "passthrough", [entry("first", 0, 3)], [entry("first", 1, 3)], [entry("first", 2, 4)]
        ),
        "a stack that ends in another model": sliced(
            "passthrough", [entry("first", 2, 4)], [entry("second", 0, 1)], [entry("third", 3, 4)]
        ),
        "layers left out": sliced("passthrough", [entry("first", 0, 1)], [entry("first", 3, 4)]),
        "a stack with silent layers": sliced(
            "passthrough", [entry("first", 0, 3)],
            [entry("first", 1, 3, scale=[{"filter": "o_proj", "value": 0.0},
                                         {"filter": "down_proj", "value": 0.0}, {"value": 1}])],
            [entry("first", 3, 4)],
        ),
        "a stack whose ends are scaled": sliced(
            "passthrough", [entry("first", 0, 2, scale=0.5)], [entry("second", 1, 2)],
            [entry("second", 0, 2, scale=[{"filter": "norm", "value": 3}, {"value": 0.1}])],
        ),
        "a stack, all of it scaled": sliced(
            "passthrough", [entry("first", 0, 2)], [entry("second", 1, 4, scale=0.7)],
            parameters={"scale": 0.3},
        ),
    }.items()
} | {
    "gradients over one layer": Job(
        whole("linear", entry("first", weight=[0.2, 0.9]), entry("second", weight=1)), "degenerate"
    ),
    "bfloat16 merged in float64": Job(
        whole("linear", entry("first", weight=0.3), entry("second", weight=1), dtype="float64"),
        "bfloat16",
    ),
    "bfloat16 scaled in float64": Job(whole("passthrough", entry("first", scale=0.3)), "bfloat16"),
    "bfloat16 merged in float64, written as float32": Job(
        whole("karcher", "first", "second", "third", out_dtype="float32"),
        "bfloat16",
    ),
}  # fmt: skip
