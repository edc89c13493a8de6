"""upcycle: a mixture of experts that begins as copies of a dense layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from surgeon.base import patterns
from surgeon.base.errors import PlanError
from surgeon.base.lists import as_list
from surgeon.base.patterns import Destination, Destinations, Names
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import Init, fresh
from surgeon.lazy import Copied, LazyTensor, TensorSpec
from surgeon.numeric.dtypes import DTYPES
from surgeon.ops.shared.moves import matches, require_distinct

# The expert's number, in `into`.
_EXPERT = "expert"
# What the paper draws routers from.
_ROUTER: dict[str, Any] = {"name": "normal", "std": 0.02}


@op(
    group="structure",
    example={
        "target": "encoder.{i}.weight",
        "experts": 2,
        "into": "encoder.{i}.experts.{expert}.weight",
        "router": "encoder.{i}.gate.weight",
        "columns": 8,
    },
    paper="Komatsuzaki et al. 2023, Sparse Upcycling: Training Mixture-of-Experts from Dense "
    "Checkpoints, https://arxiv.org/abs/2212.05055",
)
def upcycle(
    draft: Draft,
    *,
    target: Names,
    experts: Annotated[int, "how many experts", {"minimum": 2, "maximum": 100_000}],
    into: Destinations,
    router: Destination,
    columns: Annotated[int, "the router's columns: the inputs of the dense layer", {"minimum": 1}],
    init: Init = _ROUTER,
) -> None:
    """Replace dense layers by experts, copies of them, and a new router.

    `into` names the copies, `{expert}` counting from 0; `router` names a weight (experts, columns)
    for each of what the captures tell apart, in the dense layer's dtype, by default normal with
    standard deviation 0.02 as in the paper. While experts are equal, the network computes what it
    did wherever the weights of the chosen experts add up to 1. Tied layers become tied experts.
    For experts in one tensor, `stack` them afterwards. Raises where names clash, and where no
    weight of a layer has `columns` rows or columns.
    """
    problems = [
        f"'{name}' does not say {{{_EXPERT}}}, by which the experts' names differ"
        for name in as_list(into)
        if f"{{{_EXPERT}" not in name
    ]
    moves: list[tuple[str, str]] = []
    dense: dict[str, list[str]] = {}
    made: dict[str, LazyTensor] = {}
    copies: dict[tuple[int, int], LazyTensor] = {}
    for name, captures, destination in matches(draft, target, into):
        if _EXPERT in captures:
            raise PlanError(f"{{{_EXPERT}}} is the expert's number; let '{target}' capture another")
        gate = patterns.expand(router, patterns.braced(captures))
        dense.setdefault(gate, []).append(name)
        for expert in range(experts if not problems else 0):
            copy = patterns.expand(destination, {**captures, _EXPERT: str(expert)})
            moves.append((name, copy))
            key = id(draft[name]), expert
            made[copy] = copies.setdefault(key, Copied(draft[name]))
    for gate, names in dense.items():
        try:
            made[gate] = _router(draft, gate, names, (experts, columns), init)
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(*problems)
    gone = {name for names in dense.values() for name in names}
    rest = {name: tensor for name, tensor in draft.tensors.items() if name not in gone}
    require_distinct([*((name, name) for name in rest), *moves, *((router, g) for g in dense)])
    draft.tensors = {**rest, **made}


def _router(
    draft: Draft,
    name: str,
    dense: Sequence[str],
    shape: tuple[int, int],
    init: str | dict[str, Any],
) -> LazyTensor:
    """Return the router of one layer; raises PlanError where it cannot read the layer's inputs."""
    specs = {other: draft.spec(other) for other in dense}
    weights = [s for s in specs.values() if len(s.shape) > 1 and DTYPES[s.dtype].kind == "float"]
    if not any(shape[1] in weight.shape for weight in weights):
        listed = ", ".join(f"'{other}' is {spec}" for other, spec in specs.items())
        raise PlanError(f"'{name}' would have {shape[1]} columns, but {listed}")
    spec = TensorSpec(weights[0].dtype, shape)
    return fresh(spec, init, draft.stream(name), name=name.rpartition(".")[2])
