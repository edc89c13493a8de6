"""Named initialisations, as recipes and ops use them; what each does is in values.py.

`parse` checks what a recipe says, `fresh` makes a whole tensor, `grown` appends to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import surgeon.initialisers.values  # noqa: F401  (declares the initialisations)
from surgeon.base.errors import UsageError, did_you_mean
from surgeon.base.places import Places
from surgeon.base.schema import Schema
from surgeon.initialisers.parts import INITIALISERS, Initialisation, NewPart
from surgeon.lazy import Joined, LazyTensor, Selected, Stream, TensorSpec
from surgeon.numeric.dtypes import DTYPES


def init_schema(*others: str) -> Schema:
    """Return the schema of an `init`: a name, or an object with a name and its parameters.

    `others` are names without parameters that an op understands besides, such as net2wider. Each
    name has a branch of its own, so that an error is about the initialisation that was meant.
    """
    branches = [
        {
            "if": {
                "type": "object",
                "properties": {"name": {"const": name}},
                "required": ["name"],
            },
            "then": {
                **row.schema,
                "description": row.about,
                "properties": {"name": {"const": name}, **row.schema["properties"]},
            },
        }
        for name, row in INITIALISERS.items()
    ]
    named = {"name": {"enum": [*INITIALISERS, *others]}}
    return {
        "type": ["string", "object"],
        "allOf": [
            {"if": {"type": "string"}, "then": {"enum": [*INITIALISERS, *others]}},
            {"if": {"type": "object"}, "then": {"required": ["name"], "properties": named}},
            *branches,
        ],
    }


@dataclass(frozen=True)
class InitSchema:
    """The schema of an init, put together only where it is asked for."""

    others: tuple[str, ...] = ()

    @property
    def json_schema(self) -> Schema:
        return init_schema(*self.others)


Init = Annotated[str | dict[str, Any], InitSchema(), "how new values are made"]
BiasInit = Annotated[
    str | dict[str, Any] | None,
    InitSchema(),
    "how new biases are made; without it as `init` says, or by `default` where `init` needs fans",
]


@dataclass(frozen=True)
class Chosen:
    """An initialisation and the parameters that a recipe gives it."""

    initialisation: Initialisation
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        return self.initialisation.name

    @property
    def looks_at_rows(self) -> bool:
        return self.initialisation.looks_at_rows

    def make(self, part: NewPart) -> LazyTensor:
        """Return a new part; raises PlanError where there can be none."""
        kind = DTYPES[part.spec.dtype].kind
        if kind not in self.initialisation.kinds:
            able = [name for name, row in INITIALISERS.items() if kind in row.kinds]
            raise part.error(f"'{self.name}' cannot make {kind} values; {', '.join(able)} can")
        if not self.looks_at_rows:
            return self.initialisation.make(part, **self.parameters)
        if part.old is None or not part.old_size:
            raise part.error(f"'{self.name}' looks at old rows, and there are none")
        return self.initialisation.make(part, old=part.old, **self.parameters)


def parse(init: str | dict[str, Any]) -> Chosen:
    """Return the initialisation that a recipe names; raises UsageError for one that is not."""
    if isinstance(init, str):
        name, parameters = init, {}
    else:
        parameters = dict(init)
        name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise UsageError("an init needs a 'name'")
    if name not in INITIALISERS:
        hint = did_you_mean(name, INITIALISERS) or f"; there are {', '.join(INITIALISERS)}"
        raise UsageError(f"unknown init '{name}'{hint}")
    needed = INITIALISERS[name].schema.get("required", [])
    if missing := [word for word in needed if word not in parameters]:
        raise UsageError(f"init '{name}' needs {', '.join(map(repr, missing))}")
    return Chosen(INITIALISERS[name], parameters)


def fresh(
    spec: TensorSpec,
    init: str | dict[str, Any],
    stream: Stream,
    *,
    name: str,
    weight: TensorSpec | None = None,
) -> LazyTensor:
    """Return a new tensor; `name` is the last part of its name, such as 'bias'.

    `weight` is the spec of the module's weight, from which torch takes a bias's fan. Raises
    PlanError where the initialisation does not suit the tensor.
    """
    return parse(init).make(NewPart(name, spec, stream, weight))


def grown(
    old: LazyTensor,
    dim: int,
    count: int,
    init: str | dict[str, Any],
    stream: Stream,
    *,
    name: str,
    weight: TensorSpec | None = None,
    places: Places | None = None,
) -> LazyTensor:
    """Return a tensor with `count` new entries along `dim`: in `places`, or else behind the old.

    `name` and `weight` are as in `fresh`; `weight` has its final size. The old entries keep their
    bits. Values drawn at random do not depend on the places.
    """
    spec = old.spec.resized(dim, old.spec.shape[dim] + count)
    part = NewPart(name, spec, stream, weight, old, dim, places)
    return arranged(Joined((old, parse(init).make(part)), dim), dim, places)


def arranged(joined: LazyTensor, dim: int, places: Places | None) -> LazyTensor:
    """Return old entries and the new ones behind them with the new ones in their places."""
    order = places.order if places else None
    return joined if order is None else Selected(joined, dim, order)


_PRIMARY = ("gamma", "scale", "kernel")


def for_sibling(
    init: str | dict[str, Any], bias_init: str | dict[str, Any] | None, *, name: str
) -> str | dict[str, Any]:
    """Return the init of the tensor `name` of a module whose `init` a step gives.

    Weights get `init`. Biases get `bias_init`; without one `init` where that can speak for a
    vector, else, where it needs fans, the default. What else there is (statistics, counts) gets
    `init` where that looks at old rows, so that the new rows of a module belong together; else the
    default.
    """
    is_bias = "bias" in name or name == "beta"
    if is_bias and bias_init is not None:
        return bias_init
    if not is_bias and ("weight" in name or name in _PRIMARY):
        return init
    chosen = parse(init)
    speaks = chosen.initialisation.least_rank <= 1 if is_bias else chosen.looks_at_rows
    return init if speaks else "default"
