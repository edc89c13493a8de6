"""surgeon and mergekit 0.1.5 make the same of the same configurations."""

from __future__ import annotations

import pytest

from tests.conformance.environment import NotInstalledError, environment
from tests.conformance.tables import tables


# Two halves, for two cores: to start mergekit takes longer than most of its merges.
@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [("methods", "degenerate"), ("rounding", "random", "configurations", "deviations")],
    ids=" ".join,
)
def test_both_sides_agree_where_they_should(names: tuple[str, ...]) -> None:
    try:
        environment()
    except NotInstalledError as why:
        pytest.skip(str(why))
    for table in tables(names):
        assert not table.problems, f"{table}\n" + "\n".join(table.problems)
