"""What each layer of a stack is, and what its number has to do with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from surgeon.model_folder.positions import UnknownRuleError, holds
from tests.architectures.configs import Json, get

Rule = list[Any]
# {(module in the layer, attribute): its value in each layer}
Columns = dict[tuple[str, str], tuple[Any, ...]]

_NUMBERS = ("training", "layer_idx", "layer_id", "idx", "index", "layer_index", "layer_number",
            "layer_num", "block_idx", "call_super_init", "dump_patches", "layer_order")  # fmt: skip
_MOST_DEPTH = 4


@dataclass(frozen=True)
class Observation:
    """A stack's column under one config: whether something holds of each layer."""

    config: Json
    holds: tuple[bool, ...]


def stacks(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield every list of modules that is not inside another."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            if not any(name.startswith(outer) for outer in inside):
                yield name, module
            inside += (f"{name}.",)


def columns(stack: nn.ModuleList) -> Columns:
    """Return what differs from layer to layer: classes, settings, and shapes of tensors."""
    features: list[dict[tuple[str, str], Any]] = [dict(_features(layer)) for layer in stack]
    found: Columns = {}
    for key in dict.fromkeys(key for one in features for key in one):
        values = tuple(one.get(key, "absent") for one in features)
        if len(set(values)) > 1 and not _is_the_number(values):
            found[key] = values
    return found


def _is_the_number(values: Sequence[Any]) -> bool:
    numbers = [value for value in values if type(value) in (int, float)]
    if len(numbers) < len(values) or len(values) < 3:
        return False
    steps = {round(b - a, 9) for a, b in pairwise(numbers)}
    return len(steps) == 1


def _features(layer: nn.Module | None) -> Iterator[tuple[tuple[str, str], Any]]:
    # Informer has no module in the last place of its list.
    for name, module in () if layer is None else layer.named_modules():
        if name.count(".") >= _MOST_DEPTH or any(part.isdigit() for part in name.split(".")):
            continue
        yield (name, "class"), type(module).__name__
        for key, value in vars(module).items():
            if key.startswith("_") or key in _NUMBERS or "drop" in key:
                continue
            if isinstance(value, bool | int | float | str | None.__class__):
                yield (name, key), value
        for key, tensor in module.named_parameters(recurse=False):
            yield (name, f"{key}()"), tensor.dim()


def find_rule(
    observations: Sequence[Observation], keys: Sequence[str], lists: Sequence[str] = (), *,
    either: bool = False,
) -> Rule | None:  # fmt: skip
    """Return the simplest rule that every observation keeps; or its opposite, with `either`."""
    if not observations:
        return None
    wanted = [_mask(one.holds) for one in observations]
    full = [(1 << len(one.holds)) - 1 for one in observations]
    last = [1 << (len(one.holds) - 1) for one in observations]

    def keeps(found: Sequence[int]) -> bool:
        return all(
            mask == right or (either and mask == right ^ everything)
            for mask, right, everything in zip(found, wanted, full, strict=True)
        )

    simple = [(rule, masks) for rule in _simple(keys, lists)
              if (masks := _masks(rule, observations)) is not None]  # fmt: skip
    for rule, masks in simple:
        if keeps(masks):
            return rule
    for rule, masks in simple:
        if keeps([a | b for a, b in zip(masks, last, strict=True)]):
            return ["or", rule, ["last"]]
    keyed = [one for one in simple if one[0][0] in ("every", "below", "not", "from_end", "in")]
    for index, (one, ones) in enumerate(keyed):
        for other, others in keyed[index + 1 :]:
            if keeps([a & b for a, b in zip(ones, others, strict=True)]):
                return ["and", one, other]
            if keeps([a | b for a, b in zip(ones, others, strict=True)]):
                return ["or", one, other]
    return None


def _mask(values: Sequence[bool]) -> int:
    return sum(1 << index for index, value in enumerate(values) if value)


def _masks(rule: Rule, observations: Sequence[Observation]) -> list[int] | None:
    """Return of which layers a rule holds in each observation; None where it says nothing."""
    found = []
    for one in observations:
        layers = len(one.holds)

        def look_up(path: str, config: Json = one.config) -> Any:
            return get(config, path)

        try:
            found.append(_mask([holds(rule, n, layers, look_up) for n in range(layers)]))
        except UnknownRuleError:
            return None
    return found


def _simple(keys: Sequence[str], lists: Sequence[str]) -> Iterator[Rule]:
    yield ["all"]
    yield ["not", ["all"]]
    for path in lists:
        yield ["in", path]
        yield ["not", ["in", path]]
    for key in keys:
        for rule in (["every", key, 0, 0], ["every", key, 1, 0], ["every", key, 0, 1],
                     ["below", key], ["from_end", key]):  # fmt: skip
            yield rule
            yield ["not", rule]
        for other in keys:
            if other != key:
                yield ["every", key, 0, other]
                yield ["not", ["every", key, 0, other]]
    yield ["last"]
    yield ["not", ["last"]]
    for limit in (1, 2, 3):
        yield ["below", limit]
        yield ["not", ["below", limit]]
    for length in range(2, 8):
        for place in range(length):
            pattern = [int(index == place) for index in range(length)]
            yield ["cycle", pattern]
            yield ["cycle", [1 - one for one in pattern]]


def partition(values: Sequence[Any]) -> tuple[int, ...]:
    """Return which layers are alike: the number of the first that each is like."""
    first: dict[Any, int] = {}
    return tuple(first.setdefault(repr(value), index) for index, value in enumerate(values))


def observed(config: Mapping[str, Any], values: Sequence[Any], value: Any) -> Observation:
    """Return where in a stack a column has this value."""
    return Observation(dict(config), tuple(repr(one) == repr(value) for one in values))
