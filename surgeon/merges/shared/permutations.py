"""Permutations of hidden units: which tensors they go through, and which match two models best.

A group of units is permuted as one: the rows (dimension 0) of what makes them, and the columns
(dimension 1) of what reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.draft import Tensors
from surgeon.lazy import LazyTensor, TensorSpec, WholeTensor
from surgeon.numeric.assignment import assignment
from surgeon.numeric.dtypes import DTYPES, Array

# Matching ends where it gains less than this, of what it has: sums of rounded products.
_GAIN = 1e-12

# Of which group a tensor's rows are, and its columns.
Dimensions = tuple[int | None, int | None]


@dataclass(frozen=True)
class Units:
    """Groups of units: how many each has, and the tensors that they go through."""

    sizes: tuple[int, ...]
    dimensions: Mapping[str, Dimensions]

    @classmethod
    def of(cls, groups: Sequence[tuple[list[str], list[str]]], tensors: Tensors) -> Units:
        """Return groups given as names (rows, columns); raises PlanError where they cannot be."""
        sizes: list[int] = []
        found: dict[str, list[int | None]] = {}
        problems: list[str] = []
        for group, (rows, columns) in enumerate(groups):
            # Counters and the like have no rows.
            rows = [name for name in rows if tensors[name].spec.shape]
            size = tensors[rows[0]].spec.shape[0] if rows else 0
            sizes.append(size)
            if not size:
                problems.append(f"groups[{group}] has no rows")
            for dim, names in enumerate((rows, columns)):
                for name in names:
                    taken = found.setdefault(name, [None, None])
                    problems += _problems(name, tensors[name].spec, dim, size, rows, taken[dim])
                    taken[dim] = group
        if problems:
            raise PlanError(*problems)
        return cls(tuple(sizes), {name: (row, column) for name, (row, column) in found.items()})

    def permuted(self, state: Tensors, model: Tensors) -> Tensors:
        """Return the model's tensors, its units in the order that matches the base model's best."""
        names = list(self.dimensions)
        largest = max(model[name].spec.count for name in names)
        permutations = WholeTensor(
            TensorSpec("F64", (sum(self.sizes),)),
            partial(matching, self),
            tuple(tensors[name] for tensors in (state, model) for name in names),
            # Each pair of units' likeness; a tensor in another order, and what it is multiplied to.
            spare_bytes=8 * (4 * max(self.sizes) ** 2 + 3 * largest),
            is_kept=True,
        )
        made: dict[tuple[int, Dimensions], LazyTensor] = {}
        result = dict(model)
        for name, dimensions in self.dimensions.items():
            key = id(model[name]), dimensions
            if key not in made:
                kernel = partial(_permute_by, self, dimensions)
                operands = (model[name], permutations)
                made[key] = WholeTensor(model[name].spec, kernel, operands)
            result[name] = made[key]
        return result

    def split(self, permutations: Array) -> list[Array]:
        """Return each group's permutation out of all."""
        ends = np.cumsum(self.sizes)[:-1]
        return [part.astype(np.int64) for part in np.split(permutations, ends)]


def _problems(
    name: str, spec: TensorSpec, dim: int, size: int, rows: list[str], taken: int | None
) -> list[str]:
    what = ("rows", "columns")[dim]
    if DTYPES[spec.dtype].kind != "float":
        return [f"'{name}' ({spec}) cannot be permuted to match; only floats can"]
    if taken is not None:
        return [f"the {what} of '{name}' are in groups[{taken}] already"]
    if len(spec.shape) <= dim:
        return [f"'{name}' is {spec}, which has no {what}"]
    fits = spec.shape[dim] % size == 0 if dim and size else spec.shape[dim] == size
    if size and not fits:
        return [f"'{name}' has {spec.shape[dim]} {what}, but '{rows[0]}' has {size} rows"]
    return []


def matching(units: Units, values: Sequence[Array]) -> Array:
    """Return the permutations (one after the other) that make a model most like the base model.

    `values` are the base model's tensors and then the model's. Group by group, the permutation with
    the largest inner product while all others stay as they are, from the identity on, until none
    gets larger (Ainsworth et al. 2022, section 3.2, algorithm 1; there in random order). Where a
    tensor has one group on both sides, as between the steps of a recurrent layer, one side stays
    while the other is looked at, and the permutation is taken if it is better on both.
    """
    found = [np.arange(size) for size in units.sizes]
    names = list(units.dimensions)
    pairs = dict(zip(names, zip(values, values[len(names) :], strict=False), strict=True))
    if not all(np.isfinite(value).all() for value in values):
        return np.concatenate(found).astype(np.float64)  # the merge says what is wrong
    reached, is_better = _agreement(units, pairs, found), True
    while is_better:
        is_better = False
        for group in range(len(found)):
            best = assignment(-_likeness(units, pairs, found, group))
            changed = [*found[:group], best, *found[group + 1 :]]
            agreement = _agreement(units, pairs, changed)
            if agreement - reached > _GAIN * (abs(reached) + abs(agreement)):
                found, reached, is_better = changed, agreement, True
    return np.concatenate(found).astype(np.float64)


def _agreement(
    units: Units, pairs: Mapping[str, tuple[Array, Array]], found: Sequence[Array]
) -> float:
    """Return the inner product of the base model with the permuted model."""
    total = 0.0
    for name, dimensions in units.dimensions.items():
        state, model = pairs[name]
        total += float(np.add.reduce(state * _permute(model, dimensions, found), axis=None))
    return total


def _likeness(
    units: Units, pairs: Mapping[str, tuple[Array, Array]], found: Sequence[Array], group: int
) -> Array:
    """Return the inner product of each unit of the base model with each unit of the model."""
    size = units.sizes[group]
    total = np.zeros((size, size))
    for name, dimensions in units.dimensions.items():
        state, model = pairs[name]
        for dim in (0, 1):
            if dimensions[dim] == group:
                other = dimensions[1 - dim]
                aligned = model if other is None else permute(model, found[other], 1 - dim)
                total += _by_unit(state, size, dim) @ _by_unit(aligned, size, dim).T
    return total


def _by_unit(value: Array, size: int, dim: int) -> Array:
    """Return a matrix of one row per unit."""
    if dim == 0:
        return value.reshape(size, -1)
    return np.moveaxis(value.reshape(len(value), size, -1), 1, 0).reshape(size, -1)


def permute(value: Array, permutation: Array, dim: int) -> Array:
    """Return rows or columns in another order; a unit may have several columns side by side."""
    width = value.shape[dim] // len(permutation)
    index = (permutation[:, None] * width + np.arange(width)).reshape(-1)
    return np.asarray(np.take(value, index, axis=dim))


def _permute_by(units: Units, dimensions: Dimensions, values: Sequence[Array]) -> Array:
    value, permutations = values
    return _permute(value, dimensions, units.split(permutations))


def _permute(value: Array, dimensions: Dimensions, found: Sequence[Array]) -> Array:
    for dim, group in enumerate(dimensions):
        if group is not None:
            value = permute(value, found[group], dim)
    return value
