"""Projections of a folder's model that hold queries, keys and values, by what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surgeon.draft import Tensors
from surgeon.draft.fused import FusedHeads
from surgeon.model_folder.architectures import Architecture, architecture_of
from surgeon.model_folder.case import Case, Json


def fused_heads(config: Json, tensors: Tensors) -> Callable[[str], FusedHeads | None]:
    """Return what tells how heads lie in a tensor; None where that is not known."""
    known = architecture_of(config, tensors)
    if known is None or not known.fused:
        return lambda name: None
    case = Case(config, {}, config, tensors, tensors, known)
    return lambda name: _heads(case, known, name)


def _heads(case: Case, known: Architecture, name: str) -> FusedHeads | None:
    module, _, leaf = name.rpartition(".")
    entry: Any = known.fused.get(known.pattern(module))
    weight = case.before.get(f"{module}.weight")
    if entry is None or leaf not in ("weight", "bias") or weight is None:
        return None
    dim, shape = entry["dim"], weight.spec.shape
    count = case.value(case.old, entry["heads"])
    if len(shape) != 2 or not count:
        return None
    beside = entry["heads"].rpartition(".")[0]
    named = entry.get("size") or (f"{beside}.head_dim" if beside else "head_dim")
    width = case.value(case.old, named) or shape[1 - dim] / count
    apart = sum(part in "qg" for part in entry["order"])
    keys = (shape[dim] / width - apart * count) / (len(entry["order"]) - apart)
    if width.denominator != 1 or keys.denominator != 1 or keys < 1 or count % keys:
        return None
    groups = None if entry["groups"] == "kv" else entry["groups"]
    return FusedHeads(
        str(case.old["model_type"]), entry["order"], groups, int(count), int(keys), int(width),
        dim if leaf == "weight" else 0,
    )  # fmt: skip
