"""Layers whose number of outputs changes: which tensors count them, and which layers read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from surgeon.base.errors import PlanError
from surgeon.base.schema import Schema
from surgeon.draft import Draft
from surgeon.lazy import TensorSpec
from surgeon.numeric.dtypes import DTYPES
from surgeon.ops.shared.modules import Layer, directly_in, layers, weight_of

Consumer = str | dict[str, Any]

OutputDim = Annotated[
    int,
    "the dimension of a weight that counts its outputs; 1 for GPT-2's Conv1D, transposed "
    "convolutions and embeddings",
    {"minimum": 0, "maximum": 1},
]


@dataclass(frozen=True)
class ConsumersSchema:
    """The schema of `consumers`: patterns, or objects that say more of how a layer reads."""

    block: str
    others: Mapping[str, Schema]

    @property
    def json_schema(self) -> Schema:
        pattern = {"minLength": 1, "format": "name-pattern"}
        own = {
            "target": {"type": "string", **pattern},
            "dim": {
                "type": "integer",
                "minimum": 0,
                "description": "the dimension of the weight that counts its inputs (default 1)",
            },
            "block": {"type": "integer", "minimum": 1, "description": self.block},
        }
        described = {
            "type": ["string", "object"],
            "properties": {**own, **self.others},
            "required": ["target"],
            "additionalProperties": False,
        }
        return {
            "type": ["string", "array"],
            **pattern,
            "minItems": 1,
            "items": {**pattern, **described},
            "description": "the layers that read the target: their columns follow; a pattern, or "
            "objects that also say how they read",
        }


@dataclass(frozen=True)
class Outputs:
    """A layer's tensors that count its outputs, each with the dimension that does."""

    layer: Layer
    dims: Mapping[str, int]
    size: int

    @property
    def label(self) -> str:
        """What errors call it."""
        return self.layer.module if self.layer.is_module else self.layer.names[0]


@dataclass(frozen=True)
class Reader:
    """A tensor that reads what has `units` outputs: `block` entries of `dim` for each."""

    name: str
    dim: int
    block: int
    entry: Mapping[str, Any]


def outputs(
    draft: Draft, target: str | Sequence[str], dim: int, *, vectors: bool = True
) -> list[Outputs]:
    """Return the layers of a target with what counts their outputs.

    That is dimension `dim`; in a module also the one dimension of `vectors` that have as many
    entries as the weight has outputs. Raises PlanError where there is no such dimension.
    """
    found: list[Outputs] = []
    problems: list[str] = []
    for layer in layers(draft, target):
        own_dims = {name: _own_dim(draft.spec(name), layer, dim, vectors) for name in layer.names}
        dims = {name: own_dim for name, own_dim in own_dims.items() if own_dim is not None}
        if not dims:
            (what, name) = ("rows", "columns")[dim], layer.names[0]
            problems.append(f"'{name}' has no {what}: it is {draft.spec(name)}")
            continue
        if problem := _lies_the_other_way(draft, layer, dim, vectors):
            problems.append(problem)
            continue
        size = _size(draft, layer, dims, dim, vectors)
        same = {
            name: own_dim
            for name, own_dim in dims.items()
            if draft.spec(name).shape[own_dim] == size
        }
        problems += [
            f"'{name}' is {draft.spec(name)}: values of less than a byte cannot be moved"
            for name in same
            if DTYPES[draft.spec(name).dtype].bits < 8
        ]
        found.append(Outputs(layer, same, size))
    if problems:
        raise PlanError(*problems)
    return found


def _own_dim(spec: TensorSpec, layer: Layer, dim: int, vectors: bool) -> int | None:
    if layer.is_module and vectors and len(spec.shape) == 1:
        return 0
    return dim if len(spec.shape) > dim else None


def _lies_the_other_way(draft: Draft, layer: Layer, dim: int, vectors: bool) -> str | None:
    """Say of a module where its bias tells that its outputs are not rows."""
    weight, bias = (draft.tensors.get(f"{layer.module}.{leaf}") for leaf in ("weight", "bias"))
    if dim or not (vectors and layer.is_module and weight and bias):
        return None
    rows, *others = weight.spec.shape or (0,)
    if len(bias.spec.shape) != 1 or bias.spec.count == rows or others[:1] != [bias.spec.count]:
        return None
    return (
        f"'{layer.module}.weight' is {weight.spec} and its bias has {bias.spec.count} entries: its "
        "outputs are dimension 1, as of GPT-2's Conv1D and transposed convolutions; 'dim': 1 says "
        "so, and the weight by itself, not its module, means its rows all the same"
    )


def _size(draft: Draft, layer: Layer, dims: Mapping[str, int], dim: int, vectors: bool) -> int:
    weight = weight_of(draft, layer.module) if layer.is_module else None
    own_dim = _own_dim(weight, layer, dim, vectors) if weight else None
    if weight and own_dim is not None:
        return weight.shape[own_dim]
    name, own_dim = next(iter(dims.items()))
    return draft.spec(name).shape[own_dim]


def with_tied_layers(
    draft: Draft, layer: Outputs, dim: int, shared: set[str]
) -> Iterator[tuple[str, int]]:
    """Yield each tensor that changes once: also the rest of layers whose weight is tied to one."""
    seen: set[int] = set()
    for name, own_dim in layer.dims.items():
        changing = [(name, own_dim)]
        for tied in draft.tied(name) if name in shared else []:
            siblings = directly_in(draft, tied.rpartition(".")[0]) if dim == 0 else []
            along = [(other, 0) for other in siblings
                     if draft.spec(other).shape[:1] == (layer.size,)]  # fmt: skip
            changing += [] if tied == name else [(tied, own_dim), *along]
        for other, where in changing:
            if id(draft[other]) not in seen:
                seen.add(id(draft[other]))
                yield other, where


def require_one_size(found: Sequence[Outputs]) -> int:
    """Return the one size that layers with consumers have; raises PlanError where they differ."""
    sizes = {layer.size: layer.label for layer in reversed(found)}
    if len(sizes) > 1:
        (one, a), (other, b) = list(sizes.items())[-1:-3:-1]
        raise PlanError(
            f"what shares its consumers has one size, but '{a}' has {one} outputs and '{b}' "
            f"{other}; give each size a step of its own"
        )
    return next(iter(sizes))


def readers(
    draft: Draft, consumers: Consumer | Sequence[Consumer], units: int, block: int
) -> list[Reader]:
    """Return the tensors of consumers that read `units` outputs, `block` entries each or as said.

    Raises PlanError, with a line for each, for those that have another width.
    """
    found: dict[tuple[int, int], Reader] = {}
    problems: list[str] = []
    for given in [consumers] if isinstance(consumers, str | dict) else consumers:
        entry: dict[str, Any] = {"target": given} if isinstance(given, str) else given
        dim, each = entry.get("dim", 1), entry.get("block", block)
        for layer in layers(draft, entry["target"]):
            fitting = [name for name in layer.names if _reads(draft.spec(name), dim, units * each)]
            if not fitting:
                problems.append(_misread(draft, layer, dim, units, each))
            for name in fitting:
                reader = Reader(name, dim, each, entry)
                before = found.setdefault((id(draft[name]), dim), reader)
                if before.entry is not entry:
                    problems.append(f"'{name}' is named as a consumer twice")
    if problems:
        raise PlanError(*problems)
    return list(found.values())


def _reads(spec: TensorSpec, dim: int, width: int) -> bool:
    return len(spec.shape) > max(dim, 1) and spec.shape[dim] == width


def _misread(draft: Draft, layer: Layer, dim: int, units: int, block: int) -> str:
    """Return the line that says what is wrong with a consumer."""
    name = next((n for n in layer.names if len(draft.spec(n).shape) > max(dim, 1)), layer.names[0])
    spec = draft.spec(name)
    wanted = f"{units}" if block == 1 else f"{units} x {block} = {units * block}"
    line = f"consumer '{name}' is {spec}, but dimension {dim} should have {wanted} entries"
    if len(spec.shape) > max(dim, 1):
        each, rest = divmod(spec.shape[dim], units)
        if each and not rest:
            return f'{line}; say "block": {each} if it reads {each} of them for each output'
        others = [d for d, size in enumerate(spec.shape[:2]) if size == units * block]
        if others:
            return f'{line}; say "dim": {others[0]} if its inputs lie there'
    return line
