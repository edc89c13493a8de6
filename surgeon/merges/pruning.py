"""The merges of pruned task vectors: a table of what is kept of each, and how they are added.

dᵢ = xᵢ - b is the task vector of model i, with the base model b; sᵢ is what is kept of it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.merges.shared.pruning import Pruning, by_rank, largest, middle, random, unpruned
from surgeon.merges.shared.task_vectors import add_up, elect_and_add


@dataclass(frozen=True)
class Method:
    """A merge: its pruning, its way to add, what they are called, and where that is from.

    Its parameters are those of the two functions after their positional ones.
    """

    name: str
    prune: Callable[..., Pruning]
    add: Callable[..., Arithmetic]
    example: Mapping[str, Any]
    paper: str
    doc: str


_ILHARCO = (
    "Ilharco et al. 2023, Editing models with task arithmetic, https://arxiv.org/abs/2212.04089"
)
_YADAV = "Yadav et al. 2023, TIES-Merging, https://arxiv.org/abs/2306.01708"
_YU = "Yu et al. 2023, Language models are super Mario, https://arxiv.org/abs/2311.03099"
_DEEP = "Deep et al. 2024, DELLA-Merging, https://arxiv.org/abs/2406.11617"
_DAVARI = "Davari & Belilovsky 2023, Model Breadcrumbs, https://arxiv.org/abs/2312.06795"

METHODS = (
    Method(
        "task_arithmetic", unpruned, add_up, {"lambda": 0.5}, _ILHARCO,
        """Add what other models learned, their task vectors, to the base model.

        b + λ Σ wᵢ dᵢ with the base model b and task vectors dᵢ = xᵢ - b; divided by Σ wᵢ where
        `normalize`. A negative weight takes away what a model learned. Raises where weights that
        are to be divided by their sum add up to zero (mergekit then does not divide).
        """,
    ),
    Method(
        "ties", largest, elect_and_add, {"density": 0.2}, _YADAV,
        """Trim task vectors, elect signs, merge those that agree (disjoint).

        Task vectors dᵢ = xᵢ - b of the base model b, per tensor: sᵢ is dᵢ with all but its
        max(1, int(density · n)) largest magnitudes set to zero, of equal ones the first; the sign
        of Σ wᵢ sᵢ is elected per element, zero being positive; b + λ Σ wᵢ sᵢ / Σ wᵢ over those
        wᵢ sᵢ ≠ 0 that have it, not divided where not `normalize`. Section 4 of the paper, which
        trims over all tensors at once and has no weights. mergekit computes in the models' dtype,
        and breaks ties of magnitude as sorting leaves them. Raises where weights of models that
        agree add up to zero.
        """,
    ),
    Method(
        "dare", random, add_up, {"density": 0.5}, _YU,
        """Drop changes at random, rescale the others, add them.

        b + λ Σ wᵢ sᵢ, divided by Σ wᵢ where `normalize`; sᵢ keeps each element of the task vector
        dᵢ = xᵢ - b with probability `density` (1 - p in the paper, equation 2) and divides it by
        that. `rescale`: "l1" instead multiplies by Σ |dᵢ| / Σ |kept dᵢ|, as mergekit's dare_linear
        does, and "none" leaves it. What is kept depends on the recipe's seed, the step, and the
        names of tensor and model alone.
        """,
    ),
    Method(
        "dare_ties", random, elect_and_add, {"density": 0.5}, _YU,
        """Drop changes at random, rescale the others, merge as ties does.

        As `ties`, but sᵢ keeps each element of the task vector dᵢ = xᵢ - b with probability
        `density` and divides it by that; `rescale` as in `dare`. mergekit's default is not to
        `normalize`, and it always restores the l1 norm.
        """,
    ),
    Method(
        "della", by_rank, add_up, {"density": 0.5}, _DEEP,
        """Drop by the rank of magnitudes (MAGPRUNE), rescale the others, add.

        b + λ Σ wᵢ sᵢ, divided by Σ wᵢ where `normalize`. Of the R elements in a row of the task
        vector dᵢ = xᵢ - b (dimension 0 has the rows; a vector is one row), that of rank r by
        ascending magnitude, of equal ones the first being the lowest, is kept with probability
        density - ε + 2ε (r - 1) / (R - 1) and divided by it; a row of one element has `density`.
        `rescale`: "l1" multiplies by Σ |dᵢ| / Σ |kept dᵢ| instead, as mergekit's della_linear does,
        and "none" leaves it. Rows are held whole in memory. Raises unless 0 < density - ε and
        density + ε < 1. The paper elects signs, as `della_ties` does (mergekit calls that della).
        """,
    ),
    Method(
        "della_ties", by_rank, elect_and_add, {"density": 0.5}, _DEEP,
        """Drop by the rank of magnitudes (MAGPRUNE), elect signs, fuse.

        As `ties`, but sᵢ is the task vector as `della` drops and rescales it. This is the method of
        the paper (drop, elect, fuse) and what mergekit calls della; mergekit always restores the l1
        norm.
        """,
    ),
    Method(
        "breadcrumbs", middle, add_up, {"density": 0.5, "gamma": 0.1}, _DAVARI,
        """Mask each model's largest outliers and small changes, add the rest.

        b + λ Σ wᵢ sᵢ, divided by Σ wᵢ where `normalize`; sᵢ is the task vector dᵢ = xᵢ - b without
        its int(gamma · n) largest magnitudes, of which the next int(density · n) are kept: fewer
        where no more are left (mergekit then drops fewer of the largest, and none at density 1),
        none of a tensor too small. Of equal magnitudes the first counts as the larger.
        """,
    ),
    Method(
        "breadcrumbs_ties", middle, elect_and_add, {"density": 0.5, "gamma": 0.1}, _DAVARI,
        """Mask each model's outliers and small changes, merge as ties does.

        As `ties`, but sᵢ is the task vector without outliers and small changes, as in
        `breadcrumbs`. mergekit's default is not to `normalize`.
        """,
    ),
)  # fmt: skip


def _maker(method: Method) -> Callable[..., Arithmetic]:
    """Return the function that `@merge` makes an op of."""
    pruning, adding = _keywords(method.prune), _keywords(method.add)
    required = [parameter for parameter in pruning if parameter.default is parameter.empty]
    words = [parameter.name for parameter in pruning]
    at = inspect.Parameter("at", inspect.Parameter.KEYWORD_ONLY, annotation=TensorContext)

    def make(*, at: TensorContext, **given: Any) -> Arithmetic:
        kept = method.prune(at, **{word: given.pop(word) for word in words if word in given})
        return method.add(at, kept, **given)

    # As a recipe's author thinks of them: what is kept, how it is added, and details.
    ordered = [at, *required, *adding, *(p for p in pruning if p not in required)]
    make.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    make.__name__, make.__doc__ = method.name, method.doc
    return make


def _keywords(function: Callable[..., Any]) -> list[inspect.Parameter]:
    found = inspect.signature(function, eval_str=True).parameters.values()
    return [parameter for parameter in found if parameter.kind is parameter.KEYWORD_ONLY]


for _method in METHODS:
    _example = {"models": ["other"], **_method.example}
    merge(example=_example, paper=_method.paper)(_maker(_method))
