"""merge_experts: a mixture whose experts are means of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np

from surgeon.base.errors import PlanError, listed
from surgeon.base.patterns import Target
from surgeon.draft import Draft, Tensors
from surgeon.draft.codes_guard import require_numbers
from surgeon.draft.registry import op
from surgeon.lazy import Joined, LazyTensor, Selected
from surgeon.lazy.forms import Linear
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.ops.shared.arithmetic import calculated
from surgeon.ops.shared.expert_counts import groups_of, require_whole_groups, state_choice
from surgeon.ops.shared.mixtures import EXPERTS_TARGET, Mixture, mixtures, rebuilt
from surgeon.ops.shared.routing import Keep, Routing, Score


class _Group(NamedTuple):
    """Experts that become one, and what each counts; the first leads."""

    members: tuple[int, ...]
    shares: tuple[float, ...]


_Chooser = Callable[[Mixture], list[_Group]]


@op(
    group="size",
    example={"by": [[0, 1], [2]]},
    paper="Li et al. 2024, Merge, Then Compress: Demystify Efficient SMoE with Hints from Its "
    "Routing Policy, https://arxiv.org/abs/2310.01334",
)
def merge_experts(
    draft: Draft,
    *,
    by: Annotated[
        str | list[list[int]],
        "in every layer, which experts become one: a list of lists of their numbers; or a file of "
        "surgeon.training.collect_routing, by which each layer chooses",
        {
            "minLength": 1,
            "minItems": 1,
            "items": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0},
                "minItems": 1,
                "uniqueItems": True,
            },
        },
    ],
    keep: Keep = None,
    score: Score = "frequency",
    router: Annotated[
        Literal["average", "first"],
        "what the router has of the new expert: the mean as of the weights, or the leader's entry",
    ] = "average",
    target: Target = EXPERTS_TARGET,
) -> None:
    """Merge experts of each mixture into fewer; the router follows as told.

    Lists: means of equal parts, the first of each list leads. A file: the `keep` experts that were
    chosen most often lead, each other expert goes to the leader that the router takes for most
    alike (the correlation of their logits), and means are weighted by how often each was chosen.
    Means are computed in float64 and rounded once; an expert that stays alone keeps its bits.
    Neurons are taken to lie in the same order in all experts, as they do where experts began as
    copies of one layer; the paper also reorders them. Numbers of the config, and experts in groups,
    are as in `keep_experts`. Raises for experts that no list names, or two do.
    """
    found = mixtures(draft, target)
    groups = groups_of(draft)
    choose = _chooser(draft, by, keep, score, groups)
    made: list[list[_Group]] = []
    problems: list[str] = []
    for mixture in found:
        try:
            made.append(choose(mixture))
            _require_groups_kept(mixture, made[-1], groups)
        except PlanError as error:
            problems += error.problems
    if problems:
        raise PlanError(*dict.fromkeys(problems))
    changes = [
        (mixture, _with(draft, mixture, some, router))
        for mixture, some in zip(found, made, strict=True)
    ]
    draft.tensors = rebuilt(draft.tensors, changes)
    state_choice(draft, min(map(len, made), default=0))


def _chooser(
    draft: Draft, by: str | list[list[int]], keep: int | None, score: str, groups: int
) -> _Chooser:
    """Return what says which experts of a mixture become one; it raises PlanError."""
    if isinstance(by, str):
        return partial(_by_routing, Routing.read(draft, by, keep, score, groups))
    if keep is not None:
        raise PlanError("'keep' is how many to keep by a file; 'by' says which already")
    return partial(_as_listed, by)


def _as_listed(by: list[list[int]], mixture: Mixture) -> list[_Group]:
    named = [number for members in by for number in members]
    everyone = range(mixture.count)
    problems = [f"there is no expert {n}" for n in named if n not in everyone]
    problems += [f"expert {n} is named twice" for n in everyone if named.count(n) > 1]
    if left := [str(n) for n in everyone if n not in named]:
        problems.append(
            f"no list names {'expert' if len(left) == 1 else 'experts'} {', '.join(left)}; a list "
            "of one stays as it is, and keep_experts drops experts"
        )
    if problems:
        raise PlanError(*(f"'{mixture.block}': {line}" for line in problems))
    return [_Group(tuple(some), (1 / len(some),) * len(some)) for some in by]


def _by_routing(routing: Routing, mixture: Mixture) -> list[_Group]:
    """Return the groups of the experts that were chosen most often."""
    leaders = routing.best(mixture)
    frequencies, similar = routing.frequencies(mixture), routing.similarities(mixture)
    size = mixture.count // routing.groups
    members: dict[int, list[int]] = {leader: [leader] for leader in leaders}
    for expert in range(mixture.count):
        if expert not in members:
            near = [leader for leader in leaders if leader // size == expert // size]
            members[max(near, key=lambda leader: similar[expert][leader])].append(expert)
    return [_Group(tuple(some), _shares([frequencies[n] for n in some]))
            for some in members.values()]  # fmt: skip


def _shares(values: Sequence[float]) -> tuple[float, ...]:
    total = sum(values)
    return tuple(v / total if total else 1 / len(values) for v in values)


def _require_groups_kept(mixture: Mixture, made: Sequence[_Group], groups: int) -> None:
    require_whole_groups([one.members[0] for one in made], mixture.count, groups, mixture.block)
    size = mixture.count // groups
    mixed = [one.members for one in made if len({number // size for number in one.members}) > 1]
    if mixed:
        raise PlanError(
            f"'{mixture.block}': experts {', '.join(map(str, mixed[0]))} are of several of the "
            f"router's {groups} groups (n_group)"
        )


def _with(draft: Draft, mixture: Mixture, made: Sequence[_Group], router: str) -> Tensors:
    """Return the tensors of a mixture whose experts are these groups."""
    names = [name for one in mixture.numbered.values() for name in one.values()]
    require_numbers(draft.tensors, [*names, *mixture.fused, *mixture.routing])
    everything = [*names, *mixture.fused, *mixture.routing]
    if odd := [name for name in everything if DTYPES[draft.spec(name).dtype].kind != "float"]:
        raise PlanError(f"{listed(odd)}: not floating-point, of which there is no mean")
    tensors: Tensors = {}
    leaders = [_Group(one.members[:1], (1.0,)) for one in made]
    for name, dim in mixture.routing.items():
        some = leaders if router == "first" else made
        tensors[name] = _entries(name, draft[name], dim, some)
    for name in mixture.fused:
        tensors[name] = _entries(name, draft[name], 0, made)
    for number, one in enumerate(made):
        for rest in mixture.numbered.get(0, ()):
            parts = [mixture.numbered[member][rest] for member in one.members]
            merged = _mean(parts[0], [draft[part] for part in parts], one.shares)
            tensors[mixture.name(number, rest)] = merged
    return tensors


def _entries(name: str, tensor: LazyTensor, dim: int, made: Sequence[_Group]) -> LazyTensor:
    """Return a tensor whose entries along a dimension are means of others."""
    means = []
    for one in made:
        parts = [Selected(tensor, dim, ((number, number + 1),)) for number in one.members]
        means.append(_mean(name, parts, one.shares))
    return Joined(tuple(means), dim)


def _mean(name: str, parts: Sequence[LazyTensor], shares: Sequence[float]) -> LazyTensor:
    if len(parts) == 1:
        return parts[0]
    kernel, form = partial(_add_up, tuple(shares)), Linear(list(shares))
    return calculated(name, parts[0].spec, kernel, tuple(parts), "error", form)


def _add_up(
    shares: Sequence[float], blocks: Sequence[Array], statistics: None, out: Array
) -> Array:
    np.multiply(blocks[0], shares[0], out=out)
    for block, share in zip(blocks[1:], shares[1:], strict=True):
        out += block * share
    return out
