"""Work shared by processes: in order, and none of it outlives the run."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surgeon.base.errors import PlanError, WriteError
from surgeon.output.execute import Options
from surgeon.output.workers import parallel_map


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    def late(item: int) -> int:
        time.sleep(0.02 * (item == 0))
        return item * item

    assert list(parallel_map(late, range(20), workers)) == [item * item for item in range(20)]


def test_threads_work_where_there_are_no_semaphores(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **options: object) -> None:
        raise OSError(errno.EROFS, "read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    found = list(parallel_map(lambda item: (item, os.getpid()), range(20), 2))
    assert found == [(item, os.getpid()) for item in range(20)]


def test_work_is_done_where_no_worker_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """With little address space, processes are forked, and no thread looks after them."""
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread.start", refuse)
        found = list(parallel_map(lambda item: (item, os.getpid()), range(20), 2))
    assert found == [(item, os.getpid()) for item in range(20)]
    assert multiprocessing.active_children() == [other]
    other.kill()
    other.join()


def test_work_is_done_where_the_pool_s_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts one of its own; what it says of a failure goes to stderr alone."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("multiprocessing.queues.Queue._start_thread", refuse)
    monkeypatch.setattr(threading, "excepthook", lambda about: None)
    found = list(parallel_map(lambda item: (item, os.getpid()), range(20), 2))
    assert found == [(item, os.getpid()) for item in range(20)]
    assert multiprocessing.active_children() == []


def test_a_failure_ends_no_process_of_the_caller() -> None:
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda item: 1 // item, range(20), 2))
    assert multiprocessing.active_children() == [other]
    other.kill()
    other.join()


def test_several_workers_are_several_processes(tmp_path: Path) -> None:
    def meet(item: int) -> int:
        (tmp_path / str(os.getpid())).touch()
        until = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        return os.getpid()

    found = set(parallel_map(meet, range(2), 2))
    assert len(found) == 2
    assert os.getpid() not in found


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failure_arrives_with_all_its_lines(workers: int) -> None:
    def fail(item: int) -> int:
        if item == 3:
            raise PlanError("one thing", "another")
        return item

    done: list[int] = []
    with pytest.raises(PlanError) as caught:
        done.extend(parallel_map(fail, range(50), workers))
    assert caught.value.problems == ("one thing", "another")
    assert done == [0, 1, 2]


def test_a_failure_does_not_wait_for_what_takes_long() -> None:
    def fail_or_sleep(item: int) -> None:
        if item == 0:
            raise PlanError("at once")
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(PlanError):
        list(parallel_map(fail_or_sleep, range(4), 2))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("patience", [0, 0.5])
def test_a_failure_ends_workers_that_hear_nothing(patience: float) -> None:
    """Such as one that was just forked, which loses the signals of that moment."""

    def work(item: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not item:
            time.sleep(0.2)
            raise PlanError("no")
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(PlanError):
        list(parallel_map(work, range(2), 2, patience=patience))
    assert time.monotonic() - began < 30


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the workers are threads")
def test_with_patience_a_worker_cleans_up_once(tmp_path: Path) -> None:
    def work(item: int) -> None:
        (tmp_path / f"began-{item}").touch()
        try:
            until = time.monotonic() + 60
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            if not item:
                raise PlanError("no")
            time.sleep(60)
        except SystemExit:
            time.sleep(0.6)  # it is told several times
            (tmp_path / "cleaned").touch()
            raise

    began = time.monotonic()
    with pytest.raises(PlanError):
        list(parallel_map(work, range(5), 2, patience=30))
    assert time.monotonic() - began < 25
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found[0] == "began-0"
    assert "began-1" in found
    assert found[-1] == "cleaned"
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the workers are threads")
def test_a_worker_that_hands_back_a_result_goes_on_with_nothing(tmp_path: Path) -> None:
    class Slow:
        def __reduce__(self) -> Any:
            (tmp_path / "pickled").touch()
            time.sleep(60)

    def work(item: int) -> Any:
        if item == 1:
            return Slow()
        while not item and not (tmp_path / "pickled").exists():
            time.sleep(0.01)
        if not item:
            raise PlanError("no")
        return time.sleep(60)

    began = time.monotonic()
    with pytest.raises(PlanError):
        list(parallel_map(work, range(5), 2, patience=30))
    assert time.monotonic() - began < 25


def test_a_killed_worker_is_an_error_that_says_so() -> None:
    def die(item: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WriteError, match="a worker was killed"):
        list(parallel_map(die, range(4), 2))


RUN = r"""
import os, sys, time
from surgeon.output.workers import parallel_map
def tell(item):
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(60)
list(parallel_map(tell, range(2), 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the workers are threads")
def test_workers_end_with_a_killed_run() -> None:
    run = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    workers = [int(run.stdout.readline()) for _ in range(2)]
    run.kill()
    run.wait()
    run.stdout.close()
    until = time.monotonic() + 20
    while any(map(_is_running, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(_is_running, workers))


def _is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_threads_have_scratch_of_their_own(example, monkeypatch):
    """Where there is no fork, threads are the workers."""
    ties = {"op": "ties", "models": ["other", "third"], "density": 0.5}
    expected = example.operate(ties, options=Options(workers=1)).path.read_bytes()
    monkeypatch.setattr("surgeon.output.workers._SHARED_FROM", 0)
    monkeypatch.setattr("surgeon.output.units.UNIT", 1 << 10)
    macos = SimpleNamespace(platform="darwin")
    monkeypatch.setattr("surgeon.output.workers.sys", macos)
    for _ in range(5):
        again = example.operate(ties, options=Options(workers=4))
        assert again.path.read_bytes() == expected
