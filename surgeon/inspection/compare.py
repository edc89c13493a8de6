"""How alike several models are, layer by layer: to choose a merge and its weights by looking."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from surgeon.base.depth import is_before_layers, layer_of
from surgeon.base.errors import PlanError
from surgeon.base.folding import folded
from surgeon.base.screen import screen
from surgeon.base.tables import number, shown, table
from surgeon.formats import open_checkpoint
from surgeon.formats.remains import told
from surgeon.lazy import BLOCK, LazyTensor, Scratch, upcast_blocks
from surgeon.numeric.blas import one_thread
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.output.workers import parallel_map, worthwhile
from surgeon.remote.locations import require_distinct, taken

_FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True)
class Figures:
    """Inner products of A and of the others' differences from it, over some of the elements.

    `products` is (1 + others, 1 + others), A first; `changed` counts elements that two of the
    others or more differ from A in, and `conflicting` those of them that they move both ways.
    Elements with a NaN or Inf anywhere are counted in `nonfinite` alone.
    """

    products: Array
    elements: int = 0
    changed: int = 0
    conflicting: int = 0
    nonfinite: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.products + other.products,
            self.elements + other.elements,
            self.changed + other.changed,
            self.conflicting + other.conflicting,
            self.nonfinite + other.nonfinite,
        )

    @property
    def relative(self) -> list[float | None]:
        """The norm of each other model's difference by the norm of A."""
        squares = np.diagonal(self.products)
        return [_ratio(math.sqrt(square), math.sqrt(squares[0])) for square in squares[1:]]

    @property
    def cosines(self) -> list[list[float | None]]:
        """The cosines between the differences, a row and a column for each of the others."""
        count = len(self.products) - 1
        return [[self._cosine(i + 1, j + 1) for j in range(count)] for i in range(count)]

    @property
    def cosine(self) -> float | None:
        """The mean cosine over all pairs of differences; of one other model, that to A itself."""
        if len(self.products) == 2:
            a, change, product = self.products[0, 0], self.products[1, 1], self.products[0, 1]
            other = a + 2 * product + change
            return _ratio(a + product, math.sqrt(a) * math.sqrt(max(other, 0.0)))
        pairs = combinations(range(1, len(self.products)), 2)
        known = [cosine for i, j in pairs if (cosine := self._cosine(i, j)) is not None]
        return math.fsum(known) / len(known) if known else None

    @property
    def conflicts(self) -> float | None:
        """The share of elements that are moved both ways, among those that two or more move."""
        return _ratio(self.conflicting, self.changed)

    def _cosine(self, i: int, j: int) -> float | None:
        norms = math.sqrt(self.products[i, i]) * math.sqrt(self.products[j, j])
        return _ratio(self.products[i, j], norms)

    def as_json(self) -> dict[str, Any]:
        several = len(self.products) > 2
        return {
            "elements": self.elements,
            "norm": _known(math.sqrt(self.products[0, 0])),
            "relative_change": self.relative,
            "cosine": self.cosine,
            **({"cosines": self.cosines, "sign_conflicts": self.conflicts} if several else {}),
            **({"nonfinite": self.nonfinite} if self.nonfinite else {}),
        }


def _ratio(value: float, by: float) -> float | None:
    return _known(float(value) / float(by)) if by else None


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: {layer: {module: figures}}, in the order of the layers."""

    models: tuple[str, ...]
    layers: dict[str, dict[str, Figures]]
    notes: tuple[str, ...]

    @property
    def total(self) -> Figures:
        return _sum(f for modules in self.layers.values() for f in modules.values())

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a document."""
        return {
            "models": list(self.models),
            "notes": list(self.notes),
            "total": self.total.as_json(),
            "layers": [
                {
                    "layer": layer,
                    **_sum(modules.values()).as_json(),
                    "modules": {module: f.as_json() for module, f in modules.items()},
                }
                for layer, modules in self.layers.items()
            ],
        }

    def __str__(self) -> str:
        return self.as_text()

    def as_text(self) -> str:
        """Return a row for every layer, on a terminal for those alike, and one for all of them."""
        several = len(self.models) > 2
        changes = [f"change of {label}" for label in _labels(self.models)[1:]]
        headers = ["layer", "elements", *changes, "cosine", *(["conflicts"] if several else [])]
        named = [(layer, _sum(modules.values())) for layer, modules in self.layers.items()]
        rows = [_row(layer, figures, several) for layer, figures in [*named, ("all", self.total)]]
        if screen().is_terminal:
            rows = folded(rows)
        about = (
            "change: norm of the difference by the norm of A; cosine: mean over pairs of "
            "differences; conflicts: elements moved both ways, of those moved by several"
            if several
            else "change: norm of the difference by the norm of A; cosine: of A and B"
        )
        labels = _labels(self.models)
        letters = [f"{label}: {shown(model)}" for label, model in zip(labels, self.models,
                                                                      strict=True)]  # fmt: skip
        return "\n".join([*letters, "", table(headers, rows, right=headers[1:]), "", about])


def _row(layer: str, figures: Figures, several: bool) -> tuple[str, ...]:
    conflicts = figures.conflicts
    return (
        layer,
        f"{figures.elements:,}",
        *("-" if change is None else f"{change:.2%}" for change in figures.relative),
        number(figures.cosine) or "-",
        *(["-" if conflicts is None else f"{conflicts:.1%}"] if several else []),
    )


def _labels(models: Sequence[str]) -> list[str]:
    """Return A, B, ... Z, then numbers."""
    return [chr(65 + i) if i < 26 else str(i + 1) for i in range(len(models))]


def _sum(parts: Iterable[Figures]) -> Figures:
    first, *rest = parts
    for figures in rest:
        first += figures
    return first


def compare(locations: Sequence[str], workers: int) -> Comparison:
    """Open checkpoints and compare the floating-point tensors that all of them have.

    Raises PlanError where there is none.
    """
    require_distinct(locations)
    locations = [taken(location) for location in locations]
    with ExitStack() as stack:
        opened = [open_checkpoint(location) for location in locations]
        for checkpoint in opened:
            stack.callback(checkpoint.close)
        models = [checkpoint.tensors for checkpoint in opened]
        names, notes = _common(models, _labels(locations))
        notes += [line for one in opened for line in told(one.path, one.notes)]
        if not names:
            raise PlanError(*notes, "the models have no floating-point tensor in common")
        groups = [tuple(model[name] for model in models) for name in names]
        size = sum(tensor.spec.size_bytes for group in groups for tensor in group)
        found = parallel_map(_figures, groups, worthwhile(workers, size))
        layers: dict[str, dict[str, Figures]] = {}
        for name, figures in zip(names, found, strict=True):
            layer, module = _place(name)
            modules = layers.setdefault(layer, {})
            modules[module] = modules[module] + figures if module in modules else figures
    return Comparison(tuple(locations), layers, tuple(notes))


def _common(models: Sequence[dict[str, LazyTensor]], labels: Sequence[str]) -> tuple[
    list[str], list[str]
]:  # fmt: skip
    """Return the names to compare, in the order of the layers, and what is left out."""
    names: list[str] = []
    notes: list[str] = []
    seen: set[tuple[int, ...]] = set()
    everything = dict.fromkeys(name for model in models for name in model)
    for name in everything:
        specs = {label: model[name].spec for label, model in zip(labels, models, strict=True)
                 if name in model}  # fmt: skip
        if len(specs) < len(models):
            notes.append(f"'{name}' is only in {', '.join(specs)}; left out")
        elif len({spec.shape for spec in specs.values()}) > 1:
            shapes = ", ".join(f"{spec} in {label}" for label, spec in specs.items())
            notes.append(f"'{name}' is {shapes}; left out")
        elif all(DTYPES[spec.dtype].kind == "float" for spec in specs.values()):
            identity = tuple(id(model[name]) for model in models)
            if identity not in seen:  # tied in all of them
                names.append(name)
            seen.add(identity)
    return sorted(names, key=_depth), notes


def _depth(name: str) -> tuple[int, str, int]:
    layer = layer_of(name)
    if layer is None:
        return (0 if is_before_layers(name) else 2), "", 0
    return 1, *layer


def _place(name: str) -> tuple[str, str]:
    """Return the layer and the module in it that a tensor belongs to."""
    layer, module = layer_of(name), name.rpartition(".")[0]
    if layer is None:
        return module or name, ""
    label = f"{layer[0]}.{layer[1]}".removeprefix(".")
    return label, module.removeprefix(label).removeprefix(".")


def _figures(tensors: tuple[LazyTensor, ...]) -> Figures:
    scratch, count = Scratch(), len(tensors)
    total = Figures(np.zeros((count, count)))
    for start in range(0, tensors[0].spec.count, BLOCK):
        stop = min(start + BLOCK, tensors[0].spec.count)
        with one_thread(), scratch.scope(), np.errstate(over="ignore", invalid="ignore"):
            blocks = np.stack(upcast_blocks(tensors, start, stop, scratch, _FLOAT64))
            finite = np.isfinite(blocks).all(axis=0)
            nonfinite = len(finite) - int(np.count_nonzero(finite))
            if nonfinite:
                blocks = blocks[:, finite]
            blocks[1:] -= blocks[0]
            up, down = (blocks[1:] > 0).sum(axis=0), (blocks[1:] < 0).sum(axis=0)
            total += Figures(
                blocks @ blocks.T,
                blocks.shape[1],
                int(np.count_nonzero(up + down > 1)),
                int(np.count_nonzero((up > 0) & (down > 0))),
                nonfinite,
            )
    return total
