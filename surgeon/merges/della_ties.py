"""Changes dropped at random by their rank that agree in sign."""

from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.merges.shared.pruning import Densities, Epsilons, Rescale, by_rank
from surgeon.merges.shared.task_vectors import Lambda, NormalizeAgreeing, Weights, elected


@merge(
    example={"models": ["other"], "density": 0.5},
    paper="Deep et al. 2024, DELLA-Merging, https://arxiv.org/abs/2406.11617",
)
def della_ties(
    *,
    at: TensorContext,
    density: Densities,
    epsilon: Epsilons,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: NormalizeAgreeing = True,
    rescale: Rescale = "paper",
) -> Arithmetic:
    """Drop small changes more often than large ones, merge as ties does.

    As `ties`, but sᵢ is the task vector as `della` drops and rescales it. This is the method of the
    paper (drop, elect, fuse) and what mergekit calls della; mergekit always restores the l1 norm.
    """
    return elected(at, by_rank(at, density, epsilon, rescale), weights, lambda_, normalize)
