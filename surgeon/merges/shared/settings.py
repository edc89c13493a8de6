"""A merge's parameters: as a recipe gives them, and what they are tensor by tensor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from surgeon.base.errors import PlanError, listed
from surgeon.base.schema import parameter_name
from surgeon.draft import Draft
from surgeon.lazy import LazyTensor, Stream
from surgeon.merges.shared.operands import Arithmetic, WholeArithmetic
from surgeon.merges.shared.varying import Numbers, Varying
from surgeon.numeric.dtypes import DTYPES


@dataclass
class TensorContext:
    """The tensor at hand: what a merge gets that has a parameter of this type.

    `streams` are random streams, one per model; of each, an element's number is its own whatever
    block it is computed in.
    """

    name: str
    shape: tuple[int, ...]
    streams: tuple[Stream, ...]
    has_auxiliary: bool = False


@dataclass(frozen=True)
class AuxiliaryTensors:
    """Marks a parameter that names further models, one per operand, the base model's first.

    Their tensors of the same name are operands too, after the others. `shape` says, from the
    tensor's own shape, which shape they must have; a tensor for which it is None has none. With
    `optional`, what none of them has is merged without.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...] | None] = lambda shape: shape
    optional: bool = False

    @property
    def json_schema(self) -> dict[str, Any]:
        """The schema of what a recipe says."""
        return {"type": "array", "items": {"type": "string"}, "minItems": 2}


Maker = Callable[..., Arithmetic | WholeArithmetic]


@dataclass(frozen=True)
class Declared:
    """What a merge's own parameters are: as a recipe gives them, and how they reach the maker."""

    parameters: tuple[inspect.Parameter, ...]
    varying: Mapping[str, Varying]
    auxiliary: tuple[str, AuxiliaryTensors] | None
    at: str | None

    @property
    def defaults(self) -> dict[str, Any]:
        """What parameters are that a recipe leaves out."""
        return {
            parameter.name: parameter.default
            for parameter in self.parameters
            if parameter.default is not parameter.empty
        }

    @classmethod
    def of(cls, maker: Maker) -> Declared:
        found = inspect.signature(maker, eval_str=True).parameters.values()
        varying: dict[str, Varying] = {}
        auxiliary, at = None, None
        for parameter in found:
            if parameter.annotation is TensorContext:
                at = parameter.name
            for note in get_args(parameter.annotation):
                if isinstance(note, Varying):
                    varying[parameter.name] = note
                elif isinstance(note, AuxiliaryTensors):
                    auxiliary = parameter.name, note
        # A recipe that says nothing about one of these gives each model its default.
        own = [
            parameter.replace(default=None)
            if parameter.name in varying and varying[parameter.name].default is not None
            else parameter
            for parameter in found
            if parameter.name != at
        ]
        return cls(tuple(own), varying, auxiliary, at)


@dataclass(frozen=True)
class Settings:
    """A maker's parameters, and what is said of them: those that are nothing are not."""

    given: Mapping[str, Any]
    about: Mapping[str, Any]


class Resolver:
    """A step's parameters, tensor by tensor."""

    def __init__(
        self, draft: Draft, declared: Declared, parameters: Mapping[str, Any], models: int
    ) -> None:
        points = models if parameters.get("relative") else models + 1
        counts = {"model": models, "operand": models + 1, "point": points}
        self._draft = draft
        self._declared = declared
        self._given = dict(parameters)
        self._numbers = Numbers(draft.tensors)
        for word, varying in declared.varying.items():
            if varying.per != "tensor":
                shown = parameter_name(word)
                self._given[word] = varying.for_each(self._given.get(word), shown, counts)
        # What varies are few settings of many tensors.
        self._settings: dict[str, Settings] = {}
        self._same = "" if self._varies() else repr(self._given)
        self.auxiliary_models: list[str] = []
        self._with_auxiliary = 0
        self._without_auxiliary: list[str] = []
        if declared.auxiliary:
            self.auxiliary_models = self._given[declared.auxiliary[0]]
            if len(self.auxiliary_models) != models + 1:
                raise PlanError(
                    f"'{parameter_name(declared.auxiliary[0])}' names "
                    f"{len(self.auxiliary_models)} models for {models + 1} operands (the base "
                    "model's comes first)"
                )

    def _varies(self) -> bool:
        """Say whether some parameter is not the same for all tensors."""
        given = [self._given.get(word) for word in self._declared.varying]
        items = [item for one in given for item in (one if isinstance(one, list) else [one])]
        return any(isinstance(item, dict | list) for item in items)

    def settings(self, name: str) -> Settings:
        """Return the maker's parameters for one tensor; one object for all that are equal."""
        if self._same in self._settings:
            return self._settings[self._same]
        given = {word: self._value(word, item, name) for word, item in self._given.items()}
        told = self._same or repr(given)
        if told not in self._settings:
            everything = {**self._declared.defaults, **given}
            about = {parameter_name(w): v for w, v in everything.items() if v is not None}
            self._settings[told] = Settings(given, about)
        return self._settings[told]

    def _value(self, word: str, given: Any, name: str) -> Any:
        varying = self._declared.varying.get(word)
        if varying is None or given is None:
            return given
        if varying.per == "tensor":
            return self._numbers.value(given, name)
        return [self._numbers.value(item, name) for item in given]

    def auxiliary(self, name: str) -> tuple[LazyTensor, ...]:
        """Return the auxiliary of one tensor; raises PlanError where some lack it."""
        if not self._declared.auxiliary:
            return ()
        wanted = self._declared.auxiliary[1]
        shape = wanted.shape(self._draft.spec(name).shape)
        found = [self._draft.model(other).get(name) for other in self.auxiliary_models]
        is_float = DTYPES[self._draft.spec(name).dtype].kind == "float"
        if shape is None or (wanted.optional and not any(found)):
            self._without_auxiliary += [name] if is_float else []
            return ()
        self._with_auxiliary += 1
        problems = [
            f"'{name}' is not in model '{other}'"
            if tensor is None
            else f"'{name}' in model '{other}' is {tensor.spec}, not of shape {shape}"
            for other, tensor in zip(self.auxiliary_models, found, strict=True)
            if tensor is None
            or tensor.spec.shape != shape
            or DTYPES[tensor.spec.dtype].kind != "float"
        ]
        if problems and is_float:
            raise PlanError(*problems)
        return tuple(tensor for tensor in found if tensor is not None and not problems)

    def report_without_auxiliary(self) -> None:
        """Note which tensors are merged without; raises PlanError where all are."""
        if not self._declared.auxiliary or not self._without_auxiliary:
            return
        models = ", ".join(f"'{model}'" for model in dict.fromkeys(self.auxiliary_models))
        nothing = f"there is nothing in model {models} for {listed(self._without_auxiliary)}"
        if not self._with_auxiliary:
            raise PlanError(nothing)
        self._draft.notes.append(f"{nothing}: averaged")
