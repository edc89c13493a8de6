"""A scheduler and workers of their own, which are killed: nothing is lost, nothing half published.

Slow: starting a worker takes seconds, and what is written is large enough to be interrupted.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import surgeon
from tests.cluster.test_crew import contents, save
from tests.network import write_recipe

pytestmark = pytest.mark.slow
DASK = "import sys; from distributed.cli.{0} import main; sys.argv[0] = '{0}'; main()"
SHARDS, ELEMENTS = 16, 1 << 20


def started(name, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", DASK.format(name), *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def until(is_so, seconds=90):
    """Wait for something to become so; raises where it does not."""
    last = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < last
        time.sleep(0.02)
    return found


class Machines:
    """A scheduler, and workers without nannies that would start them again."""

    def __init__(self, folder):
        self.file = folder / "scheduler.json"
        self.scheduler = started("dask_scheduler", "--port", 0, "--no-dashboard", "--host",
                                 "127.0.0.1", "--scheduler-file", self.file)  # fmt: skip
        until(self.file.exists)
        self.workers = []

    @property
    def address(self):
        return json.loads(self.file.read_text())["address"]

    def hire(self, count):
        for _ in range(count):
            self.workers.append(started("dask_worker", "--scheduler-file", self.file, "--nthreads",
                                        1, "--no-nanny", "--no-dashboard"))  # fmt: skip
        return self

    def end(self):
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()


@pytest.fixture
def machines(tmp_path):
    found = Machines(tmp_path).hire(2)
    yield found
    found.end()


@pytest.fixture
def job(tmp_path):
    """`ties` of three models, its arguments on the command line, and what one machine makes."""
    random = np.random.default_rng(0)
    for model in "abc":
        import torch

        values = torch.from_numpy(random.standard_normal((SHARDS, ELEMENTS), np.float32))
        save({f"layer.{i}.weight": values[i] for i in range(SHARDS)},
             tmp_path / f"{model}.safetensors")  # fmt: skip
    models = {name: str(tmp_path / f"{name}.safetensors") for name in "bc"}
    ties = {"op": "ties", "models": ["b", "c"], "density": 0.3}
    output = {"shard_size": "4MB"}
    recipe = write_recipe(tmp_path, ties, models=models, output=output)
    surgeon.apply(recipe, tmp_path / "a.safetensors", tmp_path / "expected")
    return [str(recipe), str(tmp_path / "a.safetensors"), str(tmp_path / "out")]


# Tasks of a shard each, of which a gigabyte would take long to make.
APPLY = """
import sys, surgeon.cluster.tasks as tasks
tasks.TASK_BYTES = 1 << 22
sys.argv[0] = "surgeon"
from surgeon.__main__ import main
main()
"""


def applying(job, machines, *options):
    command = [sys.executable, "-c", APPLY, "apply", *job, "--cluster", machines.address, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def complete(tmp_path):
    """The shards that are complete out of sight, each with when it was."""
    unfinished = tmp_path / ".out.surgeon-unfinished"
    with os.scandir(unfinished) if unfinished.exists() else [] as found:
        return {entry.name: entry.stat().st_mtime_ns for entry in found
                if entry.name.startswith("model-")}  # fmt: skip


def test_a_killed_worker_costs_nothing_but_time(job, machines, tmp_path):
    run = applying(job, machines)
    until(lambda: complete(tmp_path))
    machines.workers[0].kill()
    assert run.wait(120) == 0, run.stderr.read()
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_run_goes_on_where_a_killed_one_was(job, machines, tmp_path, number):
    run = applying(job, machines, "--resume")
    until(lambda: len(complete(tmp_path)) >= 3)
    run.send_signal(number)
    assert run.wait(60) == (-9 if number == signal.SIGKILL else 128 + 15)
    assert not (tmp_path / "out").exists()
    kept = complete(tmp_path)
    assert 3 <= len(kept) < SHARDS
    run = applying(job, machines, "--resume")
    assert run.wait(120) == 0, run.stderr.read()
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    written = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept}
    assert sum(written[name] == kept[name] for name in kept) >= len(kept) - 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_without_a_scheduler_the_run_ends_and_leaves_nothing(job, machines, tmp_path):
    run = applying(job, machines)
    until(lambda: complete(tmp_path))
    machines.scheduler.kill()
    assert run.wait(120) == 5
    assert "the cluster's scheduler went away" in run.stderr.read()
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".out")]


def test_a_worker_that_comes_later_takes_part(job, machines, tmp_path):
    run = applying(job, machines)
    until(lambda: complete(tmp_path))
    machines.hire(1)
    machines.workers[0].kill()
    machines.workers[1].kill()
    assert run.wait(120) == 0, run.stderr.read()
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
