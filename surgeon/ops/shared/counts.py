"""Counts that a recipe states, or has the model's config say: heads, groups."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from surgeon.base.errors import PlanError, listed
from surgeon.base.lists import as_list
from surgeon.draft import Draft


class _Written:
    """What a recipe may write: of several keys the first that the config has counts."""

    json_schema: ClassVar[dict[str, Any]] = {
        "anyOf": [
            {"type": "integer", "minimum": 1},
            {
                "type": "object",
                "properties": {
                    "config": {
                        "type": ["string", "array"],
                        "items": {"type": "string", "minLength": 1},
                        "minLength": 1,
                        "minItems": 1,
                        "description": "a key of the config beside the input, dots included, or "
                        "several: the first that is there counts",
                    }
                },
                "required": ["config"],
                "additionalProperties": False,
            },
        ]
    }


Count = Annotated[int | dict[str, Any], _Written()]


def number(draft: Draft, count: int | dict[str, Any], what: str) -> int:
    """Return a count; raises PlanError where the config that is to say it does not."""
    if isinstance(count, int):
        return count
    keys = as_list(count["config"])
    config = draft.outside.read_config(None)
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if type(value) is int and value > 0:
            return value
        if value is not None:
            raise PlanError(f"{what}: the config's '{key}' is {value!r}, and no count")
    there = "the config beside the input has no" if config else "no config beside the input says"
    raise PlanError(
        f"{what}: {there} {listed(keys)}; give the number in its place, with --set where a "
        "variable stands for it"
    )
