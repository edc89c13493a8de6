"""The workers of a Dask cluster: found, looked at before anything begins, and waited for."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from surgeon.base.errors import UsageError, WriteError
from surgeon.base.units import spoken_size
from surgeon.output.cluster.work import Answer, Sight, seen
from surgeon.remote.locations import bare

if TYPE_CHECKING:
    from distributed import Client, Future

# A scheduler's address, "local:4", or a client.
Cluster: TypeAlias = "str | Client"
_LOCAL = "local:"
_CONNECTING_SECONDS = 30
# How long a run waits where there is no worker: a batch system may bring others.
_ALONE_SECONDS = 60
_LOOKING_SECONDS = 5
_MOST_SHOWN = 5
_GONE = "the cluster's scheduler went away, or gave the run up; --resume goes on with it"


@contextmanager
def connected(cluster: Cluster) -> Iterator[Client]:
    """Give a client of `tcp://scheduler:8786`, of `local:4` processes here, or the one given."""
    if not isinstance(cluster, str):
        yield cluster
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise UsageError(
            "--cluster needs Dask: pip install 'surgeon-checkpoints[cluster]'"
        ) from None
    for name in [n for n in logging.root.manager.loggerDict if n.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is said here
    if cluster.startswith(_LOCAL):
        count = cluster.removeprefix(_LOCAL)
        if not count.isdecimal() or not int(count):
            raise UsageError(f"--cluster {cluster}: say local:4 for 4 processes of this machine")
        with (
            LocalCluster(
                n_workers=int(count), threads_per_worker=1, processes=True, memory_limit=0,
                dashboard_address=None, silence_logs=logging.CRITICAL,
            ) as processes,
            Client(processes) as client,
        ):  # fmt: skip
            yield client
        return
    try:
        client = Client(cluster, timeout=_CONNECTING_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        address = str(cluster)
        inside, plain = (one.partition("://")[2] for one in (address, bare(address)))
        reason = str(error).splitlines()[0].replace(inside, plain) if str(error) else "no answer"
        raise UsageError(
            f"--cluster {bare(address)}: no scheduler can be reached: {reason}; `dask scheduler` "
            "starts one, and says its address"
        ) from None
    try:
        yield client
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.close()


@contextmanager
def reaching(client: Client) -> Iterator[None]:
    """Raise WriteError for whatever a client says once its scheduler is gone."""
    try:
        yield
    except OSError:
        raise WriteError(_GONE) from None
    except Exception:  # a closed client has errors of its own, and Python's
        if client.status == "running":
            raise
        raise WriteError(_GONE) from None


def require_alike(client: Client, inputs: Collection[Path], worker_bytes: int) -> None:
    """Raise UsageError where a worker has other software, sees other files or has no room."""
    with suppress(TimeoutError):
        client.wait_for_workers(1, timeout=_CONNECTING_SECONDS)
    paths = sorted({str(path.absolute()) for path in inputs})
    here = seen(paths, "")
    problems: list[str] = []
    for worker, there in _everywhere(client, seen, paths, ""):
        problems += _differences(worker, here, there)
    for worker, about in client.scheduler_info(n_workers=-1)["workers"].items():
        most, threads = about.get("memory_limit") or 0, about.get("nthreads", 1)
        if most and worker_bytes * threads > most:
            problems.append(
                f"{worker}: may use {spoken_size(most)}, and {threads} tasks at a time need "
                f"{spoken_size(worker_bytes * threads)}"
            )
    if problems:
        more = len(problems) - _MOST_SHOWN
        raise UsageError(*problems[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else []))


def require_shared(client: Client, probe: Path) -> None:
    """Raise WriteError where a worker cannot write into the folder that an output is made in."""
    token = uuid.uuid4().hex
    probe.write_text(token, "ascii")
    try:
        for worker, there in _everywhere(client, seen, [], str(probe.absolute())):
            if isinstance(there, Exception) or there.token != token:
                reason = there if isinstance(there, Exception) else there.token
                raise WriteError(
                    f"{probe.parent}: worker {worker} cannot write there, or it is another folder "
                    f"there: {reason}; workers need the output at the same path"
                )
    finally:
        probe.unlink()


def _everywhere(client: Client, function: Any, *arguments: Any) -> Iterator[tuple[str, Any]]:
    try:
        found = client.run(function, *arguments, on_error="return")
    except OSError:
        raise WriteError(_GONE) from None
    if not found:
        raise UsageError("the cluster has no workers; `dask worker ADDRESS` starts one")
    return iter(sorted(found.items()))


def _differences(worker: str, here: Sight, there: Sight | Exception) -> Iterator[str]:
    if isinstance(there, Exception):
        reason = str(there).splitlines()[0] if str(there) else type(there).__name__
        yield f"{worker}: {reason}; install {here.software} there too"
        return
    if here.software != there.software:
        yield f"{worker}: has {there.software}, and here is {here.software}"
    for path, known in here.files.items():
        found = there.files.get(path)
        if found == known:
            continue
        if isinstance(found, tuple) and isinstance(known, tuple):
            what = next(
                f"{word} {b} there, {a} here"
                for word, a, b in zip(
                    ("size", "time (ns)", "header's hash"), known, found, strict=True
                )
                if a != b
            )
            yield f"{worker}: {path} is another file there: {what}"
        else:
            yield f"{worker}: {path} cannot be read there: {found}; all need it at the same path"


class Crowd:
    """The workers while a run goes on: how many there are, and what of it is done."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._looked = self._alone_since = float("-inf")
        self.workers: list[str] = []
        self._threads = 0

    @property
    def size(self) -> int:
        """How many tasks run at a time."""
        if time.monotonic() - self._looked > _LOOKING_SECONDS:
            with reaching(self._client):
                found = self._client.ncores()
            self.workers, self._threads = sorted(found), sum(found.values())
            self._looked = time.monotonic()
            if found:
                self._alone_since = self._looked
        return max(1, self._threads)

    def first_done(self, pending: Collection[Future]) -> Sequence[Future]:
        """Wait until some are done; raises WriteError where nobody is left to do them."""
        from distributed import wait

        while True:
            with reaching(self._client), suppress(TimeoutError):
                return list(wait(list(pending), _LOOKING_SECONDS, "FIRST_COMPLETED").done)
            if self._client.status not in ("running", "connecting"):
                raise WriteError(_GONE)
            if self.size and time.monotonic() - self._alone_since > _ALONE_SECONDS:
                raise WriteError(f"the cluster has had no worker for {_ALONE_SECONDS} seconds")

    def answer(self, future: Future, name: str) -> Answer:
        """Return what a task gave; raises WriteError where it kills its workers, or is lost."""
        from distributed import CancelledError, KilledWorker
        from distributed.comm import CommClosedError

        try:
            found = future.result()
        except KilledWorker as error:
            raise WriteError(
                f"{name}: {error.allowed_failures + 1} workers were killed while they wrote it; "
                "fewer threads per worker take less memory"
            ) from None
        except (CancelledError, CommClosedError):
            raise WriteError(_GONE) from None
        assert isinstance(found, Answer)
        return found
