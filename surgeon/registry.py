"""The ops: each declared once, by its function; schema, tables and law tests derive from that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from surgeon import schema
from surgeon.draft import Draft

Group = Literal["structure", "size", "values", "merge", "check"]
Rewrite = Callable[..., None]

# What every step may carry besides its op's own parameters.
COMMON: dict[str, schema.Schema] = {
    "op": {"type": "string", "description": "the operation"},
    "id": {
        "type": "string",
        "pattern": "^[A-Za-z_][\\w-]*$",
        "description": "a unique name; used in errors and lineage, and it seeds this step",
    },
    "about": {"type": "string", "description": "what this step is for"},
    "optional": {
        "type": "boolean",
        "description": "a pattern of this step may match nothing",
        "default": False,
    },
}


@dataclass(frozen=True)
class Op:
    """One registered kind of step."""

    name: str
    group: Group
    rewrite: Rewrite
    example: Mapping[str, Any]
    paper: str | None
    exactly_one: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> schema.Schema:
        """The JSON Schema of the op's own parameters, as an object."""
        described = schema.of_parameters(self.rewrite, leave_out=("draft",))
        if self.exactly_one:
            described["oneOf"] = [{"required": [word]} for word in self.exactly_one]
        return described

    @property
    def doc(self) -> str:
        """The docstring."""
        return inspect.getdoc(self.rewrite) or ""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def step_schema(self) -> schema.Schema:
        """The JSON Schema of a whole step of this op."""
        properties = {**COMMON, "op": {"const": self.name}, **self.parameters["properties"]}
        required = ["op", *self.parameters.get("required", [])]
        return {**self.parameters, "properties": properties, "required": required}

    def apply(self, draft: Draft, parameters: Mapping[str, Any]) -> None:
        """Run the rewrite with a step's parameters."""
        self.rewrite(draft, **schema.arguments(parameters, self.rewrite))


OPS: dict[str, Op] = {}


def op(
    *,
    group: Group,
    example: Mapping[str, Any],
    paper: str | None = None,
    exactly_one: tuple[str, ...] = (),
) -> Callable[[Rewrite], Rewrite]:
    """Register a rewrite `(draft, *, parameters...)` as the op of its name.

    `exactly_one` names parameters of which a step gives one.
    `example` holds parameters that work on the example network of `tests/conftest.py`; the law
    tests run it and `surgeon ops NAME` shows it.
    """

    def decorate(rewrite: Rewrite) -> Rewrite:
        name = rewrite.__name__
        OPS[name] = Op(name, group, rewrite, example, paper, exactly_one)
        return rewrite

    return decorate
