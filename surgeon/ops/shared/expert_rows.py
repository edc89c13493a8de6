"""The rows of new routers: drawn, read from a file, or made of what prompts look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from surgeon.base.errors import Hints, PlanError
from surgeon.base.indices import runs
from surgeon.draft import Draft, Tensors
from surgeon.initialisers import fresh
from surgeon.lazy import Joined, LazyTensor, Rearranged, Selected, TensorSpec, WholeTensor
from surgeon.numeric.dtypes import Array

_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1}
ROUTER_SCHEMA: dict[str, Any] = {
    "properties": {
        "random": {
            "type": "number",
            "exclusiveMinimum": 0,
            "description": "the standard deviation of normal values",
        },
        "rows": {
            "type": "string",
            "minLength": 1,
            "description": "a file of surgeon.training.collect_router",
        },
        "prompts": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": ["array", "object"],
                "items": {"type": "string"},
                "minItems": 1,
                "properties": {"positive": _TEXTS, "negative": _TEXTS},
                "required": ["positive"],
                "additionalProperties": False,
            },
            "description": "for each expert the prompts that it is for, or {positive, negative}",
        },
    },
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
# What divides a length of zero: as large as to leave nothing of it.
_LEAST_LENGTH = 1e-8
_EMBEDDING = "embed_tokens.weight"

Given = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """What says the rows of routers, by the names of experts."""

    draft: Draft
    given: Given
    names: tuple[str, ...]
    shared: str | None

    def __post_init__(self) -> None:
        prompts = self.given.get("prompts")
        if prompts is None:
            return
        everyone = [*self.names, *([self.shared] if self.shared else [])]
        hint = Hints(everyone)
        problems = [f"router.prompts: there is no expert '{n}'{hint(n)}"
                    for n in prompts if n not in everyone]  # fmt: skip
        problems += [f"router.prompts: there are none for expert '{name}'"
                     for name in self.names if name not in prompts]  # fmt: skip
        if problems:
            raise PlanError(*problems)

    def router(self, mlp: str, spec: TensorSpec, name: str) -> LazyTensor:
        """Return a router's weight, a row for each expert; `mlp` is the dense layer."""
        if "random" in self.given:
            return self._drawn(spec, name)
        rows = [self._row(mlp, expert, spec) for expert in self.names]
        return Joined(tuple(rows), 0)

    def gate(self, mlp: str, spec: TensorSpec, name: str) -> LazyTensor:
        """Return the one row of what multiplies the shared expert; zeros where nothing says it."""
        if "random" in self.given:
            return self._drawn(spec, name)
        if "prompts" in self.given and self.shared not in self.given["prompts"]:
            return fresh(spec, "zeros", self.draft.stream(name), name="weight")
        return self._row(mlp, str(self.shared), spec)

    def _drawn(self, spec: TensorSpec, name: str) -> LazyTensor:
        init = {"name": "normal", "std": float(self.given["random"])}
        return fresh(spec, init, self.draft.stream(name), name="weight")

    def _row(self, mlp: str, expert: str, spec: TensorSpec) -> LazyTensor:
        row = spec.resized(0, 1)
        if "rows" in self.given:
            found = self._read(f"{mlp}.{expert}")
            if found.spec.shape != row.shape[1:]:
                raise PlanError(
                    f"{self.given['rows']}: '{mlp}.{expert}' is {found.spec}, not of "
                    f"{row.shape[1]} numbers"
                )
            return _cast(Rearranged(found, (0,), row.shape), row)
        said = self.given["prompts"][expert]
        said = {"positive": said} if isinstance(said, list) else said
        parts = [self._embedded(texts, row) for texts in
                 (said["positive"], said.get("negative")) if texts]  # fmt: skip
        return WholeTensor(row, _direction, tuple(parts), explain=partial(_explain, expert))

    def _read(self, name: str) -> LazyTensor:
        location = str(self.given["rows"])
        tensors: Tensors = self.draft.outside.open_model(location)
        near = [n for n in tensors if n == name or n.endswith(f".{name}") or name.endswith(f".{n}")]
        if len(near) != 1:
            raise PlanError(f"{location}: there is no '{name}'{Hints(tensors)(name)}")
        return tensors[near[0]]

    def _embedded(self, texts: Sequence[str], row: TensorSpec) -> LazyTensor:
        """Return the embeddings of all tokens of texts, one after the other."""
        names = [n for n in self.draft.tensors if n == _EMBEDDING or n.endswith(f".{_EMBEDDING}")]
        if len(names) != 1:
            raise PlanError(f"router.prompts: there is no one '{_EMBEDDING}', but {len(names)}")
        table = self.draft[names[0]]
        ids = [number for text in self.draft.tokenizer(None).sequences(texts) for number in text]
        if not ids:
            raise PlanError(f"router.prompts: {list(texts)!r} are no tokens")
        if max(ids) >= table.spec.shape[0] or table.spec.shape[1] != row.shape[1]:
            raise PlanError(
                f"router.prompts: '{names[0]}' is {table.spec}, which has no row {max(ids)} of "
                f"{row.shape[1]} numbers: the tokenizer is another's"
            )
        return Selected(table, 0, runs(ids))


def _cast(tensor: LazyTensor, spec: TensorSpec) -> LazyTensor:
    return tensor if tensor.spec == spec else WholeTensor(spec, _as_it_is, (tensor,))


def _as_it_is(values: Sequence[Array]) -> Array:
    return values[0]


def _direction(values: Sequence[Array]) -> Array:
    """Return where the sums of rows point to, away from where the second's do; of length 1."""
    first, *others = [_unit(rows.sum(axis=0)) for rows in values]
    return _unit(first - others[0]) if others else first


def _unit(vector: Array) -> Array:
    unit: Array = vector / max(float(np.linalg.norm(vector)), _LEAST_LENGTH)
    return unit


def _explain(expert: str, values: Sequence[Array]) -> None:
    raise PlanError(f"router.prompts: embeddings of the prompts of '{expert}' hold NaN or Inf")
