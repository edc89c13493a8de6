"""A cluster inside of this process, for whatever needs no process of its own to be killed."""

import logging
import warnings
from importlib.util import find_spec

import pytest

if find_spec("distributed") is None:  # an extra
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def client():
    from distributed import Client, LocalCluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as made,
        ):  # fmt: skip
            yield made


@pytest.fixture
def small_tasks(monkeypatch):
    """Have files and tensors of a few hundred bytes split over tasks."""
    monkeypatch.setattr("surgeon.output.cluster.tasks.TASK_BYTES", 1 << 8)
    monkeypatch.setattr("surgeon.output.units.UNIT", 1 << 7)
