"""The ops: each declared once, by its function; schema, tables and law tests derive from that.

An op counts from the moment its `@op` runs, whoever wrote it. A package that is installed beside
surgeon names its ops in the entry-point group `surgeon.ops`, each with the module that declares it:

    [project.entry-points."surgeon.ops"]
    soften = "softening.ops"
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from surgeon.base import schema
from surgeon.base.errors import SurgeonError, UsageError, listed
from surgeon.draft import Draft

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

OpGroup = Literal["structure", "size", "values", "merge", "check"]
Rewrite = Callable[..., None]
ENTRY_POINTS = "surgeon.ops"
OURS = "surgeon"

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
    group: OpGroup
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
        if taken := COMMON.keys() & described["properties"].keys():
            raise UsageError(f"op '{self.name}': every step has {listed(sorted(taken))} already")
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
    def module(self) -> str:
        """The import path of the file that declares it."""
        return self.rewrite.__module__

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
    """The ops by name: surgeon's own, those declared elsewhere, those that packages offer.

    There may be many, and a recipe uses a few of them: the file of one is imported when it is first
    asked for, and what packages offer is looked up when a name is not known otherwise.
    """

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._declared: dict[str, Op] = {}

    def add_folder(
        self,
        package: str,
        path: Iterable[str],
        families: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    ) -> None:
        """Register an op for each file in a package, of the file's name; `families` have more."""
        files = {
            name: f"{package}.{file.name}"
            for file in iter_modules(path)
            if not file.ispkg
            for name in families.get(file.name, (file.name,))
        }
        self._files |= sorted(files.items())
        for op in self._declared.values():
            self._check_name(op)

    def declare(self, op: Op) -> None:
        """Register an op; raises UsageError where another has its name.

        The same module may declare it again, as a notebook's cell does that is run twice.
        """
        self._check_name(op)
        self._declared[op.name] = op

    def _check_name(self, op: Op) -> None:
        before = self._declared.get(op.name, op).module
        owner = self._files.get(op.name, before)
        if owner != op.module:
            raise UsageError(
                f"op '{op.name}' of {op.module}: {owner} declares an op of that name; rename one"
            )

    @cached_property
    def _offered(self) -> Mapping[str, tuple[EntryPoint, ...]]:
        """What installed packages offer, by name; more than one of a name is a mistake."""
        # Looks at every package that is installed: too slow for recipes that have no need of it.
        from importlib.metadata import entry_points

        found: dict[str, tuple[EntryPoint, ...]] = {}
        for entry in sorted(entry_points(group=ENTRY_POINTS), key=_package):
            found[entry.name] = (*found.get(entry.name, ()), entry)
        return found

    def origin(self, name: str) -> str:
        """Return where an op comes from: `OURS`, a package with its version, or a module."""
        if name in self._files:
            return OURS
        if name in self._offered:
            return " and ".join(map(_package, self._offered[name]))
        return self._declared[name].module

    def problems(self) -> dict[str, str]:
        """Return what is wrong with ops that packages offer, by name."""
        found = {}
        for name, entries in self._offered.items():
            try:
                if name in self._files:
                    packages = " and ".join(map(_package, entries))
                    raise UsageError(f"op '{name}' of {packages}: surgeon has an op of that name")
                self[name]
            except SurgeonError as error:
                found[name] = str(error)
        return found

    def __getitem__(self, name: str) -> Op:
        """Return an op; raises UsageError where a package offers it and it cannot be had."""
        if name not in self._declared:
            if name in self._files:
                import_module(self._files[name])
            else:
                self._load(name)
        return self._declared[name]

    def _load(self, name: str) -> None:
        """Import what a package offers; raises UsageError where that fails, KeyError for none."""
        entry, *others = self._offered[name]
        place = f"op '{name}' of {_package(entry)}"
        if others:
            also = ", ".join(map(_package, others))
            raise UsageError(f"{place}: {also} offers an op of that name too; uninstall one")
        try:
            entry.load()
            if name in self._declared:
                _ = self._declared[name].parameters
        except Exception as error:  # whatever another's module does when it is imported
            self._declared.pop(name, None)
            if isinstance(error, SurgeonError):
                raise
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"{place}: importing {entry.value} fails: {what}") from error
        if name not in self._declared:
            raise UsageError(f"{place}: {entry.value} declares no op of that name")

    def __contains__(self, name: object) -> bool:
        return name in self._files or name in self._declared or name in self._offered

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._files, *self._declared, *self._offered)))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.module


OPS = _Ops()


def op(
    *,
    group: OpGroup,
    example: Mapping[str, Any],
    paper: str | None = None,
    exactly_one: tuple[str, ...] = (),
) -> Callable[[Rewrite], Rewrite]:
    """Register a rewrite `(draft, *, parameters...)` as the op of its name.

    `exactly_one` names parameters of which a step gives one.
    `example` holds parameters that work on the example network of `tests/conftest.py`; the law
    tests run it and `surgeon ops NAME` shows it. Raises UsageError for a name that is taken.
    """

    def decorate(rewrite: Rewrite) -> Rewrite:
        name = schema.parameter_name(rewrite.__name__)
        if group not in get_args(OpGroup):
            raise UsageError(f"op '{name}': there is no group '{group}' of ops; there are "
                             f"{', '.join(get_args(OpGroup))}")  # fmt: skip
        OPS.declare(Op(name, group, rewrite, example, paper, exactly_one))
        return rewrite

    return decorate
