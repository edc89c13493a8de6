"""Changes that are neither small nor outliers and agree in sign."""

from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.merges.shared.pruning import Densities, Gammas, middle
from surgeon.merges.shared.task_vectors import Lambda, NormalizeAgreeing, Weights, elected


@merge(
    example={"models": ["other"], "density": 0.5, "gamma": 0.1},
    paper="Davari & Belilovsky 2023, Model Breadcrumbs, https://arxiv.org/abs/2312.06795",
)
def breadcrumbs_ties(
    *,
    at: TensorContext,
    density: Densities,
    gamma: Gammas,
    weights: Weights,
    lambda_: Lambda = 1.0,
    normalize: NormalizeAgreeing = True,
) -> Arithmetic:
    """Drop each model's largest and smallest changes, merge as ties does.

    As `ties`, but sᵢ is the task vector without outliers and small changes, as in `breadcrumbs`.
    mergekit's default is not to `normalize`.
    """
    return elected(at, middle(at, density, gamma), weights, lambda_, normalize)
