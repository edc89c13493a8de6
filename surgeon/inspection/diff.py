"""How the tensors of two checkpoints differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgeon.base.folding import folded
from surgeon.base.screen import screen
from surgeon.base.tables import number, plural, shape_text, table
from surgeon.formats import open_checkpoint
from surgeon.formats.remains import told
from surgeon.inspection.heat_maps import difference
from surgeon.inspection.inspect import selected
from surgeon.inspection.tokens import TokenChanges, token_changes
from surgeon.inspection.watching import Watch, unwatched
from surgeon.lazy import BLOCK, ByteRange, LazyTensor, Scratch, TensorSpec, upcast_blocks
from surgeon.lazy.values import same_values
from surgeon.numeric.blas import one_thread
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.pictures.figures import named
from surgeon.pictures.heat import Mark
from surgeon.pictures.markup import Markup, chip, tag
from surgeon.pictures.notebook import rows_shown
from surgeon.recipe.fates import CHANGED, DROPPED, NEW
from surgeon.remote.locations import require_distinct, taken

if TYPE_CHECKING:
    from surgeon.pictures.figures import Figure


@dataclass(frozen=True)
class Distance:
    """How far apart two tensors of one shape are; None where the dtype or the values have none.

    `relative` is the norm of the difference by the norm of A. `differing` counts elements whose
    bytes differ; those with a NaN or Inf on either side are in `nonfinite` too, and nowhere else.
    """

    max_abs: float | None
    relative: float | None
    cosine: float | None
    differing: int | None
    nonfinite: int


@dataclass
class Difference:
    """What `diff` found, by name; `same` are the names of tensors that do not differ."""

    a: str
    b: str
    tensors: int = 0
    added: dict[str, TensorSpec] = field(default_factory=dict)
    removed: dict[str, TensorSpec] = field(default_factory=dict)
    reshaped: dict[str, tuple[TensorSpec, TensorSpec]] = field(default_factory=dict)
    changed: dict[str, Distance] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    tokens: TokenChanges | None = None

    @property
    def equal(self) -> bool:
        return not (self.added or self.removed or self.reshaped or self.changed)

    def as_json(self) -> dict[str, Any]:
        """Return the difference as a document."""
        return {
            "a": self.a,
            "b": self.b,
            "equal": self.equal,
            "tensors": self.tensors,
            "added": {name: _spec_json(spec) for name, spec in self.added.items()},
            "removed": {name: _spec_json(spec) for name, spec in self.removed.items()},
            "reshaped": {
                name: {"a": _spec_json(before), "b": _spec_json(after)}
                for name, (before, after) in self.reshaped.items()
            },
            "changed": {name: asdict(distance) for name, distance in self.changed.items()},
            **({"tokens": self.tokens.as_json()} if self.tokens else {}),
        }

    def plot(self, path: Path | None = None) -> Figure:
        """Return a picture of it, layers by modules; saved too where there is a path."""
        marks: dict[str, Mark] = dict.fromkeys(self.same, "unchanged")
        marks |= dict.fromkeys(self.reshaped, "reshaped")
        marks |= dict.fromkeys([*self.added, *self.removed], "only in one")
        changes = {name: distance.relative for name, distance in self.changed.items()}
        return difference((self.a, self.b), changes, marks).plot(path)

    def __str__(self) -> str:
        return self.as_text()

    def as_text(self) -> str:
        """Return a row for every difference, and one line that sums them up.

        On a terminal, layers that differ in the same way are one row: lowest and highest figures.
        """
        about = "".join(f"\n{line}" for line in self.tokens.lines()) if self.tokens else ""
        if self.equal:
            return f"{self._summary}{about}"
        rows = self._folded() if screen().is_terminal else self._rows()
        return table(_HEADERS, rows, right=_NUMBERS) + f"\n\n{self._summary}{about}"

    def _repr_html_(self) -> str:
        rows = [(name, _signed(what), *figures) for name, what, *figures in self._folded()]
        title = f"{'; '.join(named((self.a, self.b)))}. {self._summary}"
        return rows_shown(title, _HEADERS, rows, _NUMBERS, notes=self.notes)

    def _folded(self) -> list[tuple[str, ...]]:
        return folded(self._rows(), between=range(2, len(_HEADERS)))

    @property
    def _summary(self) -> str:
        if self.equal:
            return f"equal: {plural(self.tensors, 'tensor')}"
        kinds: dict[str, Mapping[str, object]] = {
            "removed": self.removed,
            "added": self.added,
            "reshaped": self.reshaped,
            "changed": self.changed,
        }
        counted = ", ".join(f"{len(found):,} {kind}" for kind, found in kinds.items() if found)
        return f"different: {counted}, of {plural(self.tensors, 'tensor')}"

    def _rows(self) -> list[tuple[str, ...]]:
        rows = [(name, f"removed: {_spec_text(spec)}") for name, spec in self.removed.items()]
        rows += [(name, f"added: {_spec_text(spec)}") for name, spec in self.added.items()]
        rows += [
            (name, f"{_spec_text(before)} -> {_spec_text(after)}")
            for name, (before, after) in self.reshaped.items()
        ]
        full: list[tuple[str, ...]] = [(*row, *[""] * len(_NUMBERS)) for row in rows]
        for name, distance in self.changed.items():
            figures = (distance.max_abs, distance.relative, distance.cosine)
            counts = (distance.differing, distance.nonfinite or None)
            said = ("" if count is None else f"{count:,}" for count in counts)
            full.append((name, "changed", *map(number, figures), *said))
        return full


_NUMBERS = ("max |Δ|", "relative", "cosine", "elements", "nan or inf")
_HEADERS = ("name", "what", *_NUMBERS)
_SIGNS = {"added": NEW, "removed": DROPPED}


def _signed(what: str) -> Markup:
    sign = _SIGNS.get(what.partition(":")[0], CHANGED)
    return tag("span", {"class": "part"}, chip(sign), f" {what}")


def _spec_json(spec: TensorSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype, "shape": list(spec.shape)}


def _spec_text(spec: TensorSpec) -> str:
    return f"{spec.dtype} {shape_text(spec.shape)}"


def compare(a: str, b: str, pattern: Sequence[str], *, watch: Watch = unwatched) -> Difference:
    """Open two checkpoints and compare what patterns select of either."""
    require_distinct((a, b))
    a, b = taken(a), taken(b)
    first = open_checkpoint(a)
    try:
        second = open_checkpoint(b)
        try:
            notes = [line for one in (first, second) for line in told(one.path, one.notes)]
            found = Difference(a, b, notes=notes)
            found.tokens = token_changes(first, second, found.notes)
            _compare(first.tensors, second.tensors, pattern, found, watch)
            return found
        finally:
            second.close()
    finally:
        first.close()


def _compare(
    first: dict[str, LazyTensor],
    second: dict[str, LazyTensor],
    pattern: Sequence[str],
    found: Difference,
    watch: Watch,
) -> None:
    names = selected(pattern, {**first, **second})
    pairs: dict[tuple[int, int], list[str]] = {}
    for name in names:
        found.tensors += 1
        if name not in second:
            found.removed[name] = first[name].spec
        elif name not in first:
            found.added[name] = second[name].spec
        elif first[name].spec != second[name].spec:
            found.reshaped[name] = (first[name].spec, second[name].spec)
        else:
            pairs.setdefault((id(first[name]), id(second[name])), []).append(name)
    scratch = Scratch()
    far: dict[str, Distance] = {}
    with watch(sum(first[same[0]].spec.size_bytes for same in pairs.values())) as done:
        for same in pairs.values():
            a, b = first[same[0]], second[same[0]]
            if distant := distance(a, b, scratch):
                far |= dict.fromkeys(same, distant)
            if done:
                done(a.spec.size_bytes)
    found.changed |= {name: far[name] for name in names if name in far}
    elsewhere = found.removed.keys() | found.added.keys() | found.reshaped.keys() | far.keys()
    found.same += [name for name in names if name not in elsewhere]


def _one_range(tensor: LazyTensor) -> ByteRange | None:
    pieces = list(tensor.pieces(0, tensor.spec.count))
    return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], ByteRange) else None


def _is_same_place(a: LazyTensor, b: LazyTensor) -> bool:
    """Say whether two tensors are the same bytes of one file, which need not be read."""
    first, second = _one_range(a), _one_range(b)
    return (
        first is not None
        and second is not None
        and first.offset == second.offset
        and first.file.path.samefile(second.file.path)
    )


def distance(a: LazyTensor, b: LazyTensor, scratch: Scratch) -> Distance | None:
    """Compare two tensors of one spec block by block; None where their bytes are equal."""
    if _is_same_place(a, b) or same_values(a, b, scratch):
        return None
    dtype = DTYPES[a.spec.dtype]
    has_values = dtype.kind in ("float", "int", "bool")
    if dtype.bits < 8:
        return Distance(None, None, None, None, 0)
    largest = 0.0
    squares = np.zeros(4)  # of a, of b, of b - a; and the product of a and b
    differing = nonfinite = 0
    for start in range(0, a.spec.count, BLOCK):
        stop = min(start + BLOCK, a.spec.count)
        with one_thread(), scratch.scope(), np.errstate(over="ignore", invalid="ignore"):
            unequal = _unequal(a, b, start, stop, scratch)
            differing += (count := int(np.count_nonzero(unequal)))
            if not has_values:
                continue
            # Of blocks that are equal, as most of them mostly are, only the norm is missing.
            tensors = (a, b) if count else (a,)
            x, *others = (
                block.astype(np.float64) for block in upcast_blocks(tensors, start, stop, scratch)
            )
            y = others[0] if others else x
            finite = np.isfinite(x) & np.isfinite(y)
            if not finite.all():
                nonfinite += int(np.count_nonzero(unequal & ~finite))
                x, y = x[finite], y[finite]
            if y is x or not count:
                squares += np.dot(x, x) * np.array([1, 1, 0, 1])
            elif x.size:
                delta = y - x
                largest = max(largest, float(np.abs(delta).max()))
                squares += [np.dot(u, v) for u, v in ((x, x), (y, y), (delta, delta), (x, y))]
    if not has_values:
        return Distance(None, None, None, differing, 0)
    norm_a, norm_b, norm_delta = (math.sqrt(value) for value in squares[:3])
    return Distance(
        _known(largest),
        _known(norm_delta / norm_a) if norm_a else None,
        _known(float(squares[3]) / (norm_a * norm_b)) if norm_a and norm_b else None,
        differing,
        nonfinite,
    )


def _unequal(a: LazyTensor, b: LazyTensor, start: int, stop: int, scratch: Scratch) -> Array:
    """Return which elements differ in their bytes."""
    words = f"u{DTYPES[a.spec.dtype].bits // 8}"
    with scratch.scope():
        x, y = (tensor.elements(start, stop, scratch).view(words) for tensor in (a, b))
        unequal: Array = x != y
        return unequal


def _known(value: float) -> float | None:
    """Return a number, None where it overflowed."""
    return value if math.isfinite(value) else None
