"""Measure surgeon; prints the tables and writes RESULTS.md."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import mergekit, report
from benchmarks.jobs import JOBS, RESULT, CopyJob, HeaderJob, Job, PeerJob, data_of
from benchmarks.measure import OUTPUT, Command, CommandFailedError, imports, side_by_side
from benchmarks.report import Row

ROOT = Path(__file__).parent.parent
# Tiny, but with as many tensors; for what is not timed.
_TRIAL_SIZE = 0.001
_TITLES: dict[type[Job], str] = {
    CopyJob: "Against a copy",
    HeaderJob: "Headers only",
    PeerJob: f"Against mergekit {mergekit.VERSION}",
}


@dataclass(frozen=True)
class Bench:
    """Where the data lies and how much is done."""

    folder: Path
    size: float
    repeat: int
    # Of what is compared with mergekit, which takes minutes.
    repeat_peer: int

    @property
    def data(self) -> Path:
        return self.folder / f"size-{self.size:g}"

    @property
    def trial(self) -> Path:
        return self.folder / f"trial-{_TRIAL_SIZE:g}"

    def provide(self, names: set[str]) -> None:
        """Make the checkpoints that are missing, in full size and tiny."""
        for folder, size in ((self.data, self.size), (self.trial, _TRIAL_SIZE)):
            if missing := sorted(name for name in names if not (folder / name).exists()):
                _say(f"  making {', '.join(missing)} at size {size:g}")
                command = [sys.executable, "-m", "benchmarks.data", str(folder), str(size)]
                subprocess.run([*command, *missing], cwd=ROOT, check=True)

    def discard(self, names: set[str]) -> None:
        """Delete checkpoints that no later job reads."""
        for name in names:
            path = self.data / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the jobs that are asked for; returns 1 where one could not be measured."""
    options = _options(arguments)
    whole = Bench(options.folder.resolve(), options.size, options.repeat, options.repeat_mergekit)
    jobs = [job for job in JOBS if not options.only or job.name in options.only]
    tables: dict[type[Job], list[Row]] = {CopyJob: [], HeaderJob: [], PeerJob: []}
    failed, pace = False, []
    for number, job in enumerate(jobs):
        pace.append(_pace())
        _say(f"{job.name} ({number + 1} of {len(jobs)})")
        bench = _bench_of(whole, job)
        bench.provide(data_of(job))
        try:
            rows = _measured(bench, job)
        except CommandFailedError as error:
            failed = True
            rows = [report.failed_row(_title(job), f"failed: {error}")]
        tables[type(job)] += rows
        for row in rows:
            _say("  " + " | ".join(cell for cell in row.values() if cell))
        if not options.keep:
            later = [one for one in jobs[number + 1 :] if _bench_of(whole, one) == bench]
            bench.discard(data_of(job) - set[str]().union(*map(data_of, later)))
    titled = [(_TITLES[kind], rows) for kind, rows in tables.items()]
    repeats = whole.repeat, whole.repeat_peer
    text = report.document(titled, whole.size, repeats, whole.folder, pace)
    print(text)
    # A partial run leaves the figures of the last full one alone.
    full = whole.size == 1 and not options.only
    results = Path(__file__).with_name("RESULTS.md") if full else whole.folder / "RESULTS.md"
    results.write_text(text)
    _say(f"written to {results}")
    for folder in {bench.data for bench in (_bench_of(whole, job) for job in jobs)} | {whole.trial}:
        shutil.rmtree(folder / OUTPUT, ignore_errors=True)
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", type=float, default=1, help="scale: 1 is a checkpoint of 2 GB")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each side (default: 5)")
    parser.add_argument("--repeat-mergekit", type=int, default=1, metavar="N",
                        help="runs of what mergekit does, too (default: 1)")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=[job.name for job in JOBS], metavar="NAME",
                        help="of: " + ", ".join(job.name for job in JOBS))  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints that were made")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench",
                        help="where the data goes (default: .bench)")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.size <= 0 or min(options.repeat, options.repeat_mergekit) < 1:
        parser.error("sizes and repetitions must be positive")
    return options


def _pace() -> float:
    """Return the seconds of a fixed loop, which tell how fast the machine is just now."""
    began = time.perf_counter()
    for _ in range(3_000_000):
        pass
    return time.perf_counter() - began


def _bench_of(whole: Bench, job: Job) -> Bench:
    return replace(whole, size=whole.size * job.part) if isinstance(job, PeerJob) else whole


def _measured(bench: Bench, job: Job) -> list[Row]:
    match job:
        case CopyJob():
            return [_copy(bench, job)]
        case HeaderJob():
            return _headers(bench, job)
        case PeerJob():
            return [_peer(bench, job)]


def _copy(bench: Bench, job: CopyJob) -> Row:
    if job.steps:
        for folder in (bench.data, bench.trial):
            recipe = json.dumps({"surgeon": 1, "steps": job.steps})
            (folder / f"{job.name}.json").write_text(recipe)
    surgeon = _surgeon(job.arguments, job.inputs)
    modules = imports(bench.trial, surgeon)
    copy = Command(["cp", "-r", "--reflink=never", job.copied, f"{OUTPUT}/copy"], [job.copied])
    copied, operated = side_by_side(bench.data, [copy, surgeon], bench.repeat)
    by_numpy = None
    if job.calculates:
        # Once is enough to compare: it takes several times as long.
        slow = replace(surgeon, environment={"SURGEON_KERNELS": "numpy"})
        (by_numpy,) = side_by_side(bench.data, [slow], 1)
    return report.copy_row(job, copied, operated, modules, by_numpy)


def _headers(bench: Bench, job: HeaderJob) -> list[Row]:
    label = f"`{job.name}`"
    if job.alone:
        command = _surgeon(job.arguments)
        modules = imports(bench.trial, command)
        (runs,) = side_by_side(bench.data, [command], bench.repeat)
        return [report.header_row(label, runs, modules, job.alone)]
    commands = [_surgeon([*job.arguments, name], [name]) for _, name, _ in job.checkpoints]
    modules = set[str]().union(*(imports(bench.trial, command) for command in commands))
    measured = side_by_side(bench.data, commands, bench.repeat)
    rows = [
        report.header_row(f"{label}, {title}", runs, modules, limit)
        for (title, _, limit), runs in zip(job.checkpoints, measured, strict=True)
    ]
    return [*rows, report.growth_row(label, *measured)] if len(rows) == 3 else rows


def _peer(bench: Bench, job: PeerJob) -> Row:
    environment = bench.folder / "mergekit"
    _say("  installing mergekit, unless that is done")
    if reason := mergekit.install(environment):
        return report.failed_row(job.title, reason)
    try:
        for folder, size in ((bench.trial, _TRIAL_SIZE), (bench.data, bench.size)):
            folders = mergekit.prepare(folder, size, job)
            recipe = mergekit.recipe(str(_program("surgeon")), folder)
        peer = mergekit.command(environment, folders)
        surgeon = _surgeon(["surgeon", "apply", recipe, folders[0], RESULT], folders)
        modules = imports(bench.trial, surgeon)
        theirs, ours = side_by_side(bench.data, [peer, surgeon], bench.repeat_peer)
    finally:
        for folder in (bench.trial, bench.data):
            mergekit.remove(folder)
    return report.peer_row(job, theirs, ours, modules)


def _surgeon(arguments: Sequence[str], inputs: Sequence[str] = ()) -> Command:
    """Run the console script of this environment, as a user does."""
    return Command([str(_program(arguments[0])), *arguments[1:]], inputs)


def _program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def _title(job: Job) -> str:
    return f"`{job.name}`" if isinstance(job, HeaderJob) else job.title


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
