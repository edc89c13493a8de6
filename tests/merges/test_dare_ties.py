"""dare_ties: against naive loops in float64, given what chance keeps."""

import pytest
import torch

from tests.merges.oracles import (
    FLOATS,
    added,
    agree,
    assert_rounded,
    fine_tuned,
    kept,
    masked,
    merged,
    rescaled,
    task_vectors,
)


@pytest.mark.parametrize("rescale", ["paper", "l1", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.4, 1.5]])
def test_kept_changes_that_agree(bench, rescale, normalize, weights):
    for dtype in FLOATS:
        tensors, densities = fine_tuned(2, dtype), [0.3, 0.8]
        masks = kept(bench, tensors[0].shape, "dare_ties", density=densities)
        made = merged(
            bench, tensors, "dare_ties", density=densities, weights=weights, rescale=rescale,
            normalize=normalize, **{"lambda": 0.7},
        )  # fmt: skip
        changes = task_vectors(tensors)
        pruned = rescaled(changes, masked(changes, masks), densities, rescale)
        assert_rounded(made, added(tensors, pruned, agree, weights, 0.7, normalize))


def test_paper_rescale_and_normalize_are_the_defaults(bench):
    """mergekit restores the l1 norm and does not divide."""
    tensors = [torch.zeros(64), torch.ones(64), torch.ones(64)]
    made = merged(bench, tensors, "dare_ties", density=0.25)
    assert set(made.tolist()) == {0.0, 4.0}
