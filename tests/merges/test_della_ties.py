"""della_ties: against naive loops in float64, given what chance keeps."""

import pytest

from tests.merges.oracles import (
    FLOATS,
    added,
    agree,
    assert_rounded,
    fine_tuned,
    merged,
    rescaled,
)
from tests.merges.test_della import kept_of, probabilities


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rescale", ["paper", "l1", "none"])
def test_kept_changes_that_agree(bench, normalize, rescale):
    for dtype in FLOATS:
        tensors, weights, shape = fine_tuned(2, dtype, (30, 21)), [0.4, 1.5], (30, 21)
        parameters = {"density": 0.5, "epsilon": 0.4}
        changes, pruned = kept_of(bench, tensors, "della_ties", **parameters)
        made = merged(
            bench, tensors, "della_ties", weights=weights, rescale=rescale, normalize=normalize,
            **parameters,
        )  # fmt: skip
        if rescale == "paper":
            chances = [probabilities(change, shape, 0.5, 0.4) for change in changes]
            pairs = zip(pruned, chances, strict=True)
            pruned = [[s / p for s, p in zip(*pair, strict=True)] for pair in pairs]
        else:
            pruned = rescaled(changes, pruned, None, rescale)
        assert_rounded(made, added(tensors, pruned, agree, weights, normalize=normalize))
