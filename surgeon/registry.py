"""The ops: each declared once, by its function; schema, tables and law tests derive from that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    parameters: schema.Schema
    example: Mapping[str, Any]
    paper: str | None
    doc: str

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


def register(
    function: Rewrite,
    *,
    name: str,
    group: Group,
    example: Mapping[str, Any],
    paper: str | None,
    exactly_one: tuple[str, ...] = (),
) -> None:
    """Add an op to the registry; `exactly_one` names parameters that exclude each other."""
    parameters = schema.of_parameters(function, leave_out=("draft",))
    if exactly_one:
        parameters["oneOf"] = [{"required": [word]} for word in exactly_one]
    OPS[name] = Op(
        name, group, function, parameters, example, paper, inspect.getdoc(function) or ""
    )


def op(
    *,
    group: Group,
    example: Mapping[str, Any],
    paper: str | None = None,
    exactly_one: tuple[str, ...] = (),
) -> Callable[[Rewrite], Rewrite]:
    """Register a rewrite `(draft, *, parameters...)` as the op of its name.

    `example` holds parameters that work on the example network of `tests/conftest.py`; the law
    tests run it and `surgeon ops NAME` shows it.
    """

    def decorate(rewrite: Rewrite) -> Rewrite:
        register(
            rewrite,
            name=rewrite.__name__.rstrip("_"),
            group=group,
            example=example,
            paper=paper,
            exactly_one=exactly_one,
        )
        return rewrite

    return decorate
