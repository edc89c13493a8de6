"""From a mergekit configuration to a recipe's steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.base.depth import all_positions, is_before_layers, layer_of
from surgeon.base.errors import UsageError
from surgeon.formats import open_checkpoint
from surgeon.mergekit.methods import METHODS, Json, Method
from surgeon.mergekit.values import Names, Rule, as_rules, containing, varying
from surgeon.numeric.dtypes import require_dtype

# What means nothing where everything is kept.
_SPARSE = ("density", "gamma", "epsilon", "rescale")


@dataclass(frozen=True)
class Imported:
    """A recipe, what it is to be applied to, and what the user should know."""

    recipe: Json
    input: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """A model of the configuration with its own parameters, and in a slice its layers."""

    path: str
    parameters: Json
    layers: range | None = None


class Importer:
    """Reads one configuration; `notes` are for the user."""

    def __init__(self, config: Json, label: str) -> None:
        self._config = config
        self._label = label
        self._parameters: Json = config.get("parameters") or {}
        self._notes: list[str] = []
        self._models: dict[str, str] = {}
        base = config.get("base_model")
        self._base = _path(base) if base is not None else None

    def result(self) -> Imported:
        name = self._config["merge_method"]
        if self._config.get("slices"):
            state, steps = self._cut_slices(name)
        elif name == "passthrough":
            state, steps = self._passed_through([self._source(self._only_model())])
        else:
            sources = [self._source(entry) for entry in self._config["models"]]
            state, step = self._merged(METHODS[name], sources, {})
            steps = [step]
        state, adapter = _parts(state)
        if adapter:
            steps.insert(0, {"op": "lora_merge", "adapter": adapter})
        recipe: Json = {
            "surgeon": 1,
            "about": f"Imported from {self._label} (mergekit, {name}); apply it to {state}.",
        }
        if self._models:
            recipe["models"] = {name: path for path, name in self._models.items()}
        recipe["steps"] = steps
        if dtype := self._config.get("out_dtype") or self._config.get("dtype"):
            wanted = require_dtype(str(dtype))
            recipe["output"] = {"dtype": wanted}
        return Imported(recipe, state, (f"apply it to {state}", *self._notes))

    def _only_model(self) -> Json:
        models = self._config["models"]
        if len(models) != 1:
            raise UsageError("passthrough takes one model, or slices of one source each")
        only: Json = models[0]
        return only

    def _source(self, entry: Json) -> _Source:
        bounds = entry.get("layer_range")
        layers = range(*bounds) if bounds is not None else None
        return _Source(_path(entry["model"]), entry.get("parameters") or {}, layers)

    def _reference(self, path: str) -> str | Json:
        """Return how a merge names a model: by its name, with an adapter where it has one."""
        model, adapter = _parts(path)
        name = self._named(model)
        return {"model": name, "adapter": adapter} if adapter else name

    def _named(self, path: str) -> str:
        """Return the name that a model has in the recipe."""
        if _parts(path)[1]:
            raise UsageError(
                f"model '{path}': fold the adapter in first, with the op lora_merge; here it is "
                "taken apart"
            )
        if path not in self._models:
            stem = re.sub(r"\W+", "-", Path(path).name).strip("-") or "model"
            taken = set(self._models.values())
            names = [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))]
            self._models[path] = next(name for name in names if name not in taken)
        return self._models[path]

    # One merge

    def _merged(
        self, method: Method, sources: list[_Source], scope: Json, layers: range | None = None
    ) -> tuple[str, Json]:
        """Return the state's path and the step; with `layers`, for a slice of these only."""
        state, others, relative = self._operands(method, sources)
        names = self._names(state.path)
        if names.count == 1:  # where there is no depth, mergekit takes the last value
            layers = layers or range(1)
        operands = others if method.base == "required" or relative else [state, *others]
        self._check_parameters(method, [*(source.parameters for source in sources), scope])
        step: Json = {"op": method.op, "models": [self._reference(other.path) for other in others]}
        for word, (ours, default) in method.per_model.items():
            values = [
                self._value(self._rules(word, default, source.parameters, scope), names, layers)
                for source in operands
            ]
            step[ours] = values[0] if all(value == values[0] for value in values) else values
        for word, (ours, default) in method.shared.items():
            step[ours] = self._value(self._rules(word, default, scope), names, layers)
        for word, (ours, default) in method.fixed.items():
            step[ours] = self._single_value(self._rules(word, default, scope), word, default)
        for word, meanings in method.switches.items():
            step |= meanings[self._switch(word, meanings, scope)]
        if method.at_density_one and (densities := step["density"]) in (1, [1] * len(operands)):
            step = {word: said for word, said in step.items() if word not in _SPARSE}
            step["op"] = method.at_density_one
            step |= {"density": densities} if step["op"] == "ties" else {}
        if relative:
            step["relative"] = True
        if method.op == "nuslerp":
            step["granularity"] = self._granularity(scope)
        computed_in = self._config.get("dtype") or "the models' dtype"
        about = f"computed in float64 and rounded once; mergekit computes in {computed_in}"
        step["about"] = "; ".join(part for part in (about, method.differs) if part)
        return state.path, step

    def _operands(
        self, method: Method, sources: list[_Source]
    ) -> tuple[_Source, list[_Source], bool]:
        base = next((s for s in sources if s.path == self._base), None)
        if method.base == "required" and self._base is None:
            raise UsageError("'base_model' is missing")
        if self._base is None or (method.base == "first" and base):
            return sources[0], sources[1:], False
        if base is None and sources[0].layers is not None:  # mergekit adds it to whole models alone
            if method.base != "first":
                raise UsageError("'base_model' must be among the sources of every slice")
            return sources[0], sources[1:], False
        base = base or _Source(self._base, {})
        if method.base == "first":  # mergekit merges the base model too, and last
            return sources[0], [*sources[1:], base], False
        return base, [s for s in sources if s.path != base.path], method.base == "optional"

    def _check_parameters(self, method: Method, scopes: list[Json]) -> None:
        known = {*method.per_model, *method.shared, *method.fixed, *method.switches}
        known |= {"nuslerp_flatten", "nuslerp_row_wise"} if method.op == "nuslerp" else set()
        given = [word for scope in [*scopes, self._parameters] for word in scope]
        for word in dict.fromkeys(given):
            if word not in known:
                note = f"parameter '{word}' means nothing to this method; left out"
                self._notes += [note] if note not in self._notes else []

    def _switch(self, word: str, meanings: Mapping[bool, Json], scope: Json) -> bool:
        default = next(iter(meanings))
        given = scope.get(word, self._parameters.get(word, default))
        if not isinstance(given, bool):
            raise UsageError(f"parameter '{word}' is {given!r}; only true and false are imported")
        if given not in meanings:
            raise UsageError(f"parameter '{word}: {str(given).lower()}' has no counterpart")
        return given

    def _granularity(self, scope: Json) -> str:
        if self._switch("nuslerp_flatten", {True: {}, False: {}}, scope):
            return "tensor"
        by_column = self._switch("nuslerp_row_wise", {False: {}, True: {}}, scope)
        return "column" if by_column else "row"

    # Values

    def _rules(self, word: str, default: float | None, *scopes: Json) -> list[Rule]:
        """Return what holds for a parameter, first of all what the innermost scope says."""
        rules: list[Rule] = []
        for scope in (*scopes, self._parameters):
            rules += as_rules(word, scope[word]) if word in scope else []
        if default is not None:
            rules.append(Rule(None, (default,)))
        for index, rule in enumerate(rules):
            if rule.filter is None:
                return rules[: index + 1]
        if not rules:
            raise UsageError(f"parameter '{word}' is missing")
        return rules

    def _value(self, rules: list[Rule], names: Names, layers: range | None) -> Any:
        if rules[0].filter is None and len(rules[0].values) == 1:
            return rules[0].values[0]
        return [item for rule in rules for item in varying(rule, names, layers)]

    def _single_value(self, rules: list[Rule], word: str, default: float) -> float:
        """Return the value of a parameter that does not vary, of its default's type."""
        (value,) = rules[0].values[:1] or (default,)
        if len(rules) > 1 or len(rules[0].values) > 1:
            raise UsageError(f"parameter '{word}' is one number here; it cannot vary")
        return int(value) if isinstance(default, int) else value

    # Slices

    def _cut_slices(self, name: str) -> tuple[str, list[Json]]:
        slices = self._config["slices"]
        parts = [[self._source(entry) for entry in part["sources"]] for part in slices]
        for part in parts:
            if any(source.layers is None for source in part):
                raise UsageError("every source of a slice needs a 'layer_range'")
            if len({len(source.layers or ()) for source in part}) > 1:
                raise UsageError("the sources of a slice have different numbers of layers")
        if all(len(part) == 1 for part in parts):
            if name != "passthrough":
                raise UsageError(f"slices of one source are stacked: passthrough, not {name}")
            return self._passed_through([part[0] for part in parts])
        if name == "passthrough":
            raise UsageError("passthrough takes slices of one source each")
        return self._merged_by_slices(METHODS[name], slices, parts)

    def _passed_through(self, sources: list[_Source]) -> tuple[str, list[Json]]:
        state = sources[0].path
        names = self._names(state)
        steps: list[Json] = []
        if sources[0].layers is not None:
            steps.append({
                "op": "layers",
                "container": names.container,
                "take": [self._taken(source, state) for source in sources],
            })  # fmt: skip
        if (last := sources[-1].path) != state:
            behind = [f"{module}.{{rest**}}" for module in names.behind]
            steps.append({"op": "delete", "target": list(names.behind), "optional": True})
            steps += [
                {"op": "copy", "from": module, "to": module, "model": self._named(last),
                 "optional": True}
                for module in behind
            ]  # fmt: skip
        first = 0
        for number, source in enumerate(sources):
            layers = range(first, first + len(source.layers or ()))
            ends = number == 0, number == len(sources) - 1
            own = layers if source.layers is not None else None
            steps += self._scale_step(source, names, own, ends)
            first = layers.stop
        return state, steps

    def _taken(self, source: _Source, state: str) -> Any:
        assert source.layers is not None
        taken = f"{source.layers.start}:{source.layers.stop}"
        return taken if source.path == state else {"model": self._named(source.path),
                                                   "range": taken}  # fmt: skip

    def _scale_step(
        self, source: _Source, names: Names, layers: range | None, ends: tuple[bool, bool]
    ) -> list[Json]:
        """Return steps that multiply a slice by its `scale`.

        `ends` says whether what lies before the layers, and behind them, goes with it.
        """
        if "scale" not in {**self._parameters, **source.parameters}:
            return []
        moved = layers is not None and source.layers != layers
        steps: list[Json] = []
        passed: list[str] = []
        for rule in self._rules("scale", None, source.parameters):
            if len(rule.values) > 1:
                raise UsageError("a 'scale' that varies by layer is not imported")
            if moved and re.search(r"\d", rule.filter or ""):
                raise UsageError(
                    f"the 'scale' filter {rule.filter!r} has a number of a layer that moves; it is "
                    "not imported"
                )
            target = names.slice(layers, ends, rule.filter) if layers else containing(rule.filter)
            if (by := rule.values[0]) != 1:
                targets = [target, *(f"!{other}" for other in passed)]
                steps.append({"op": "scale", "target": targets, "by": by, "optional": True})
            passed.append(target)
        return steps

    def _merged_by_slices(
        self, method: Method, slices: list[Json], parts: list[list[_Source]]
    ) -> tuple[str, list[Json]]:
        paths = [source.path for source in parts[0]]
        first = 0
        for entry, part in zip(slices, parts, strict=True):
            ranges = {source.layers for source in part}
            layers = part[0].layers or range(0)
            if len(ranges) > 1 or layers.start != first or [s.path for s in part] != paths:
                raise UsageError(
                    "slices that are merged must have the same models and the same layers, in "
                    "order and without gaps"
                )
            if entry.get("base_model") not in (None, self._config.get("base_model")):
                raise UsageError("a slice's own 'base_model' is not imported")
            first = layers.stop
        if (count := self._names(self._base or paths[0]).count) not in (None, first):
            raise UsageError(
                f"{first} of {count} layers are merged: drop the others from the models first"
            )
        if count is None:
            self._notes.append(f"the models are taken to have {first} layers, all of them merged")
        if len(slices) == 1:
            state, step = self._merged(method, parts[0], slices[0].get("parameters") or {})
            return state, [step]
        steps: list[Json] = []
        for number, (entry, part) in enumerate(zip(slices, parts, strict=True)):
            layers = part[0].layers or range(0)
            state, step = self._merged(method, part, entry.get("parameters") or {}, layers)
            names = self._names(state)
            target = [names.pattern(layers, None)]
            if number == 0:  # with it goes what lies before the layers
                others = [index for index in range(first) if index not in layers]
                target = ["**", f"!{names.pattern(others, None)}"]
                target += [f"!{module}" for module in names.behind]
            elif number == len(slices) - 1:
                target += names.behind
            steps.append({"op": step.pop("op"), "target": target, **step})
        return state, steps

    def _names(self, path: str) -> Names:
        """Return the names of a model's layers, from its headers where it lies here."""
        path = _parts(path)[0]
        if not Path(path).exists():
            note = (
                f"{path} is not here: its layers are taken to be 'model.layers', with 'model.norm' "
                "and 'lm_head' behind them"
            )
            self._notes += [note] if note not in self._notes else []
            return Names("model.layers", ("model.norm", "lm_head"))
        checkpoint = open_checkpoint(path)
        try:
            found = all_positions(checkpoint.tensors)
            if not found:
                return Names("model.layers", ())
            container = max(found, key=lambda name: len(found[name]))
            modules = [name.rpartition(".")[0] for name in checkpoint.tensors
                       if layer_of(name) is None and not is_before_layers(name)]  # fmt: skip
            return Names(container, tuple(dict.fromkeys(modules)), len(found[container]))
        finally:
            checkpoint.close()


def _path(reference: Any) -> str:
    """Return where a model is; raises UsageError for what is more than a path."""
    if isinstance(reference, dict):
        raise UsageError(f"model {reference!r} is not imported: give its path")
    text = str(reference)
    if "@" in Path(text).name:
        raise UsageError(f"model '{text}': download the revision, and give its path")
    return text


def _parts(path: str) -> tuple[str, str]:
    """Return a model's path and its adapter's, which mergekit writes as `model+adapter`."""
    model, _, adapter = path.partition("+")
    return (path, "") if Path(path).exists() or not model else (model, adapter)
