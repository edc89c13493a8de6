"""What a mergekit configuration looks like; what its values mean is the importer's to say."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_PATH: Schema = {"type": ["string", "number", "object"]}
_PARAMETERS: Schema = {"type": ["object", "null"]}
_DTYPE: Schema = {"type": ["string", "null"]}
# More layers than any model has: a range of them is counted out.
_LAYER: Schema = {"type": "integer", "minimum": 0, "maximum": 100_000}
_SOURCE: Schema = {
    "type": "object",
    "properties": {
        "model": _PATH,
        "layer_range": {"type": ["array", "null"], "items": _LAYER, "minItems": 2, "maxItems": 2},
        "parameters": _PARAMETERS,
    },
    "required": ["model"],
}
_SLICE: Schema = {
    "type": "object",
    "properties": {
        "sources": {"type": "array", "items": _SOURCE, "minItems": 1},
        "parameters": _PARAMETERS,
        "base_model": {"anyOf": [_PATH, {"type": "null"}]},
    },
    "required": ["sources"],
}
_MODULE: Schema = {
    "type": "object",
    "properties": {
        "models": {"type": ["array", "null"], "items": _SOURCE},
        "slices": {"type": ["array", "null"], "items": _SLICE},
        "parameters": _PARAMETERS,
    },
}
CONFIG: Schema = {
    "type": "object",
    "properties": {
        "modules": {"type": ["object", "null"], "additionalProperties": _MODULE},
        "merge_method": {"type": "string"},
        "base_model": {"anyOf": [_PATH, {"type": "null"}]},
        "models": {"type": ["array", "null"], "items": _SOURCE},
        "slices": {"type": ["array", "null"], "items": _SLICE},
        "parameters": _PARAMETERS,
        "dtype": _DTYPE,
        "out_dtype": _DTYPE,
    },
    "required": ["merge_method"],
}
