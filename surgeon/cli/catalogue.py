"""What surgeon knows: its ops, their parameters, the initialisations, the ready-made recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from textwrap import fill
from typing import Any

import surgeon.merges
import surgeon.ops  # noqa: F401  (importing the packages registers the ops)
from surgeon.base.errors import UsageError, did_you_mean
from surgeon.base.schema import Schema
from surgeon.base.screen import screen
from surgeon.base.tables import indented, table, wrapped
from surgeon.draft.registry import OPS, OURS, Op
from surgeon.initialisers import INITIALISERS

Json = dict[str, Any]
_ROOM_FOR_PAPERS = 120
_GROUPS = ("structure", "size", "values", "merge", "check")


def _ordered() -> list[Op]:
    broken = OPS.problems()
    found = [OPS[name] for name in OPS if OPS.origin(name) == OURS or name not in broken]
    return sorted(found, key=lambda op: (_GROUPS.index(op.group), op.name))


def notes() -> list[str]:
    """Return what is wrong with ops of other packages; the list of ops leaves these out."""
    return list(OPS.problems().values())


def as_json() -> list[Json]:
    """Return every op in short."""
    return [
        {
            "name": op.name,
            "group": op.group,
            "summary": op.summary,
            "paper": op.paper,
            "origin": OPS.origin(op.name),
        }
        for op in _ordered()
    ]


def table_of_ops() -> str:
    """Return a row for every op, where others' come from, and the initialisations' names."""
    ops = _ordered()
    columns = screen().columns
    # Beside papers, narrow columns fold to many lines for each op.
    is_narrow = columns is not None and columns < _ROOM_FOR_PAPERS
    rows = [(op.name, op.group, op.summary, "" if is_narrow else op.paper or "") for op in ops]
    inits = f"initialisations (`surgeon ops widen` explains them): {', '.join(INITIALISERS)}"
    origins = {op.name: OPS.origin(op.name) for op in ops}
    others = [f"\n'{name}' is from {origin}" for name, origin in origins.items() if origin != OURS]
    return (
        table(("op", "group", "what it does", "paper"), rows)
        + ("\n" + "".join(others) if others else "")
        + f"\n\n{wrapped(inits)}"
        + ("\n\npapers are on the pages: surgeon ops ties" if is_narrow else "")
    )


def _find(name: str) -> Op:
    if name not in OPS:
        hint = did_you_mean(name, OPS) or f"; there are {', '.join(OPS)}"
        raise UsageError(f"there is no op '{name}'{hint}")
    return OPS[name]


def _step(op: Op) -> Json:
    return {"op": op.name, **op.example}


def one_as_json(name: str) -> Json:
    """Return all that is known of an op; raises UsageError for a name that is none."""
    op = _find(name)
    return {
        "name": op.name,
        "group": op.group,
        "summary": op.summary,
        "doc": op.doc,
        "parameters": op.parameters,
        "example": _step(op),
        "paper": op.paper,
        "origin": OPS.origin(name),
    }


def page(name: str) -> str:
    """Return an op's page; raises UsageError for a name that is none."""
    op = _find(name)
    parts = [f"{op.name} ({op.group})", paragraphs(op.doc)]
    if rows := parameters(op):
        parts.append("parameters\n" + table(("name", "type", "default", "what"), rows, indent=2))
    parts += choices(op)
    parts.append("example\n" + indented(example(op)))
    if "init" in op.parameters["properties"]:
        parts.append("initialisations\n" + _initialisations())
    if op.paper:
        parts.append("paper\n" + wrapped(f"  {op.paper}", indent=2))
    if (origin := OPS.origin(name)) != OURS:
        parts.append(f"origin\n  {origin} ({op.module})")
    return "\n\n".join(parts)


def paragraphs(text: str) -> str:
    """Return a docstring, its paragraphs folded anew to the terminal that there is."""
    if not (columns := screen().columns):
        return text
    return "\n\n".join(
        fill(" ".join(part.split()), columns, break_long_words=False, break_on_hyphens=False)
        for part in text.split("\n\n")
    )


def parameters(op: Op) -> list[tuple[str, str, str, str]]:
    """Return a row for each of an op's parameters: name, type, default, what it is."""
    required = op.parameters.get("required", [])
    return [
        (
            word,
            type_text(schema),
            "required" if word in required else default_text(schema),
            schema.get("description", ""),
        )
        for word, schema in op.parameters["properties"].items()
    ]


def choices(op: Op) -> list[str]:
    """Return what must be given of several parameters, nothing where there is no such choice."""
    words = [choice["required"][0] for choice in op.parameters.get("oneOf", ())]
    return [f"exactly one of {', '.join(words)} must be given"] if words else []


def example(op: Op) -> str:
    """Return an op's example as a step."""
    return json.dumps(_step(op), ensure_ascii=False)


def _initialisations() -> str:
    rows = []
    for name, row in INITIALISERS.items():
        required = row.schema.get("required", [])
        parameters = [
            word if word in required else f"{word}={default_text(schema)}"
            for word, schema in row.schema["properties"].items()
        ]
        rows.append((name, ", ".join(parameters), row.about))
    return table(("name", "parameters", "what"), rows, indent=2)


def default_text(schema: Schema) -> str:
    """Return a parameter's default as a recipe would say it, nothing where it has none."""
    return json.dumps(schema["default"]) if "default" in schema else ""


def type_text(schema: Mapping[str, Any]) -> str:
    """Return in a few words what values a schema allows."""
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        return " or ".join(dict.fromkeys(_kind_text(kind, schema) for kind in kinds
                                         if kind != "null"))  # fmt: skip
    branches = [type_text(branch) for branch in schema.get("anyOf", [])]
    return " or ".join(dict.fromkeys(word for word in branches if word)) or "any"


def _kind_text(kind: str, schema: Mapping[str, Any]) -> str:
    if kind == "array" and "items" in schema:
        inner = type_text(schema["items"])
        return f"[{inner}, ...]"
    if kind == "object" and (words := schema.get("properties")):
        return "{" + ", ".join(words) + "}"
    return str(kind)
