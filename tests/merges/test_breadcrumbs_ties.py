"""breadcrumbs_ties: against naive loops in float64."""

import pytest

from tests.merges.oracles import (
    FLOATS,
    added,
    agree,
    assert_rounded,
    fine_tuned,
    merged,
    middle,
    task_vectors,
)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weights", [[1.0, 1.0], [2.0, 0.3, 0.3]])
@pytest.mark.parametrize("normalize", [True, False])
def test_middle_of_the_changes_that_agree(bench, dtype, weights, normalize):
    tensors = fine_tuned(len(weights), dtype)
    made = merged(
        bench, tensors, "breadcrumbs_ties", density=0.6, gamma=0.1, weights=weights,
        normalize=normalize, **{"lambda": 1.3},
    )  # fmt: skip
    changes = [middle(d, 0.6, 0.1) for d in task_vectors(tensors)]
    assert_rounded(made, added(tensors, changes, agree, weights, 1.3, normalize))
