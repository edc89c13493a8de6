"""Changes that are neither small nor outliers, added to the state."""

from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.merges.shared.pruning import Densities, Gammas, middle
from surgeon.merges.shared.task_vectors import Lambda, Normalize, Weights, summed


@merge(
    example={"models": ["other"], "density": 0.5, "gamma": 0.1},
    paper="Davari & Belilovsky 2023, Model Breadcrumbs, https://arxiv.org/abs/2312.06795",
)
def breadcrumbs(
    *,
    at: TensorContext,
    density: Densities,
    gamma: Gammas,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
) -> Arithmetic:
    """Drop each model's largest and smallest changes, add the others.

    b + λ Σ wᵢ sᵢ, divided by Σ wᵢ where `normalize`; sᵢ is the task vector dᵢ = xᵢ - b without its
    int(gamma · n) largest magnitudes, of which the next int(density · n) are kept: fewer where no
    more are left (mergekit then drops fewer of the largest, and none at density 1), none of a
    tensor too small. Of equal magnitudes the first counts as the larger.
    """
    return summed(middle(at, density, gamma), weights, lambda_, normalize)
