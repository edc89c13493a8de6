"""Pages of words that are no ops: a recipe's training section, and each initialisation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from surgeon.base.schema import Schema
from surgeon.base.tables import indented, table, wrapped
from surgeon.cli import catalogue
from surgeon.cli.catalogue import default_text, type_text
from surgeon.draft.registry import OPS
from surgeon.initialisers import INITIALISERS
from surgeon.recipe.frame import TRAINING

Made = TypeVar("Made")
_EXAMPLE = {
    "optimizer": {"class": "torch.optim.AdamW", "args": {"lr": 0.001}},
    "stages": [
        {"name": "warm-up", "duration": {"epochs": 1}, "train": ["@new"]},
        {"name": "joint", "freeze": ["embeddings"],
         "groups": [{"name": "head", "params": ["classifier"], "lr_scale": 5}]},
    ],
}  # fmt: skip


def names() -> list[str]:
    """Return the names that have a page: ops, `training`, initialisations."""
    return [*OPS, "training", *(name for name in INITIALISERS if name not in OPS)]


def page(name: str) -> str:
    """Return the page of an op or of another word; raises UsageError for one that is neither."""
    return _maker(name, catalogue.page, _training, _initialisation)


def as_json(name: str) -> dict[str, Any]:
    """Return all that is known of an op or of another word; raises UsageError for neither."""
    return _maker(name, catalogue.one_as_json, _training_as_json, _initialisation_as_json)


def _maker(
    name: str, op: Callable[[str], Made], training: Callable[[], Made], init: Callable[[str], Made]
) -> Made:
    if name in OPS:
        return op(name)
    if name == "training":
        return training()
    return init(name) if name in INITIALISERS else op(name)


def _training() -> str:
    rows = list(training_rows())
    return "\n\n".join([
        "training (a part of the recipe, beside its steps)",
        wrapped("How the next training run is to train the result: the manifest says it to `bind`.")
        + "\n"
        + wrapped("Stages come in order; in each, every parameter is in one group or frozen."),
        "keys\n" + table(("key", "type", "default", "what"), rows, indent=2),
        "example\n" + indented(json.dumps({"training": _EXAMPLE}, indent=2)),
    ])  # fmt: skip


def training_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of everything in a training section."""
    yield from _rows(TRAINING, "")


def _rows(schema: Schema, before: str) -> Iterator[tuple[str, str, str, str]]:
    required = schema.get("required", ())
    for key, inner in schema.get("properties", {}).items():
        place = f"{before}{key}"
        default = "required" if key in required else default_text(inner)
        kind = inner.get("type")
        items = inner.get("items", {})
        if kind == "array" and "properties" in items:
            yield place, "[{...}, ...]", default, inner.get("description", "")
            yield from _rows(items, f"{place}[].")
        elif "properties" in inner:
            yield place, "{...}", default, inner.get("description", "")
            yield from _rows(inner, f"{place}.")
        else:
            yield place, type_text(inner), default, inner.get("description", "")
    if isinstance(more := schema.get("additionalProperties"), dict):
        yield f"{before}...", type_text(more), "", "any other setting of the optimizer"


def _training_as_json() -> dict[str, Any]:
    return {"name": "training", "group": "recipe", "schema": TRAINING, "example": _EXAMPLE}


def _initialisation(name: str) -> str:
    row = INITIALISERS[name]
    required = row.schema.get("required", [])
    rows = [
        (word, type_text(schema), "required" if word in required else default_text(schema),
         schema.get("description", ""))
        for word, schema in row.schema["properties"].items()
    ]  # fmt: skip
    parts = [f"{name} (an initialisation: of `init` and `bias_init`)", wrapped(row.about)]
    if rows:
        parts.append("parameters\n" + table(("name", "type", "default", "what"), rows, indent=2))
    parts.append("example\n" + indented(json.dumps(_init_example(name))))
    return "\n\n".join(parts)


def _init_example(name: str) -> dict[str, Any]:
    required = INITIALISERS[name].schema.get("required", [])
    init = {"name": name, **dict.fromkeys(required, 0)} if required else name
    return {"op": "widen", "target": "classifier", "rows": 1, "init": init}


def _initialisation_as_json(name: str) -> dict[str, Any]:
    row = INITIALISERS[name]
    return {"name": name, "group": "initialisation", "summary": row.about,
            "parameters": row.schema, "example": _init_example(name)}  # fmt: skip
