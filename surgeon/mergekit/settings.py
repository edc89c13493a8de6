"""Parameters of a configuration: which holds where, and as what a step says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.base.errors import UsageError
from surgeon.mergekit.methods import Json, Method
from surgeon.mergekit.values import Names, Rule, as_rules, varying

_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True)
class Settings:
    """The parameters that hold everywhere, after those of inner scopes; `notes` are the user's."""

    parameters: Json
    notes: list[str]

    def check_parameters(self, method: Method, scopes: list[Json]) -> None:
        known = {*method.per_model, *method.shared, *method.fixed, *method.switches}
        known |= {"nuslerp_flatten", "nuslerp_row_wise"} if method.op == "nuslerp" else set()
        given = [word for scope in [*scopes, self.parameters] for word in scope]
        for word in dict.fromkeys(given):
            if word not in known:
                note = f"parameter '{word}' means nothing to this method; left out"
                self.notes.extend([note] if note not in self.notes else [])

    def switch(self, word: str, meanings: Mapping[bool, Json], scope: Json) -> bool:
        default = next(iter(meanings))
        given = scope.get(word, self.parameters.get(word, default))
        if (truth := _TRUTHS.get(str(given).lower())) is None:
            raise UsageError(f"parameter '{word}' is {given!r}; only true and false are imported")
        given = truth
        if given not in meanings:
            raise UsageError(f"parameter '{word}: {str(given).lower()}' has no counterpart")
        return given

    def granularity(self, scope: Json) -> str:
        if self.switch("nuslerp_flatten", {True: {}, False: {}}, scope):
            return "tensor"
        by_column = self.switch("nuslerp_row_wise", {False: {}, True: {}}, scope)
        return "column" if by_column else "row"

    def rules(self, word: str, default: float | None, *scopes: Json) -> list[Rule]:
        """Return what holds for a parameter, first of all what the innermost scope says."""
        rules: list[Rule] = []
        for scope in (*scopes, self.parameters):
            rules += as_rules(word, scope[word]) if word in scope else []
        if default is not None:
            rules.append(Rule(None, (default,)))
        for index, rule in enumerate(rules):
            if rule.filter is None:
                return rules[: index + 1]
        if not rules:
            raise UsageError(f"parameter '{word}' is missing")
        return rules

    def value(self, rules: list[Rule], names: Names, layers: range | None) -> Any:
        if rules[0].filter is None and len(rules[0].values) == 1:
            return rules[0].values[0]
        return [item for rule in rules for item in varying(rule, names, layers)]

    def single_value(self, rules: list[Rule], word: str, default: float) -> float:
        """Return the value of a parameter that does not vary, of its default's type."""
        (value,) = rules[0].values[:1] or (default,)
        if len(rules) > 1 or len(rules[0].values) > 1:
            raise UsageError(f"parameter '{word}' is one number here; it cannot vary")
        return int(value) if isinstance(default, int) else value


def without_empty(densities: list[Any], weights: list[Any], step: Json) -> dict[str, list[Any]]:
    """Return what models weigh of which nothing is kept, as a density of 0 has no meaning here.

    They weigh nothing. What a step says besides is held to it.
    """
    empty = [density == 0 for density in densities]
    if not any(empty):
        if 0 in _flat(densities):
            raise UsageError("a density that is 0 in places is not imported; give a small one")
        return {}
    if step["normalize"] and step["op"] in ("dare", "della", "breadcrumbs"):
        raise UsageError("a density of 0 is not imported with 'normalize'; leave the model out")
    if all(empty):
        step["normalize"] = False
    changed = {}
    for word, values, nothing in (("density", densities, 1.0), ("weights", weights, 0.0)):
        pairs = zip(empty, values, strict=True)
        changed[word] = [nothing if is_empty else own for is_empty, own in pairs]
    return changed


def without_ending(step: Json, ending: str) -> Json:
    """Return a step that leaves alone what ends so, of whatever operand it is."""
    but = f"re:(?!.*{re.escape(ending)}$)"
    target = [
        f"{but}.*" if pattern == "**" else pattern.replace("re:", but, 1)
        for pattern in step.get("target", ["**"])
    ]
    return {"op": step["op"], **step, "target": target}


def check_filters(word: str, rules: list[Rule]) -> None:
    """Raise UsageError for a filter by number, which means a layer by its place in the source."""
    for rule in rules:
        if re.search(r"\d", rule.filter or ""):
            raise UsageError(
                f"the '{word}' filter {rule.filter!r} has a number, and layers move: not imported"
            )


def _flat(value: Any) -> list[Any]:
    """Return the numbers of a value that may vary."""
    if isinstance(value, dict):
        return _flat(value.get("by_layer", value.get("value")))
    return [n for item in value for n in _flat(item)] if isinstance(value, list) else [value]
