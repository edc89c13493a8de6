"""How alike several models are, layer by layer: to choose a merge and its weights by looking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.folding import folded
from surgeon.base.screen import screen
from surgeon.base.tables import number, shown, table, wrapped
from surgeon.formats import open_checkpoint
from surgeon.formats.remains import told
from surgeon.inspection.heat_maps import comparison
from surgeon.inspection.layers import depth, layer_and_module
from surgeon.inspection.products import Figures
from surgeon.lazy import BLOCK, LazyTensor, Scratch, upcast_blocks
from surgeon.numeric.blas import one_thread
from surgeon.numeric.dtypes import DTYPES
from surgeon.output.workers import parallel_map, worthwhile
from surgeon.pictures.figures import letters, named
from surgeon.pictures.heat import Mark
from surgeon.pictures.notebook import rows_shown
from surgeon.remote.locations import require_distinct, taken

if TYPE_CHECKING:
    from surgeon.pictures.figures import Figure

_FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: {layer: {module: figures}}, in the order of the layers.

    `left_out` are tensors that not all models have in one shape.
    """

    models: tuple[str, ...]
    layers: dict[str, dict[str, Figures]]
    notes: tuple[str, ...]
    left_out: dict[str, Mark] = field(default_factory=dict)

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

    def plot(self, path: Path | None = None) -> Figure:
        """Return a picture of it, layers by modules; saved too where there is a path."""
        return comparison(self.models, self.layers, self.left_out).plot(path)

    def __str__(self) -> str:
        return self.as_text()

    def as_text(self) -> str:
        """Return a row for every layer, on a terminal for those alike, and one for all of them."""
        headers, rows = self._table()
        if screen().is_terminal:
            rows = folded(rows)
        labels = letters(len(self.models))
        said = [f"{label}: {shown(model)}" for label, model in zip(labels, self.models,
                                                                      strict=True)]  # fmt: skip
        return "\n".join(
            [*said, "", table(headers, rows, right=headers[1:]), "", wrapped(self._about)]
        )

    def _repr_html_(self) -> str:
        headers, rows = self._table()
        return rows_shown("; ".join(named(self.models)), headers, rows, headers[1:],
                          notes=[*self.notes, self._about])  # fmt: skip

    @property
    def _about(self) -> str:
        if len(self.models) == 2:
            return "change: norm of the difference by the norm of A; cosine: of A and B"
        return (
            "change: norm of the difference by the norm of A; cosine: mean over pairs of "
            "differences; conflicts: elements moved both ways, of those moved by several"
        )

    def _table(self) -> tuple[list[str], list[tuple[str, ...]]]:
        """Return headers, and a row for every layer and for all of them."""
        several = len(self.models) > 2
        changes = [f"change of {label}" for label in letters(len(self.models))[1:]]
        headers = ["layer", "elements", *changes, "cosine", *(["conflicts"] if several else [])]
        layers = [(layer, _sum(modules.values())) for layer, modules in self.layers.items()]
        rows = [_row(layer, figures, several) for layer, figures in [*layers, ("all", self.total)]]
        return headers, rows


def _row(layer: str, figures: Figures, several: bool) -> tuple[str, ...]:
    conflicts = figures.conflicts
    return (
        layer,
        f"{figures.elements:,}",
        *("-" if change is None else f"{change:.2%}" for change in figures.relative),
        number(figures.cosine) or "-",
        *(["-" if conflicts is None else f"{conflicts:.1%}"] if several else []),
    )


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
        names, notes, left_out = _common(models, letters(len(locations)))
        notes += [line for one in opened for line in told(one.path, one.notes)]
        if not names:
            raise PlanError(*notes, "the models have no floating-point tensor in common")
        groups = [tuple(model[name] for model in models) for name in names]
        size = sum(tensor.spec.size_bytes for group in groups for tensor in group)
        found = parallel_map(_figures, groups, worthwhile(workers, size))
        layers: dict[str, dict[str, Figures]] = {}
        for name, figures in zip(names, found, strict=True):
            layer, module = layer_and_module(name)
            modules = layers.setdefault(layer, {})
            modules[module] = modules[module] + figures if module in modules else figures
    return Comparison(tuple(locations), layers, tuple(notes), left_out)


def _common(
    models: Sequence[dict[str, LazyTensor]], labels: Sequence[str]
) -> tuple[list[str], list[str], dict[str, Mark]]:
    """Return the names to compare, in the order of the layers, and what is left out, and why."""
    names: list[str] = []
    left_out: dict[str, Mark] = {}
    notes: list[str] = []
    seen: set[tuple[int, ...]] = set()
    everything = dict.fromkeys(name for model in models for name in model)
    for name in everything:
        specs = {label: model[name].spec for label, model in zip(labels, models, strict=True)
                 if name in model}  # fmt: skip
        if len(specs) < len(models):
            left_out[name] = "only in one"
            notes.append(f"'{name}' is only in {', '.join(specs)}; left out")
        elif len({spec.shape for spec in specs.values()}) > 1:
            left_out[name] = "reshaped"
            shapes = ", ".join(f"{spec} in {label}" for label, spec in specs.items())
            notes.append(f"'{name}' is {shapes}; left out")
        elif all(DTYPES[spec.dtype].kind == "float" for spec in specs.values()):
            identity = tuple(id(model[name]) for model in models)
            if identity not in seen:  # tied in all of them
                names.append(name)
            seen.add(identity)
    return sorted(names, key=depth), notes, left_out


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
