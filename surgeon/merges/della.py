"""Changes dropped at random by their rank, added to the state."""

from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.merges.shared.pruning import Densities, Epsilons, Rescale, by_rank
from surgeon.merges.shared.task_vectors import Lambda, Normalize, Weights, summed


@merge(
    example={"models": ["other"], "density": 0.5},
    paper="Deep et al. 2024, DELLA-Merging, https://arxiv.org/abs/2406.11617",
)
def della(
    *,
    at: TensorContext,
    density: Densities,
    epsilon: Epsilons,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: Rescale = "paper",
) -> Arithmetic:
    """Drop small changes more often than large ones, enlarge the others.

    b + λ Σ wᵢ sᵢ, divided by Σ wᵢ where `normalize`. Of the R elements in a row of the task vector
    dᵢ = xᵢ - b (dimension 0 has the rows; a vector is one row), that of rank r by ascending
    magnitude, of equal ones the first being the lowest, is kept with probability
    density - ε + 2ε (r - 1) / (R - 1) and divided by it; a row of one element has `density`.
    `rescale`: "l1" multiplies by Σ |dᵢ| / Σ |kept dᵢ| instead, as mergekit's della_linear does, and
    "none" leaves it. Rows are held whole in memory. Raises unless 0 < density - ε and
    density + ε < 1. The paper elects signs, as `della_ties` does (mergekit calls that della).
    """
    return summed(by_rank(at, density, epsilon, rescale), weights, lambda_, normalize)
