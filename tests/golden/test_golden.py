"""What surgeon writes is what it wrote when `hashes.json` was recorded, bit for bit.

Matrix products, inner products and decompositions may differ by one unit in the last place, since
the libraries that compute them add up in an order of their own on every machine.
"""

import json

import numpy as np
import pytest

from tests.golden.cases import Case
from tests.golden.make import GROUPS, RECORDS, results
from tests.golden.outputs import differences, packed

RECORDED = json.loads(RECORDS.read_text())
CASES: dict[tuple[str, str], Case] = {(g, n): c for g, cs in GROUPS.items() for n, c in cs.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return results(tmp_path_factory.mktemp("golden"), list(GROUPS))


@pytest.mark.parametrize(("group", "name"), CASES, ids=[name for _, name in CASES])
def test_output_is_as_recorded(written, group, name):
    assert differences(written[group][name], RECORDED[group][name]["files"]) == []


def test_every_op_of_its_time_is_used():
    used = {step["op"] for case in CASES.values() for step in case.steps}
    assert set(RECORDED["ops"]) - used == set()


@pytest.mark.parametrize("start", [-1e-45, 0.0, 1.5])
@pytest.mark.parametrize("away", [1, 2])
def test_more_than_one_ulp_is_a_difference(start, away):
    values = [np.float32(start)]
    for _ in range(away):
        values.append(np.nextafter(values[-1], np.float32(9)))
    files = [{"f": {"values": {"w": packed("F32", v.tobytes())}}} for v in (values[0], values[-1])]
    assert bool(differences(*files)) == (away > 1)
