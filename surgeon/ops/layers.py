"""layers: numbered layers dropped, repeated, reordered, and stacked across models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from surgeon.base import depth, indices, patterns
from surgeon.base.errors import PlanError, did_you_mean
from surgeon.base.schema import Schema
from surgeon.draft import Draft, Tensors
from surgeon.draft.registry import op
from surgeon.initialisers import fresh
from surgeon.lazy import Copied, LazyTensor
from surgeon.ops.shared.scores import best, numbers, read_scores, require_named, section

_ONE: Schema = {"type": ["integer", "string"], "format": "indices"}
_ITEM: Schema = {
    "type": "object",
    "properties": {
        "range": {
            "type": ["integer", "string", "array"],
            "format": "indices",
            "items": _ONE,
            "minItems": 1,
            "description": "'a:b', 'a:b:step' or one layer; negative ones count from the end",
        },
        "model": {"type": "string", "description": "the model to take from; default the state"},
        "zero": {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "format": "name-pattern"},
            "minItems": 1,
            "description": "modules or tensors in these layers that become zeros",
        },
        "every": {
            "type": "integer",
            "minimum": 1,
            "description": "take the layers as they are, and after every so many a copy of the "
            "last, to which `zero` then applies",
        },
    },
    "required": ["range"],
    "additionalProperties": False,
}
# What a layer holds: tensors by their names in it ('' where the layer is a tensor itself).
Layer = Mapping[str, LazyTensor]
Layers = dict[int, dict[str, LazyTensor]]


@dataclass(frozen=True)
class _Taken:
    """One layer of the result, and where it comes from."""

    model: str | None
    index: int
    zero: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"layer {self.index}" + (f" of model '{self.model}'" if self.model else "")


@op(
    group="structure",
    example={
        "container": "encoder",
        "take": [0, {"model": "other", "range": "0:2"}, {"range": "-1", "zero": ["norm"]}],
    },
    paper="Kim et al. 2023, SOLAR 10.7B (depth up-scaling), https://arxiv.org/abs/2312.15166; "
    "Wu et al. 2024, LLaMA Pro (blocks that start as the identity), "
    "https://arxiv.org/abs/2401.02415; Men et al. 2024, ShortGPT (the influence of blocks), "
    "https://arxiv.org/abs/2403.03853",
    exactly_one=("take", "by"),
)
def layers(
    draft: Draft,
    *,
    container: Annotated[
        str,
        "the module whose parts are numbered from 0, or a pattern for it; '' is the model itself, "
        "such as a Sequential whose tensors are '0.weight', '1.weight'",
        {"format": "name-pattern"},
    ],
    take: Annotated[
        list[Any] | None,
        "the layers of the result in order: 'a:b', 'a:b:step', a number, or an object with "
        "{range, model, zero, every}",
        {"items": {"anyOf": [_ONE, _ITEM]}, "minItems": 1},
    ] = None,
    by: Annotated[
        str | None,
        "instead of `take`, a file of surgeon.training.collect_importance: the `keep` layers that "
        "change the most stay, in their order",
        {"minLength": 1},
    ] = None,
    keep: Annotated[int | None, "with `by`, how many layers stay", {"minimum": 1}] = None,
    base: Annotated[
        str | None,
        "with `into`, the model that is rebuilt instead of the state",
        {"minLength": 1},
    ] = None,
    into: Annotated[
        str | None,
        "keep the result as a model of this name instead of replacing the state",
        {"minLength": 1},
    ] = None,
) -> None:
    """Drop, repeat, reorder and stack numbered layers, also across models.

    The result is numbered from 0. Ranges end before their second number, as Python's do, and must
    lie within the layers that there are. A layer of the state is itself where it is first taken; a
    second time, and from another model, it is a copy, which counts as created. `zero` names what
    becomes zeros: a residual block whose last projections are zero computes the identity. With
    `every: n` copies with zeros follow every n-th layer of the range. Raises for gaps in the
    numbers, and for layers of a model that have not the tensors and shapes of one here. With `into`
    the state stays, and later steps merge with the result.
    """
    if (by is None) != (keep is None):
        raise PlanError("'by' is the file, and 'keep' how many layers stay: give both")
    scores = (
        None if by is None else (by, section(read_scores(draft, by, "importance"), "layers", by))
    )

    def taken(module: str, count: int) -> Sequence[Any]:
        if scores is None or keep is None:
            return take or []
        if keep > count:
            raise PlanError(f"{depth.called(module)} has {count} layers, and no {keep} to keep")
        where, said = scores
        values = numbers(require_named(said, module, where), count, f"{where}: layers.{module}")
        return best(values, keep)

    if into is None:
        if base is not None:
            raise PlanError("'base' is for a result that is kept 'into' a model")
        draft.tensors = _rebuilt(draft, container, taken)
        return
    if into in draft.models:
        raise PlanError(f"there is a model '{into}' already")
    on = draft if base is None else replace(draft, tensors=dict(draft.model(base)))
    draft.models[into] = _rebuilt(on, container, taken)


def _rebuilt(draft: Draft, container: str, taken: Callable[[str, int], Sequence[Any]]) -> Tensors:
    """Return a draft's tensors with the layers that are taken; raises PlanError."""
    problems: list[str] = []
    containers = _containers(draft.tensors, container)
    if not containers and not draft.optional:
        raise PlanError(_describe_unnumbered(draft.tensors, container, "the state"))
    changes: dict[str, Tensors] = {}
    for module, own in containers.items():
        try:
            changes[module] = _Container(draft, module, own).rebuilt(taken(module, len(own)))
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(*problems)
    return _with(draft.tensors, changes)


def _containers(tensors: Tensors, container: str) -> dict[str, Layers]:
    """Return the numbered layers of each container that a pattern names."""
    found: dict[str, Layers] = {}
    pattern = f"{container}.{{layer_}}" if container else "{layer_}"
    for name, tensor in tensors.items():
        captures = patterns.match(pattern, name)
        if captures is None or not captures["layer_"].isdecimal():
            continue
        rest = captures.get(patterns.UNDER) or ""
        module = name.removesuffix(f".{rest}" if rest else "").rpartition(".")[0]
        found.setdefault(module, {}).setdefault(int(captures["layer_"]), {})[rest] = tensor
    return found


def _describe_unnumbered(tensors: Tensors, container: str, where: str) -> str:
    parts = (name.rpartition(".") for name in {*patterns.modules(tensors), *tensors})
    modules = {module for module, _, number in parts if number.isdecimal()}
    hint = did_you_mean(container, modules - {""})
    listed = ", ".join(map(depth.called, sorted(modules))) or "none"
    return (
        f"{depth.called(container)} has no numbered layers in {where}"
        f"{hint or f'; those that have: {listed}'}"
    )


def _with(tensors: Tensors, changes: Mapping[str, Tensors]) -> Tensors:
    """Return the tensors with new layers in the place of each container's first."""
    result: Tensors = {}
    done: set[str] = set()
    for name, tensor in tensors.items():
        module = next((p for p in changes if depth.layer_in(p, name) is not None), None)
        if module is None:
            result[name] = tensor
        elif module not in done:
            done.add(module)
            result |= changes[module]
    return result


class _Container:
    """One container of numbered layers, to be rebuilt."""

    def __init__(self, draft: Draft, module: str, own: Layers) -> None:
        self._draft = draft
        self._module = module
        self._called = depth.called(module)
        self._layers: dict[str | None, Layers] = {None: own}
        self._copies: dict[tuple[str | None, int, int], LazyTensor] = {}
        self._taken: Counter[tuple[str | None, int]] = Counter()

    def rebuilt(self, take: Sequence[Any]) -> Tensors:
        """Return the new layers' tensors by their names; raises PlanError, all problems at once."""
        problems: list[str] = []
        plan: list[_Taken] = []
        for item in take:
            try:
                plan += self._plan(item if isinstance(item, dict) else {"range": item})
            except PlanError as error:
                problems += error.problems
        for model in dict.fromkeys(taken.model for taken in plan if taken.model):
            taken_from = sorted({taken.index for taken in plan if taken.model == model})
            problems += self._misfits(model, taken_from)
        result: Tensors = {}
        for number, taken in enumerate(plan if not problems else ()):
            try:
                for rest, tensor in self._tensors(number, taken).items():
                    result[self._name(number, rest)] = tensor
            except PlanError as error:
                problems += error.problems
        if problems:
            raise PlanError(*dict.fromkeys(problems))
        return result

    def _name(self, number: int, rest: str) -> str:
        return ".".join(part for part in (self._module, str(number), rest) if part)

    def _of(self, model: str | None) -> Layers:
        """Return the layers of the state or a model; raises PlanError for gaps in their numbers."""
        if model not in self._layers:
            tensors = self._draft.model(str(model))
            found = _containers(tensors, self._module).get(self._module)
            if not found:
                raise PlanError(_describe_unnumbered(tensors, self._module, f"model '{model}'"))
            self._layers[model] = found
        layers = self._layers[model]
        if missing := [n for n in range(max(layers)) if n not in layers]:
            where = f" in model '{model}'" if model else ""
            raise PlanError(
                f"{self._called} has no layer {missing[0]}{where}, but a layer {max(layers)}"
            )
        return layers

    def _plan(self, item: Mapping[str, Any]) -> list[_Taken]:
        model, every, zero = item.get("model"), item.get("every"), tuple(item.get("zero", ()))
        given = item["range"] if isinstance(item["range"], list) else [item["range"]]
        count = len(self._of(model))
        where = self._called + (f" of model '{model}'" if model else "")
        chosen = [index for part in given for index in _indices(part, count, where)]
        if every is None:
            return [_Taken(model, index, zero) for index in chosen]
        if len(chosen) % every:
            raise PlanError(f"a copy after every {every} of {len(chosen)} layers leaves a rest")
        found: list[_Taken] = []
        for number, index in enumerate(chosen, 1):
            found.append(_Taken(model, index))
            if number % every == 0:
                found.append(_Taken(model, index, zero))
        return found

    def _misfits(self, model: str, taken: Sequence[int]) -> list[str]:
        """Say which layers of a model are like none of the state's."""
        own = list(self._layers[None].values())
        kinds = [_kind(layer) for layer in own]
        problems: list[str] = []
        dtypes: dict[str, str] = {}
        for index in taken:
            layer = self._layers[model][index]
            if _kind(layer) not in kinds:
                problems.append(_difference(_Taken(model, index), layer, own[0]))
                continue
            like = own[kinds.index(_kind(layer))]
            dtypes |= {layer[rest].spec.dtype: like[rest].spec.dtype for rest in layer
                       if layer[rest].spec.dtype != like[rest].spec.dtype}  # fmt: skip
        for theirs, ours in dtypes.items():
            self._draft.notes.append(
                f"{self._called}: layers of model '{model}' are {theirs}, those here {ours}; "
                "each keeps its dtype"
            )
        return problems

    def _tensors(self, number: int, taken: _Taken) -> Tensors:
        layer = self._layers[taken.model][taken.index]
        occurrence = self._taken[taken.model, taken.index]
        self._taken[taken.model, taken.index] += 1
        zeroed = _names_to_zero(taken, layer)
        made: Tensors = {}
        zeros: dict[int, LazyTensor] = {}  # of tied tensors, zeros are tied
        for rest, tensor in layer.items():
            if rest in zeroed:
                if id(tensor) not in zeros:
                    name = self._name(number, rest)
                    zeros[id(tensor)] = fresh(
                        tensor.spec, "zeros", self._draft.stream(name), name=rest.rpartition(".")[2]
                    )
                made[rest] = zeros[id(tensor)]
            elif taken.model is None and occurrence == 0:
                made[rest] = tensor
            else:  # of tied tensors, copies are tied
                key = (taken.model, id(tensor), occurrence)
                made[rest] = self._copies.setdefault(key, Copied(tensor))
        return made


def _indices(given: int | str, count: int, where: str) -> Sequence[int]:
    """Return the layers that a range means; raises PlanError where they are none, or outside."""
    chosen = indices.within(given, count)
    if chosen is None:
        problem = f"reaches outside of {where}, whose layers are 0 to {count - 1}"
    elif not chosen:
        problem = "holds no layer"
    else:
        return chosen
    raise PlanError(f"'{given}' {problem}")


def _kind(layer: Layer) -> dict[str, tuple[int, ...]]:
    return {rest: tensor.spec.shape for rest, tensor in layer.items()}


def _difference(taken: _Taken, layer: Layer, like: Layer) -> str:
    """Say how a layer differs from another."""
    for rest, tensor in layer.items():
        if rest not in like:
            return f"{taken} has '{rest}', which no layer here has"
        if tensor.spec.shape != like[rest].spec.shape:
            return f"'{rest}' is {tensor.spec} in {taken}, but {like[rest].spec} here"
    missing = next(rest for rest in like if rest not in layer)
    return f"{taken} has no '{missing}', which the layers here have"


def _names_to_zero(taken: _Taken, layer: Layer) -> set[str]:
    """Return which tensors of a layer become zeros: those named, at whatever depth."""
    found: set[str] = set()
    problems: list[str] = []
    for name in taken.zero:
        pattern = name if name.startswith("re:") else f"**.{name}"
        chosen = {rest for rest in layer if patterns.match(pattern, rest) is not None}
        if not chosen:
            parts = {part for rest in layer for part in (rest, *rest.split("."))}
            problems.append(f"'{name}' is nothing in {taken}{did_you_mean(name, parts)}")
        found |= chosen
    if problems:
        raise PlanError(*problems)
    return found
