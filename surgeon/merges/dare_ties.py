"""Randomly dropped changes that agree in sign."""

from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.merges.shared.pruning import Densities, Rescale, random
from surgeon.merges.shared.task_vectors import Lambda, NormalizeAgreeing, Weights, elected


@merge(
    example={"models": ["other"], "density": 0.5},
    paper="Yu et al. 2023, Language models are super Mario, https://arxiv.org/abs/2311.03099",
)
def dare_ties(
    *,
    at: TensorContext,
    density: Densities,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: NormalizeAgreeing = True,
    rescale: Rescale = "paper",
) -> Arithmetic:
    """Drop changes at random, enlarge the others, then merge as ties does.

    As `ties`, but sᵢ keeps each element of the task vector dᵢ = xᵢ - b with probability `density`
    and divides it by that; `rescale` as in `dare`. mergekit's default is not to `normalize`, and it
    always restores the l1 norm.
    """
    return elected(at, random(at, density, rescale), weights, lambda_, normalize)
