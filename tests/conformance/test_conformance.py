"""surgeon and mergekit 0.1.5 make the same of the same configurations."""

from __future__ import annotations

import pytest

from tests.conformance.environment import NotInstalledError, environment
from tests.conformance.tables import TABLES


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_both_sides_agree_where_they_should(name: str) -> None:
    try:
        environment()
    except NotInstalledError as why:
        pytest.skip(str(why))
    table = TABLES[name]()
    assert not table.problems, f"{table}\n" + "\n".join(table.problems)
