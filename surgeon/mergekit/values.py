"""Values of a mergekit configuration: numbers, gradients over the layers, filters by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from surgeon.base.errors import UsageError

Json = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """A value for the tensors whose name has a text in it, or for all: a number or a gradient."""

    filter: str | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Names:
    """What the layers of the models are called, and the tensors behind the last one.

    And how many there are, where the model is here.
    """

    container: str
    behind: tuple[str, ...]
    count: int | None = None

    @property
    def _inside(self) -> str:
        """The regular expression of what comes before a layer's number."""
        return rf"{re.escape(self.container)}\." if self.container else ""

    def pattern(self, layers: Sequence[int] | None, text: str | None) -> str:
        """Return a pattern of layers' tensors (None: all layers) whose names have a text."""
        if layers is None and text is None and self.container:
            return self.container
        number = r"\d+" if layers is None else "|".join(map(str, layers))
        wanted = f"(?=.*{re.escape(text)})" if text else ""
        return rf"re:{wanted}{self._inside}({number})\..*"

    def slice(self, layers: Sequence[int], ends: tuple[bool, bool], text: str | None) -> str:
        """Return a pattern as above, `ends` adding what lies before the layers, and behind them."""
        inside = self._inside
        behind = rf"({'|'.join(map(re.escape, self.behind))})(\.|$)" if self.behind else "(?!)"
        parts = [rf"{inside}({'|'.join(map(str, layers))})\."]
        if ends[0]:
            parts.append(rf"(?!{inside}\d|{behind})")
        if ends[1]:
            parts.append(behind)
        wanted = f"(?=.*{re.escape(text)})" if text else ""
        return f"re:{wanted}({'|'.join(parts)}).*"


def as_rules(word: str, setting: Any) -> list[Rule]:
    if isinstance(setting, dict):
        setting = [setting]
    if isinstance(setting, list) and any(isinstance(item, dict) for item in setting):
        rules = []
        for item in setting:
            if not isinstance(item, dict):
                raise UsageError(f"parameter '{word}' mixes numbers and filters")
            text = item.get("filter")
            filter_ = None if text in (None, "*") else str(text)
            rules += [Rule(filter_, rule.values) for rule in as_rules(word, item.get("value"))]
        return rules
    values = setting if isinstance(setting, list) else [setting]
    if not values:  # says nothing; what is further out holds
        return []
    try:
        return [Rule(None, tuple(float(value) for value in values))]
    except (TypeError, ValueError):
        raise UsageError(f"parameter '{word}' is {setting!r}, not a number or numbers") from None


def containing(text: str | None) -> str:
    return f"re:.*{re.escape(text)}.*" if text else "**"


def varying(rule: Rule, names: Names, layers: range | None) -> list[Json]:
    """Return a rule as ours. A gradient runs over the layers; all else has its first value."""
    everywhere = {"target": containing(rule.filter)} if rule.filter else {}
    rest: Json = {**everywhere, "value": rule.values[0]}
    if len(rule.values) == 1:
        return [rest]
    if layers is None:
        curve = {"by_layer": list(rule.values)}
        return [{"target": names.pattern(None, rule.filter), "value": curve}, rest]
    last = len(rule.values) - 1
    places = [i / (len(layers) - 1) if len(layers) > 1 else 1.0 for i in range(len(layers))]
    values = np.interp([place * last for place in places], range(last + 1), rule.values)
    return [
        *(
            {"target": names.pattern([layer], rule.filter), "value": float(value)}
            for layer, value in zip(layers, values, strict=True)
        ),
        rest,
    ]
