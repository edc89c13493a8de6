"""Indices and ranges, as recipes give them."""

import pytest

from surgeon.base import indices
from surgeon.base.errors import PlanError, UsageError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (3, [3]),
        ("3", [3]),
        ("0:5", [0, 1, 2, 3, 4]),
        (":2", [0, 1]),
        ("8:", [8, 9]),
        (":", list(range(10))),
        ([1, 2, "7:9"], [1, 2, 7, 8]),
        (["7:9", 1], [7, 8, 1]),
        (-1, [9]),
        ("-1", [9]),
        ("-3:", [7, 8, 9]),
        ("1:8:3", [1, 4, 7]),
    ],
)
def test_indices_mean(given, expected):
    assert indices.chosen(given, 10) == expected


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (10, ["10 is not among the entries, which are 0 to 9"]),
        ([-11], ["-11 is not among the entries, which are 0 to 9"]),
        (["8:12", "5:5"], ["8:12 is not among the entries, which are 0 to 9",
                           "5:5 is not among the entries, which are 0 to 9"]),
        ([1, "0:3"], ["1 is given twice"]),
    ],
)  # fmt: skip
def test_what_is_not_there_is_an_error(given, lines):
    with pytest.raises(PlanError) as caught:
        indices.chosen(given, 10)
    assert list(caught.value.problems) == lines


@pytest.mark.parametrize("text", ["a", "1-3", "1:2:3:4", "", "1,2", "::0"])
def test_other_texts_are_no_indices(text):
    with pytest.raises(UsageError, match=r"is not an index like 3, or a range|has a step of 0"):
        indices.parsed(text)


@pytest.mark.parametrize(
    ("given", "block", "expected"),
    [([], 1, ()), ([0, 1, 4], 1, ((0, 2), (4, 5))), ([1, 0], 1, ((1, 2), (0, 1))),
     ([0, 2, 3], 5, ((0, 5), (10, 20))), ([1, 1], 2, ((2, 4), (2, 4)))],
)  # fmt: skip
def test_runs_join_what_follows(given, block, expected):
    assert indices.runs(given, block) == expected
