"""Turn measurements into rows, and rows into RESULTS.md."""

# The multiplication sign is meant.
# ruff: noqa: RUF001

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.jobs import GROWTH_LIMIT, CopyJob, Limit, PeerJob
from benchmarks.measure import Runs

Row = dict[str, str]
# A difference below this is noise.
_TELLING_SECONDS = 0.02

_METHOD = """\
Every time is the median of whole processes' wall times, imports included; the range is in brackets.
What is compared runs in turn (`cp`, surgeon, `cp`, surgeon, ...). Before each run old output is
deleted, everything is flushed to the disk, and the inputs are read into the page cache. `cp` is
`cp -r --reflink=never`, and returns before its bytes are on the disk; surgeon flushes its output
before it publishes it. "Flushed" is the time until the copy is on the disk as well; targets and
ratios hold against that. "NumPy loops" is one run with SURGEON_KERNELS=numpy. Memory is the most
that was resident in a process at any moment, libraries and mapped files included, in the worst run
(`ru_maxrss`). "torch" says whether the command imports it. The checkpoint is a Llama of 300
tensors, random normals."""


def copy_row(
    job: CopyJob, cp: Runs, surgeon: Runs, modules: set[str], by_numpy: Runs | None
) -> Row:
    """Compare a command with the copy of a file, and with the same by NumPy loops."""
    limit, most = job.limit, None
    if limit:
        most = limit.copies * cp.durable_seconds + limit.seconds
    row = {
        "job": job.title,
        "`cp`": _spread(cp),
        "flushed": _seconds(cp.durable_seconds),
        "surgeon": _spread(surgeon),
        "× `cp`": f"{surgeon.seconds / cp.seconds:.2f}",
        "× flushed": f"{surgeon.durable_seconds / cp.durable_seconds:.2f}",
        "memory": _memory(surgeon.peak_bytes),
        "torch": _yes("torch" in modules),
        "target": _target(limit, most),
        "reached": _reached(surgeon, modules, limit, most),
    }
    if by_numpy:
        row["NumPy loops"] = _seconds(by_numpy.seconds)
        row["loops save"] = f"{by_numpy.seconds / surgeon.seconds:.1f} ×"
    return row


def header_row(title: str, runs: Runs, modules: set[str], limit: Limit | None) -> Row:
    """Compare a command with its limit in seconds."""
    return {
        "job": title,
        "time": _spread(runs),
        "memory": _memory(runs.peak_bytes),
        "torch": _yes("torch" in modules),
        "target": f"≤ {limit.seconds:g} s, no torch" if limit else "",
        "reached": _reached(runs, modules, limit, limit.seconds if limit else None),
    }


def growth_row(title: str, small: Runs, fewer: Runs, many: Runs) -> Row:
    """Say how the time grows with ten times the tensors, start-up left out."""
    row = {
        "job": f"{title}, growth from 10 000 to 100 000",
        "target": f"≤ {GROWTH_LIMIT} × (10 is linear)",
    }
    if not small.seconds + _TELLING_SECONDS < fewer.seconds < many.seconds:
        return row | {"time": "too short to tell"}
    growth = (many.seconds - small.seconds) / (fewer.seconds - small.seconds)
    missed = ["growth"] * (growth > GROWTH_LIMIT)
    return row | {"time": f"{growth:.1f} ×", "reached": _reason(missed)}


def peer_row(job: PeerJob, peer: Runs, surgeon: Runs, modules: set[str]) -> Row:
    """Compare a merge with the same merge by mergekit."""
    faster = peer.seconds / surgeon.seconds
    share = surgeon.peak_bytes / peer.peak_bytes
    missed = ["time"] * (faster < (job.faster or 0)) + ["memory"] * (share > job.memory)
    missed += ["torch"] * ("torch" in modules)
    wanted = f"≥ {job.faster:g} × faster, " if job.faster else ""
    return {
        "job": job.title,
        "mergekit": _spread(peer),
        "surgeon": _spread(surgeon),
        "times faster": f"{faster:.1f} ×",
        "mergekit's memory": _memory(peer.peak_bytes),
        "memory": _memory(surgeon.peak_bytes),
        "part of it": f"1/{1 / share:.1f}",
        "torch": _yes("torch" in modules),
        "target": f"{wanted}≤ 1/{1 / job.memory:.0f} of its memory, no torch",
        "reached": _reason(missed),
    }


def failed_row(title: str, reason: str) -> Row:
    """Say why there is no measurement."""
    return {"job": title, "reached": reason.replace("|", "/")}


def document(
    tables: Sequence[tuple[str, Sequence[Row]]],
    size: float,
    repeats: tuple[int, int],
    folder: Path,
    pace: Sequence[float],
) -> str:
    """Return the whole of RESULTS.md."""
    parts = ["# Measurements", _METHOD, _circumstances(size, repeats, folder, pace)]
    if size != 1:
        trial = f"**A trial at size {size:g}: targets and names of rows are those of size 1.**"
        parts.append(trial)
    for title, rows in tables:
        if rows:
            parts += [f"## {title}", table(rows)]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table with the columns of all of them."""
    from tabulate import tabulate

    # A row that failed has few columns; those of the fullest come first.
    fullest_first = sorted(rows, key=len, reverse=True)
    columns = list(dict.fromkeys(column for row in fullest_first for column in row))
    cells = [[row.get(column, "") for column in columns] for row in rows]
    return tabulate(cells, headers=columns, tablefmt="github", disable_numparse=True)


def _circumstances(
    size: float, repeats: tuple[int, int], folder: Path, pace: Sequence[float]
) -> str:
    from benchmarks import mergekit

    own, peer = repeats
    command = f"python -m benchmarks --size {size:g} --repeat {own} --repeat-mergekit {peer}"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    packages = ("numpy", "safetensors", "torch", "surgeon-checkpoints")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return "\n".join(
        [
            f"- command: `{command}` (`make bench` is size 1, 5 repetitions)",
            f"- {_loops()}",
            f"- a fixed loop, timed before each job, took {min(pace):.2f} to {max(pace):.2f} s",
            f"- {len(os.sched_getaffinity(0))} cores of {_processor()}; {memory:.0f} GiB",
            f"- Linux {_number(platform.release())}, {_file_system(folder)}",
            f"- Python {platform.python_version()}, {versions}; mergekit {mergekit.VERSION}",
        ]
    )


def _loops() -> str:
    """Return which loops run, as surgeon says; what measures imports no NumPy."""
    asked = [sys.executable, "-m", "surgeon", "--version"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _number(release: str) -> str:
    """Leave a kernel's number alone, without what a distribution or a host adds."""
    found = re.match(r"[\d.]+", release)
    return found[0].rstrip(".") if found else release


def _file_system(folder: Path) -> str:
    asked = ["df", "--output=fstype", str(folder)]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[-1]


def _target(limit: Limit | None, most: float | None) -> str:
    if limit is None or most is None:
        return "none, for information"
    memory = f", ≤ {limit.megabytes} MB" if limit.megabytes else ""
    share = f"{limit.copies:g} × flushed = {_seconds(most)}" if limit.copies else _seconds(most)
    return f"≤ {share}{memory}, no torch"


def _reached(runs: Runs, modules: set[str], limit: Limit | None, most: float | None) -> str:
    if limit is None or most is None:
        return ""
    too_large = limit.megabytes is not None and runs.peak_bytes > limit.megabytes * 1e6
    missed = ["time"] * (runs.seconds > most) + ["memory"] * too_large
    return _reason(missed + ["torch"] * ("torch" in modules))


def _reason(missed: Sequence[str]) -> str:
    return f"no: {', '.join(missed)}" if missed else "yes"


def _spread(runs: Runs) -> str:
    low, high = runs.range
    return f"{_seconds(runs.seconds)} ({low:.2f}-{high:.2f})"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _memory(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
