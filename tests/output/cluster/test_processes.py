"""A scheduler and workers of their own, which are killed: nothing is lost, nothing half published.

Slow: starting a worker takes seconds, and what is written is large enough to be interrupted.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

import surgeon
from tests.docs import ROOT
from tests.network import write_recipe
from tests.output.cluster.test_crew import contents, noted, save

pytestmark = pytest.mark.slow
DASK = "import sys; from distributed.cli.{0} import main; sys.argv[0] = '{0}'; main()"
SHARDS, ELEMENTS = 16, 1 << 20


def started(name, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", DASK.format(name), *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def until(is_so, seconds=300):
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
        until(lambda: self.file.exists() and self.file.read_text().rstrip().endswith("}"))
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
import sys, surgeon.output.cluster.tasks as tasks
tasks.TASK_BYTES = 1 << 22
sys.argv[0] = "surgeon"
from surgeon.__main__ import main
main()
"""


@contextmanager
def applying(job, machines, *options):
    """A run, until it ends or the test does; what it says goes into a file."""
    command = [sys.executable, "-c", APPLY, "apply", *job, "--cluster", machines.address, *options]
    said = machines.file.with_name("said.txt")
    with said.open("w") as file:
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
    run.said = said
    try:
        yield run
    finally:
        run.kill()
        run.wait()


def complete(tmp_path):
    """The shards that are complete out of sight, each with when it was."""
    found = {}
    for path in (tmp_path / ".out.surgeon-unfinished").glob("model-*"):
        with suppress(FileNotFoundError):  # published meanwhile
            found[path.name] = path.stat().st_mtime_ns
    return found


def test_a_killed_worker_costs_nothing_but_time(job, machines, tmp_path):
    with applying(job, machines) as run:
        until(lambda: complete(tmp_path))
        machines.workers[0].kill()
        assert run.wait(300) == 0, run.said.read_text()
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_run_goes_on_where_a_killed_one_was(job, machines, tmp_path, number):
    with applying(job, machines, "--resume") as run:
        until(lambda: len(complete(tmp_path)) >= 3)
        run.send_signal(number)
        assert run.wait(300) == (-9 if number == signal.SIGKILL else 128 + 15)
    assert not (tmp_path / "out").exists()
    kept, written_down = complete(tmp_path), set(noted(tmp_path / "out"))
    assert 3 <= len(kept) < SHARDS
    with applying(job, machines, "--resume") as run:
        assert run.wait(300) == 0, run.said.read_text()
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    made = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in kept}
    # Those that were complete a moment before may not have been written down yet.
    assert {name for name in kept if made[name] == kept[name]} == written_down != set()
    assert not list(tmp_path.glob(".out*"))


def test_without_a_scheduler_the_run_ends_and_leaves_nothing(job, machines, tmp_path):
    with applying(job, machines) as run:
        until(lambda: complete(tmp_path))
        machines.scheduler.kill()
        assert run.wait(300) == 5
        assert "scheduler went away" in run.said.read_text()
    assert not list(tmp_path.glob("*out*"))


def test_workers_that_come_later_take_part(job, machines, tmp_path):
    with applying(job, machines) as run:
        until(lambda: complete(tmp_path))
        machines.hire(1)
        machines.workers[0].kill()
        machines.workers[1].kill()
        assert run.wait(300) == 0, run.said.read_text()
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_the_first_run_of_the_page(tmp_path):
    """Its lines, but for the installation, with a port that is free."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    (recipe,) = re.findall(r"```json\n(.*?)```", page, re.S)
    (lines,) = re.findall(r"```sh\n(.*?)```", page, re.S)
    (tmp_path / "merge.json").write_text(recipe)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        lines = lines.replace("8786", str(free.getsockname()[1]))
    command = "\n".join(lines.splitlines()[1:])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run = subprocess.Popen(
        ["bash", "-ec", command], cwd=tmp_path, env={**os.environ, "PATH": path},
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert run.wait(300) == 0
    finally:
        os.killpg(run.pid, signal.SIGKILL)
    surgeon.apply(
        tmp_path / "merge.json", tmp_path / "base.safetensors", tmp_path / "one.safetensors"
    )
    made = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("merged", "one")]
    assert made[0] == made[1]
