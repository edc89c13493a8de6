"""Randomly dropped changes, added to the state."""

from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.merges.shared.pruning import Densities, Rescale, random
from surgeon.merges.shared.task_vectors import Lambda, Normalize, Weights, summed


@merge(
    example={"models": ["other"], "density": 0.5},
    paper="Yu et al. 2023, Language models are super Mario, https://arxiv.org/abs/2311.03099",
)
def dare(
    *,
    at: TensorContext,
    density: Densities,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Rescale = "paper",
) -> Arithmetic:
    """Drop changes at random, enlarge the others, add them to the state.

    b + λ Σ wᵢ sᵢ, divided by Σ wᵢ where `normalize`; sᵢ keeps each element of the task vector
    dᵢ = xᵢ - b with probability `density` (1 - p in the paper, equation 2) and divides it by that.
    `rescale`: "l1" instead multiplies by Σ |dᵢ| / Σ |kept dᵢ|, as mergekit's dare_linear does, and
    "none" leaves it. What is kept depends on the recipe's seed, the step, and the names of tensor
    and model alone.
    """
    return summed(random(at, density, rescale), weights, lambda_, normalize)
