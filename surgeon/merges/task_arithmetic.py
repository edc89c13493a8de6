"""Task vectors added to the state."""

from surgeon.merges.shared import Arithmetic, merge
from surgeon.merges.shared.pruning import unpruned
from surgeon.merges.shared.task_vectors import Lambda, Normalize, Weights, summed


@merge(
    example={"models": ["other"], "lambda": 0.5},
    paper="Ilharco et al. 2023, Editing models with task arithmetic, "
    "https://arxiv.org/abs/2212.04089",
)
def task_arithmetic(
    *, weights: Weights, lambda_: Lambda = 1.0, normalize: Normalize = False
) -> Arithmetic:
    """Add what other models learned, their task vectors, to the state.

    b + λ Σ wᵢ dᵢ with the state b as base and task vectors dᵢ = xᵢ - b; divided by Σ wᵢ where
    `normalize`. A negative weight takes away what a model learned. Raises where weights that are to
    be divided by their sum add up to zero (mergekit then does not divide).
    """
    return summed(unpruned(), weights, lambda_, normalize)
