"""keep_experts: a mixture with some of its experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from surgeon.base.errors import PlanError
from surgeon.base.indices import chosen, runs
from surgeon.base.patterns import Target
from surgeon.draft import Draft, Tensors
from surgeon.draft.registry import op
from surgeon.lazy import Selected
from surgeon.ops.shared.expert_counts import groups_of, require_whole_groups, state_choice
from surgeon.ops.shared.mixtures import EXPERTS_TARGET, Mixture, mixtures, rebuilt
from surgeon.ops.shared.routing import Keep, Routing, Score

_INDEX: dict[str, Any] = {"type": ["integer", "string"], "format": "indices"}


@op(
    group="size",
    example={"by": [0, 2]},
    paper="Lu et al. 2024, Not All Experts are Equal: Efficient Expert Pruning and Skipping for "
    "Mixture-of-Experts Large Language Models, https://arxiv.org/abs/2402.14800",
)
def keep_experts(
    draft: Draft,
    *,
    by: Annotated[
        str | list[int | str],
        "the experts to keep in every layer, by index and range, in this order; or a file of "
        "surgeon.training.collect_routing, by which each layer keeps its own",
        {"minLength": 1, "minItems": 1, "items": _INDEX},
    ],
    keep: Keep = None,
    score: Score = "frequency",
    target: Target = EXPERTS_TARGET,
) -> None:
    """Keep some experts of each mixture; the router keeps their entries.

    The rest is numbered anew from 0. Everything beside the experts that has an entry for each
    follows: the router's rows, its bias, corrections such as `e_score_correction_bias`. Experts are
    modules (`experts.3.w1`) or entries of tensors that hold all (`experts.gate_up_proj`). What is
    kept keeps its bits, and the model computes what it did with the router's choice restricted to
    these experts. In a model folder the numbers of the config follow, and where the router chose
    more experts than are left, it chooses all. Experts in groups (`n_group`): as many of each
    group are kept. Raises where a layer has fewer experts than are to be kept.
    """
    found = mixtures(draft, target)
    groups = groups_of(draft)
    choose = _chooser(draft, by, keep, score, groups)
    kept: list[list[int]] = []
    problems: list[str] = []
    for mixture in found:
        try:
            kept.append(choose(mixture))
            require_whole_groups(kept[-1], mixture.count, groups, mixture.block)
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(*dict.fromkeys(problems))
    changes = [
        (mixture, _with(draft, mixture, some)) for mixture, some in zip(found, kept, strict=True)
    ]
    draft.tensors = rebuilt(draft.tensors, changes)
    state_choice(draft, min(map(len, kept), default=0))


def _chooser(
    draft: Draft, by: str | list[int | str], keep: int | None, score: str, groups: int
) -> Callable[[Mixture], list[int]]:
    """Return what says which experts of a mixture are kept; it raises PlanError."""
    if isinstance(by, str):
        return Routing.read(draft, by, keep, score, groups).best
    if keep is not None:
        raise PlanError("'keep' is how many to keep by a file; 'by' says which already")

    def listed(mixture: Mixture) -> list[int]:
        try:
            return chosen(by, mixture.count)
        except PlanError as error:
            raise PlanError(*(f"'{mixture.block}': {line}" for line in error.problems)) from None

    return listed


def _with(draft: Draft, mixture: Mixture, kept: list[int]) -> Tensors:
    """Return the tensors of a mixture that has these experts."""
    made: Tensors = {
        name: Selected(draft[name], dim, runs(kept)) for name, dim in mixture.routing.items()
    }
    made |= {name: Selected(draft[name], 0, runs(kept)) for name in mixture.fused}
    for number, old in enumerate(kept):
        for rest, name in mixture.numbered.get(old, {}).items():
            made[mixture.name(number, rest)] = draft[name]
    return made
