"""From a mergekit configuration to a recipe's steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.base.errors import UsageError
from surgeon.mergekit.beside import chat_template, tokenizer_steps
from surgeon.mergekit.methods import METHODS, Json, Method
from surgeon.mergekit.places import (
    BUFFERS,
    have_buffers,
    names_of,
    overrides_of,
    parts_of,
    path_of,
)
from surgeon.mergekit.settings import Settings, check_filters, without_empty, without_ending
from surgeon.mergekit.slices import Operands, Source, Stacked, operands_of, stacked
from surgeon.mergekit.values import Names, Rule, containing, varying
from surgeon.numeric.dtypes import require_dtype

# What means nothing where everything is kept.
_SPARSE = ("density", "gamma", "epsilon", "rescale")


@dataclass(frozen=True)
class Imported:
    """A recipe, what it is to be applied to, and what the user should know."""

    recipe: Json
    input: str
    notes: tuple[str, ...]


class Importer:
    """Reads one configuration; `notes` are for the user."""

    def __init__(self, config: Json, label: str, earlier: Mapping[str, Json] | None = None) -> None:
        self._config = config
        self._label = label
        self._notes: list[str] = []
        self._settings = Settings(config.get("parameters") or {}, self._notes)
        self._models: dict[str, str] = {}
        self._earlier = earlier or {}
        # Models that earlier steps make, and the model that each has its names and shapes of.
        self._roots: dict[str, str] = {}
        base = config.get("base_model")
        self._base = path_of(base) if base is not None else None

    def result(self) -> Imported:
        name = self._config["merge_method"]
        before = [step for word, config in self._earlier.items()
                  for step in self._made_before(word, config)]  # fmt: skip
        if self._config.get("slices"):
            state, steps = self._cut_slices(name)
        elif name == "passthrough":
            state, steps = self._passed_through([self._source(self._only_model())])
        else:
            sources = [self._source(entry) for entry in self._config["models"]]
            operands = operands_of(METHODS[name], sources, self._base)
            state, step = self._merged(METHODS[name], operands, {})
            steps = [step]
        if state in self._roots:
            if self._config.get("slices") or name == "passthrough":
                raise UsageError(f"'{state}' is of an earlier document: it can only be merged here")
            steps[0] = {"op": steps[0].pop("op"), "base": state, **steps[0]}
            state = self._roots[state]
        state, adapter = parts_of(state)
        if adapter:
            if state in self._models:
                raise UsageError(f"model '{state}+{adapter}' cannot be the base model of these")
            before.insert(0, {"op": "lora_merge", "adapter": adapter})
        recipe: Json = {
            "surgeon": 1,
            "about": f"Imported from {self._label} (mergekit, {name}); apply it to {state}.",
        }
        everyone = [state, *map(str, self._models)]
        aligned, said = tokenizer_steps(self._config, state, self._models)
        self._notes += said
        template, said = chat_template(self._config.get("chat_template"), everyone)
        self._notes += said
        if overrides := overrides_of(self._config):
            self._notes.append(
                f"override_architecture {overrides[0]!r}: names are what counts here"
            )
        if self._models:
            recipe["models"] = {name: path for path, name in self._models.items()}
        recipe["steps"] = self._without_buffers(everyone, [*aligned, *before, *steps])
        output: Json = {}
        if dtype := self._config.get("out_dtype") or self._config.get("dtype"):
            output["dtype"] = require_dtype(str(dtype))
        if template is not None:
            output["chat_template"] = template
        if output:
            recipe["output"] = output
        return Imported(recipe, state, (f"apply it to {state}", *self._notes))

    def _without_buffers(self, models: list[str], steps: list[Json]) -> list[Json]:
        """Return steps that leave out what older models hold besides their parameters."""
        if not have_buffers(models):
            return steps
        self._notes.append(f"tensors {BUFFERS} are left out: they follow from the config")
        gone: Json = {"op": "delete", "target": f"**{BUFFERS}", "optional": True}
        return [gone, *(without_ending(s, BUFFERS) if "models" in s else s for s in steps)]

    def _made_before(self, word: str, config: Json) -> list[Json]:
        """Return the step that makes the model of an earlier document."""
        method = METHODS.get(config["merge_method"])
        if method is None or not config.get("models"):
            raise UsageError(f"'{word}': of an earlier document, only merges of whole models are "
                             "imported; make it first, and give its path")  # fmt: skip
        outer = self._config, self._settings, self._base
        self._config = config
        self._settings = Settings(config.get("parameters") or {}, self._notes)
        base = config.get("base_model")
        self._base = path_of(base) if base is not None else None
        sources = [self._source(entry) for entry in config["models"]]
        state, step = self._merged(method, operands_of(method, sources, self._base), {})
        self._config, self._settings, self._base = outer
        self._roots[word] = self._roots.get(state, state)
        self._notes.append(f"'{word}' is not rounded before it is merged; mergekit writes it")
        return [{"op": step.pop("op"), "base": self._named(state), "into": word, **step}]

    def _only_model(self) -> Json:
        if len(self._config["models"]) != 1:
            raise UsageError("passthrough takes one model, or slices of one source each")
        only: Json = self._config["models"][0]
        return only

    def _source(self, entry: Json) -> Source:
        bounds = entry.get("layer_range")
        layers = range(*bounds) if bounds is not None else None
        return Source(path_of(entry["model"]), entry.get("parameters") or {}, layers)

    def _reference(self, path: str) -> str | Json:
        """Return how a merge names a model: by its name, with an adapter where it has one."""
        model, adapter = parts_of(path)
        name = self._named(model)
        return {"model": name, "adapter": adapter} if adapter else name

    def _named(self, path: str) -> str:
        """Return the name that a model has in the recipe."""
        if path in self._roots:
            return path
        if parts_of(path)[1]:
            raise UsageError(
                f"model '{path}': fold the adapter in first, with the op lora_merge; here it is "
                "taken apart"
            )
        if path not in self._models:
            stem = re.sub(r"\W+", "-", Path(path).name).strip("-") or "model"
            taken = {*self._models.values(), *self._earlier}
            names = [stem, *(f"{stem}-{number}" for number in range(2, len(taken) + 3))]
            self._models[path] = next(name for name in names if name not in taken)
        return self._models[path]

    # One merge

    def _merged(
        self,
        method: Method,
        operands: Operands,
        scope: Json,
        layers: range | None = None,
        models: list[Any] | None = None,
    ) -> tuple[str, Json]:
        """Return the state's path and the step; with `layers`, for a slice of these only.

        `models` are what the step calls the other operands, where these are not their own names.
        """
        state, others, relative = operands
        names = self._names(state.path)
        if names.count == 1:  # where there is no depth, mergekit takes the last value
            layers = layers or range(1)
        points = others if method.base == "required" or relative else [state, *others]
        given = [*(source.parameters for source in (state, *others)), scope]
        self._settings.check_parameters(method, given)
        models = models or [self._reference(other.path) for other in others]
        step: Json = {"op": method.op, "models": models}
        each: dict[str, list[Any]] = {}
        for word, (ours, default) in method.per_model.items():
            values = []
            for source in points:
                rules = self._settings.rules(word, default, source.parameters, scope)
                if source.layers not in (None, layers) and layers is not None:
                    check_filters(word, rules)
                values.append(self._settings.value(rules, names, layers))
            each[ours] = step[ours] = values
        for word, (ours, default) in method.shared.items():
            step[ours] = self._settings.value(
                self._settings.rules(word, default, scope), names, layers
            )
        for word, (ours, default) in method.fixed.items():
            step[ours] = self._settings.single_value(
                self._settings.rules(word, default, scope), word, default
            )
        for word, meanings in method.switches.items():
            step |= meanings[self._settings.switch(word, meanings, scope)]
        if "density" in each:
            each |= without_empty(each["density"], each["weights"], step)
        step |= {word: values[0] if all(value == values[0] for value in values) else values
                 for word, values in each.items()}  # fmt: skip
        if method.at_density_one and (densities := step["density"]) in (1, [1] * len(points)):
            step = {word: said for word, said in step.items() if word not in _SPARSE}
            step["op"] = method.at_density_one
            step |= {"density": densities} if step["op"] == "ties" else {}
        if relative:
            step["relative"] = True
        if method.op == "nuslerp":
            step["granularity"] = self._settings.granularity(scope)
        computed_in = self._config.get("dtype") or "the models' dtype"
        about = f"computed in float64 and rounded once; mergekit computes in {computed_in}"
        step["about"] = "; ".join(part for part in (about, method.differs) if part)
        return state.path, step

    # Slices

    def _cut_slices(self, name: str) -> tuple[str, list[Json]]:
        slices = self._config["slices"]
        parts = [[self._source(entry) for entry in part["sources"]] for part in slices]
        for part in parts:
            if any(source.layers is None for source in part):
                raise UsageError("every source of a slice needs a 'layer_range'")
            if len({len(source.layers or ()) for source in part}) > 1:
                raise UsageError("the sources of a slice have different numbers of layers")
        if name == "passthrough" and all(len(part) == 1 for part in parts):
            return self._passed_through([part[0] for part in parts])
        if name == "passthrough":
            raise UsageError("passthrough takes slices of one source each")
        return self._merged_by_slices(METHODS[name], slices, parts)

    def _passed_through(self, sources: list[Source]) -> tuple[str, list[Json]]:
        state = sources[0].path
        names = self._names(state)
        steps: list[Json] = []
        if sources[0].layers is not None:
            steps.append({
                "op": "layers",
                "container": names.container,
                "take": [self._taken(source, state) for source in sources],
            })  # fmt: skip
        steps += self._ending(sources[-1].path, state)
        first = 0
        for number, source in enumerate(sources):
            layers = range(first, first + len(source.layers or ()))
            ends = number == 0, number == len(sources) - 1
            own = layers if source.layers is not None else None
            steps += self._scale_step(source, names, own, ends)
            first = layers.stop
        return state, steps

    def _ending(self, last: str, state: str) -> list[Json]:
        """Return the steps that take what lies behind the layers from the last slice's model."""
        if last == state:
            return []
        behind = self._names(state).behind
        return [
            {"op": "delete", "target": list(behind), "optional": True},
            *(
                {"op": "copy", "from": module, "to": module, "model": self._named(last),
                 "optional": True}
                for module in (f"{module}.{{rest**}}" for module in behind)
            ),
        ]  # fmt: skip

    def _taken(self, source: Source, state: str) -> Any:
        assert source.layers is not None
        taken = f"{source.layers.start}:{source.layers.stop}"
        return taken if source.path == state else {"model": self._named(source.path),
                                                   "range": taken}  # fmt: skip

    def _scale_step(
        self, source: Source, names: Names, layers: range | None, ends: tuple[bool, bool]
    ) -> list[Json]:
        """Return steps that multiply a slice by its `scale`.

        `ends` says whether what lies before the layers, and behind them, goes with it.
        """
        if "scale" not in {**self._settings.parameters, **source.parameters}:
            return []
        moved = layers is not None and source.layers != layers
        steps: list[Json] = []
        passed: list[str] = []
        for rule in self._settings.rules("scale", None, source.parameters):
            if moved and re.search(r"\d", rule.filter or ""):
                raise UsageError(
                    f"the 'scale' filter {rule.filter!r} has a number of a layer that moves; it is "
                    "not imported"
                )
            for target, by in self._scaled(rule, names, layers, ends):
                if by != 1:
                    targets = [target, *(f"!{other}" for other in passed)]
                    steps.append({"op": "scale", "target": targets, "by": by, "optional": True})
                passed.append(target)
        return steps

    def _scaled(
        self, rule: Rule, names: Names, layers: range | None, ends: tuple[bool, bool]
    ) -> list[tuple[str, float]]:
        """Return what a rule multiplies, and by what; each layer on its own along a gradient."""
        whole = names.slice(layers, ends, rule.filter) if layers else containing(rule.filter)
        if len(rule.values) == 1:
            return [(whole, rule.values[0])]
        if layers is None and names.count is None:
            raise UsageError("a 'scale' that varies by layer needs the model here, to count them")
        found = [
            (item["target"], item["value"])
            for item in varying(rule, names, range(names.count or 0) if layers is None else layers)
            if "target" in item
        ]
        return [*found, (whole, rule.values[0])]

    def _merged_by_slices(
        self, method: Method, slices: list[Json], parts: list[list[Source]]
    ) -> tuple[str, list[Json]]:
        found: list[Operands] = []
        for entry, part in zip(slices, parts, strict=True):
            own = entry.get("base_model")
            base = path_of(own) if own is not None else self._base
            if len(part) == 1:
                self._check_alone(method, part[0], entry)
                found.append((part[0], [], False))
            else:
                found.append(operands_of(method, part, base))
        made = stacked(found, {s.path: self._names(s.path) for part in parts for s in part})
        self._notes += made.notes
        scopes = [entry.get("parameters") or {} for entry in slices]
        state = made.state
        if len(slices) == 1 and not made.is_arranged and not found[0][1]:
            return state, []
        if len(slices) == 1 and not made.is_arranged:
            return state, [self._merged(method, found[0], scopes[0])[1]]
        return state, [*self._arranging(made), *self._by_slice(method, found, scopes, made)]

    def _check_alone(self, method: Method, source: Source, entry: Json) -> None:
        """Raise UsageError for a slice of one source that is not simply taken."""
        if method.op != "average":
            raise UsageError("slices of one source are stacked: passthrough or linear")
        scopes = source.parameters, entry.get("parameters") or {}
        rules = self._settings.rules("weight", None, *scopes)
        if any(value != 1 for rule in rules for value in rule.values) and not self._settings.switch(
            "normalize", {True: {}, False: {}}, scopes[1]
        ):
            raise UsageError("a slice of one source has a 'weight': only with 'normalize'")

    def _arranging(self, made: Stacked) -> list[Json]:
        """Return the steps that give every operand its layers in the order of the result."""
        steps: list[Json] = []
        container = self._names(made.state).container
        for word, column in made.arranged.items():
            base = column[0].path
            take = [self._taken(source, base) for source in column]
            steps.append({"op": "layers", "container": container, "take": take,
                          "base": self._named(base), "into": word})  # fmt: skip
        if made.own is not None:
            take = [self._taken(source, made.state) for source in made.own]
            steps.append({"op": "layers", "container": container, "take": take})
            steps += self._ending(made.own[-1].path, made.state)
        return steps

    def _by_slice(
        self, method: Method, found: list[Operands], scopes: list[Json], made: Stacked
    ) -> list[Json]:
        """Return a step for each slice that is merged, and for what lies before and behind them."""
        steps: list[Json] = []
        names, last = self._names(made.state), len(found) - 1
        behind = [*names.behind] if made.shares_end else []
        for number, (operands, scope, layers) in enumerate(
            zip(found, scopes, made.ranges, strict=True)
        ):
            if not operands[1]:
                continue
            models = [made.called.get(role) or self._reference(other.path)
                      for role, other in enumerate(operands[1], 1)]  # fmt: skip
            target = [names.pattern(layers, None)]
            if number == 0:  # with it goes what lies before the layers
                others = [index for part in made.ranges[1:] for index in part]
                target = ["**", *([f"!{names.pattern(others, None)}"] if others else [])]
                target += [f"!{module}" for module in names.behind if last or not made.shares_end]
            elif number == last:
                target += behind
            _, step = self._merged(method, operands, scope, layers, models)
            steps.append({"op": step.pop("op"), "target": target, **step})
        if found[last][1] and not made.shares_end and names.behind:
            _, step = self._merged(method, found[last], scopes[last], made.ranges[last])
            steps.append(
                {"op": step.pop("op"), "target": [*names.behind], "optional": True, **step}
            )
        return steps

    def _names(self, path: str) -> Names:
        return names_of(self._roots.get(path, path), self._notes)
