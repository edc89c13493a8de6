"""Bring a model's hidden units into the order of the base model's, and interpolate."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.base.schema import of_hint
from surgeon.draft import Draft, Tensors
from surgeon.merges.shared import Arithmetic, Varying, merge, within
from surgeon.merges.shared.permutations import Units
from surgeon.numeric.dtypes import Array

_TARGET = of_hint(Target)
_GROUP = {
    "type": "object",
    "properties": {"rows": _TARGET, "columns": _TARGET},
    "required": ["rows"],
    "additionalProperties": False,
}


def _in_order(draft: Draft, names: list[str], model: str, given: Mapping[str, Any]) -> Tensors:
    """Return a model's tensors in the order that matches the base model's."""
    groups = [
        (draft.select(group["rows"]), draft.select(group["columns"]) if "columns" in group else [])
        for group in given["groups"]
    ]
    theirs = draft.model(model)
    absent = {name for rows, columns in groups for name in (*rows, *columns)} - set(names)
    if absent:
        raise PlanError(*(f"'{name}' is permuted, but not merged" for name in sorted(absent)))
    units = Units.of(groups, draft.tensors)
    for tensors in (draft.tensors, theirs):
        _check_ties(units, {name: tensors[name] for name in names})
    return units.permuted(draft.tensors, theirs)


def _check_ties(units: Units, tensors: Tensors) -> None:
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        tied = first.setdefault(id(tensor), name)
        if units.dimensions.get(name, (None, None)) != units.dimensions.get(tied, (None, None)):
            raise PlanError(f"'{tied}' and '{name}' are tied, but not permuted alike")


@merge(
    example={
        "models": ["other"],
        "groups": [{"rows": "encoder.0", "columns": ["encoder.1.weight"]}],
    },
    paper="Ainsworth et al. 2022, Git Re-Basin: Merging Models modulo Permutation Symmetries, "
    "https://arxiv.org/abs/2209.04836",
    models=1,
    prepare=_in_order,
)
def rebasin(
    *,
    groups: Annotated[
        list[Any],
        "groups of units, each with the tensors that have a row for each unit, and a column",
        {"items": _GROUP, "minItems": 1},
    ],
    t: Annotated[float, Varying(0, 1), "0 keeps the base model, 1 takes the reordered model"] = 0.5,
) -> Arithmetic:
    """Reorder a model's units to match the base model's, then interpolate.

    Weight matching (section 3.2): every group's permutation P makes Σ ⟨b, P x⟩ over its tensors as
    large as it can be (a linear assignment problem), group by group in the recipe's order, from the
    model's own order on, until none gets better; then (1-t) b + t P x. The model computes the same
    function before and after, if `groups` says all that depends on the order of units: `rows`, the
    weights and biases that make them, normalisation and its running statistics (dimension 0; what
    has rank 0 is left out), and `columns`, the weights that read them (dimension 1; where each unit
    has several columns, as behind the flattening of a convolution, they lie side by side).

    All tensors of all groups are held in memory in float64 while permutations are looked for. The
    authors visit groups in random order.
    """
    del groups  # see _in_order

    def combine(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
        np.multiply(blocks[0], 1 - t, out=out)
        out += blocks[1] * t
        return within(blocks, out)

    return Arithmetic(combine)
