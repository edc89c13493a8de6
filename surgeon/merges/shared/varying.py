"""Parameters of merges that are numbers, or vary: by model, by layer, and by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from surgeon.base import patterns
from surgeon.base.depth import Positions, all_positions, fraction
from surgeon.base.errors import PlanError
from surgeon.base.schema import of_hint
from surgeon.draft import Tensors, vectors


@dataclass(frozen=True)
class Varying:
    """Marks a parameter that is a number within these limits, or varies by layer and by name.

    The maker gets the number of its tensor. With `per`, it gets a list: one number per model, or
    per operand (the base model's first), or per point (the models where the recipe says
    `relative`, else the operands), and a recipe may give one for all, or a list; `default`
    is then what each gets where a recipe gives nothing.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    per: Literal["tensor", "model", "operand", "point"] = "tensor"
    default: float | None = None

    @property
    def json_schema(self) -> dict[str, Any]:
        """The schema of what a recipe may say."""
        limits = {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "exclusiveMinimum": self.above,
            "exclusiveMaximum": self.below,
        }
        number = {"type": "number", **{k: v for k, v in limits.items() if v is not None}}
        curve = {"type": "array", "items": number, "minItems": 1}
        by_layer = _object({"by_layer": curve}, ["by_layer"])
        rule = _object(
            {"target": of_hint(patterns.Target), "value": {"anyOf": [number, by_layer]}}, ["value"]
        )
        rules = {"type": "array", "items": rule, "minItems": 1}
        if self.per == "tensor":
            return {"anyOf": [number, by_layer, rules]}
        # A list of rules is for all models; any other list has an item, or rules, for each.
        item = {"anyOf": [number, by_layer, rule, rules]}
        return {"anyOf": [number, by_layer, {"type": "array", "items": item, "minItems": 1}]}

    def for_each(self, given: Any, word: str, counts: dict[str, int]) -> list[Any]:
        """Return what a recipe gives for each model or operand; raises PlanError for uneven lists.

        `counts` says how many there are of which.
        """
        count = counts[self.per]
        if given is None:
            given = self.default
        if not isinstance(given, list) or all(map(_is_rule, given)):
            return [given] * count
        if any(map(_is_rule, given)):
            raise PlanError(f"'{word}' mixes rules by name with values for each {self.per}")
        if len(given) != count:
            first = " (the base model comes first)" if self.per == "operand" else ""
            raise PlanError(f"{word} has {len(given)} entries for {count} {self.per}s{first}")
        return list(given)


def _is_rule(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


class Numbers:
    """What varying parameters are, tensor by tensor."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._selections: dict[str, set[str]] = {}

    @cached_property
    def _layers(self) -> dict[str, Positions]:
        return all_positions(self._tensors)

    def value(self, given: Any, name: str) -> float:
        """Return what a number, a `by_layer` curve or a list of rules says for one tensor."""
        if isinstance(given, dict):
            curve = given["by_layer"]
            depth = fraction(name, self._layers)
            return float(np.interp(depth * (len(curve) - 1), range(len(curve)), curve))
        if isinstance(given, list):
            return self._by_name(given, name)
        return float(given)

    def _by_name(self, rules: list[dict[str, Any]], name: str) -> float:
        for rule in rules:
            if "target" not in rule or name in self._select(rule["target"]):
                return self.value(rule["value"], name)
        raise PlanError(f"no rule gives a value for '{name}'; end with one that has no 'target'")

    def _select(self, target: str | list[str]) -> set[str]:
        key = repr(target)
        if key not in self._selections:
            special = {"@vectors": vectors(self._tensors), "@new": ()}
            found = patterns.select(target, self._tensors, special=special, optional=True)
            self._selections[key] = set(found)
        return self._selections[key]
