"""The ops: each declared once, by its function; schema, tables and law tests derive from that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal

from surgeon.base import schema
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
        known = self.parameters["properties"]
        given = {
            name: schema.whole_numbers(value, known[name]) for name, value in parameters.items()
        }
        self.rewrite(draft, **schema.arguments(given, self.rewrite))


class _Ops(Mapping[str, Op]):
    """The ops by name; the file of one is imported when it is first asked for.

    There may be many, and a recipe uses a few of them.
    """

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._declared: dict[str, Op] = {}

    def add_folder(self, package: str, path: Iterable[str]) -> None:
        """Register an op for each file in a package, of the file's name."""
        self._files |= {
            file.name: f"{package}.{file.name}" for file in iter_modules(path) if not file.ispkg
        }

    def __getitem__(self, name: str) -> Op:
        if name not in self._declared:
            import_module(self._files[name])
        return self._declared[name]

    def __setitem__(self, name: str, op: Op) -> None:
        self._declared[name] = op

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


OPS = _Ops()


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
