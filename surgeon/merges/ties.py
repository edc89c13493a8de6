"""Large changes that agree in sign."""

from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.merges.shared.pruning import Densities, largest
from surgeon.merges.shared.task_vectors import Lambda, NormalizeAgreeing, Weights, elected


@merge(
    example={"models": ["other"], "density": 0.2},
    paper="Yadav et al. 2023, TIES-Merging, https://arxiv.org/abs/2306.01708",
)
def ties(
    *,
    at: TensorContext,
    density: Densities,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: NormalizeAgreeing = True,
) -> Arithmetic:
    """Keep each model's largest changes, elect signs, average who agrees.

    Task vectors dᵢ = xᵢ - b of the state b, per tensor: sᵢ is dᵢ with all but its
    max(1, int(density · n)) largest magnitudes set to zero, of equal ones the first; the sign of
    Σ wᵢ sᵢ is elected per element, zero being positive; b + λ Σ wᵢ sᵢ / Σ wᵢ over those wᵢ sᵢ ≠ 0
    that have it, not divided where not `normalize`. Section 4 of the paper, which trims over all
    tensors at once and has no weights. mergekit computes in the models' dtype, and breaks ties of
    magnitude as sorting leaves them. Raises where weights of models that agree add up to zero.
    """
    return elected(at, largest(at, density), weights, lambda_, normalize)
