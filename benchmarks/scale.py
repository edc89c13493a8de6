"""How a run would scale: very large checkpoints planned, and their tasks over many workers.

`python -m benchmarks.scale` makes sparse checkpoints of a terabyte and more, plans recipes for
them, and lists their tasks. What a byte and a task cost is measured on small real data, over 1, 2
and 4 processes of this machine; a simulation of 1 to 64 workers is made of that, and first held
against those very runs.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

TITLES = {"scale": "scale (one model)", "ties": "ties of 3"}
SIZES = {"1 TB": (200, 60_000, 10**12), "10 TB": (2_000, 600_000, 10**13)}
WORKERS = (1, 2, 4, 8, 16, 32, 64)
# What the simulation takes for granted of a cluster; real ones differ.
STORAGE_BYTES_PER_SECOND = 20e9
LINK_BYTES_PER_SECOND = 2e9
_SAMPLED_TASKS = 20
_REAL_SHARDS, _REAL_ELEMENTS = 16, 2 << 20
_REAL_PROCESSES = (1, 2, 4)


# --- Checkpoints ----------------------------------------------------------------------------------


def sparse(folder: Path, shards: int, tensors: int, size_bytes: int) -> Path:
    """Make a model folder of BF16 experts whose files have a header, and holes for data."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    rows = size_bytes // tensors // 2 // 4096
    names, weight_map = iter(range(tensors)), {}
    for shard in range(1, shards + 1):
        file = f"model-{shard:05d}-of-{shards:05d}.safetensors"
        own = [_name(next(names)) for _ in range(tensors // shards)]
        header(folder / file, dict.fromkeys(own, ("BF16", (rows, 4096), rows * 4096 * 2)))
        weight_map |= dict.fromkeys(own, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text('{"model_type": "sparse"}')
    return folder


def _name(number: int) -> str:
    layer, rest = divmod(number, 300)
    expert, projection = divmod(rest, 3)
    return f"model.layers.{layer}.experts.{expert}.{('gate', 'up', 'down')[projection]}_proj.weight"


def header(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> int:
    """Write a safetensors file without its values; return where those begin."""
    entries, offset = {}, 0
    for name, (dtype, shape, size_bytes) in tensors.items():
        ends = [offset, offset + size_bytes]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": ends}
        offset += size_bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return 8 + len(text)


def recipe(folder: Path, kind: str, model: Path, shard_size: str = "5GB") -> Path:
    """Write a recipe: one that changes every tensor of a model, or a merge of three."""
    steps = {"scale": {"op": "scale", "target": "**", "by": 0.5},
             "ties": {"op": "ties", "models": ["b", "c"], "density": 0.3}}  # fmt: skip
    models = {"b": str(model), "c": str(model)} if kind == "ties" else {}
    path = folder / f"{kind}.json"
    text = {"surgeon": 1, "models": models, "steps": [steps[kind]],
            "output": {"shard_size": shard_size}}  # fmt: skip
    path.write_text(json.dumps(text))
    return path


# --- Plans, each in a process of its own ----------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """What a plan took, its tasks, and what sending one takes."""

    kind: str
    plan_seconds: float
    peak_bytes: int
    listing_seconds: float
    packing_seconds: float
    packed_bytes: float
    # (bytes read, bytes written) of each.
    tasks: list[tuple[int, int]]
    files: int


def planned(kind: str, path: Path, model: Path) -> Planned:
    """Plan a recipe in a new process, by the seconds of its processor."""
    code = "from benchmarks.scale import plan_here; import sys; plan_here(*sys.argv[1:])"
    command = [sys.executable, "-c", code, kind, str(path), str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Planned(**json.loads(done.stdout))


def plan_here(kind: str, path: str, model: str) -> None:
    """Plan, list the tasks, pack some of them; print all that as JSON."""
    import resource

    from surgeon import surgery
    from surgeon.library.running import Job
    from surgeon.output.cluster.pickling import packed
    from surgeon.output.cluster.tasks import tasks_of

    began = time.process_time()
    job = Job(path, model, (), {}, {}, None, None, allow_code=False, carry="small")
    with job.opened() as opened:
        files = surgery.output_plan(opened, Path(model).with_name("out")).tensor_files
        plan_seconds = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        began = time.process_time()
        tasks = list(tasks_of(files, "crc32"))
        listing = time.process_time() - began
        sample = tasks[:: max(1, len(tasks) // _SAMPLED_TASKS)]
        began = time.process_time()
        sent = [len(packed([part.units for part in task.parts], task.name)) for task in sample]
        packing = (time.process_time() - began) / len(sample)
        sizes = [(task.read_bytes, task.size_bytes) for task in tasks]
    found = Planned(kind, plan_seconds, peak, listing, packing, mean(sent), sizes, len(files))
    print(json.dumps(vars(found)))


# --- Real runs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Real:
    """A real run over processes of this machine."""

    processes: int
    seconds: float
    worker_seconds: float
    tasks: list[tuple[int, int]]


def real_runs(folder: Path) -> list[Real]:
    """Run `ties` of three over processes of this machine, after one run that is not counted."""
    import numpy as np

    model = folder / "real"
    model.mkdir()
    random, weight_map = np.random.default_rng(0), {}
    for shard in range(_REAL_SHARDS):
        file, name = f"model-{shard + 1:05d}-of-{_REAL_SHARDS:05d}.safetensors", f"layer.{shard}.w"
        begin = header(model / file, {name: ("F32", (_REAL_ELEMENTS,), 4 * _REAL_ELEMENTS)})
        with (model / file).open("r+b") as opened:
            opened.seek(begin)
            opened.write(random.standard_normal(_REAL_ELEMENTS, np.float32).tobytes())
        weight_map[name] = file
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    path = recipe(folder, "ties", model, f"{4 * _REAL_ELEMENTS}B")
    code = "from benchmarks.scale import run_here; import sys; run_here(*sys.argv[1:])"
    found = []
    for processes in _REAL_PROCESSES:
        command = [sys.executable, "-c", code, str(path), str(model), str(processes)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(Real(**json.loads(done.stdout)))
    return found


def run_here(path: str, model: str, processes: str) -> None:
    """Write one output over some processes, twice; print what the second run took."""
    import logging
    import shutil

    from distributed import Client, LocalCluster

    from surgeon import surgery
    from surgeon.library.running import Job
    from surgeon.output.cluster import tasks
    from surgeon.output.cluster.crew import crew_of
    from surgeon.output.execute import Options
    from surgeon.output.write import write

    tasks.TASK_BYTES = 4 * _REAL_ELEMENTS
    output = Path(model).with_name("real-out")
    job = Job(path, model, (), {}, {}, None, None, allow_code=False, carry="small")
    with (
        LocalCluster(
            n_workers=int(processes), threads_per_worker=1, dashboard_address=None, memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        for _ in range(2):
            shutil.rmtree(output, ignore_errors=True)
            with job.opened() as opened:
                made = surgery.output_plan(opened, output)
                sizes = [
                    (t.read_bytes, t.size_bytes) for t in tasks.tasks_of(made.weights, "crc32")
                ]
                options = Options(checksums="crc32")
                with crew_of(client, made, options, resumes=False, worker_bytes=0) as crew:
                    began = time.perf_counter()
                    write(made, options, crew)
                    seconds = time.perf_counter() - began
                    worked = crew.statistics.worker_seconds
    print(json.dumps(vars(Real(int(processes), seconds, worked, sizes))))


# --- The simulation -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """What things take: seconds of one processor per byte written, of the coordinator per task."""

    second_per_byte: float
    task_seconds: float
    before_seconds: float = 0.0
    storage: float = STORAGE_BYTES_PER_SECOND
    link: float = LINK_BYTES_PER_SECOND


@dataclass(frozen=True)
class Simulated:
    """How long a run takes, and what of it would take that long by itself."""

    workers: int
    seconds: float
    bound: str
    efficiency: float


def simulated(tasks: Sequence[tuple[int, int]], workers: int, costs: Costs) -> Simulated:
    """Give tasks to workers in order, each when one is free and the coordinator has sent it.

    A task reads, at the speed of its link or of its share of the storage; computes; and writes at
    the same speed. Shares are those of all workers at once, which is a little slower than it is.
    """
    speed = min(costs.link, costs.storage / workers)
    free = [costs.before_seconds] * workers
    sent = costs.before_seconds
    for read, written in tasks:
        sent += costs.task_seconds
        begin = max(heapq.heappop(free), sent)
        heapq.heappush(free, begin + (read + written) / speed + written * costs.second_per_byte)
    seconds = max(free)
    moved, written = sum(map(sum, tasks)), sum(w for _, w in tasks)
    alone = {
        "the coordinator": costs.before_seconds + costs.task_seconds * len(tasks),
        "storage": moved / costs.storage,
        "workers' links": moved / costs.link / workers,
        "workers' processors": written * costs.second_per_byte / workers,
    }
    worked = seconds - costs.before_seconds
    even = (moved / speed + written * costs.second_per_byte) / workers
    bound = max(alone, key=lambda what: alone[what])
    if worked > 1.15 * even and alone["the coordinator"] < seconds / 2:
        bound = "stragglers"
    one = costs.before_seconds + sum(
        (r + w) / min(costs.link, costs.storage) + w * costs.second_per_byte for r, w in tasks
    )
    return Simulated(workers, seconds, bound, one / seconds / workers)


# --- Tables ---------------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _plan_row(title: str, found: Planned) -> list[object]:
    reads, writes = zip(*found.tasks, strict=True)
    return [
        title, TITLES[found.kind], f"{found.plan_seconds:.1f} s",
        f"{found.peak_bytes / 1e6:.0f} MB", len(found.tasks),
        f"{mean(reads) / 1e9:.2f} GB ({max(reads) / 1e9:.2f})",
        f"{mean(writes) / 1e9:.2f} GB ({max(writes) / 1e9:.2f})",
        f"{found.packing_seconds * 1e3:.0f} ms", f"{found.packed_bytes / 1e3:.0f} kB",
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.scale")
    parser.add_argument("--folder", type=Path, help="where the sparse checkpoints are kept")
    parser.add_argument("--only", choices=SIZES, help="plan this size alone")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        plans: dict[tuple[str, str], Planned] = {}
        for title, size in SIZES.items():
            if given.only in (None, title):
                model = sparse(folder / title.replace(" ", "-"), *size)
                for kind in TITLES:
                    plans[title, kind] = planned(kind, recipe(Path(made), kind, model), model)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; seconds of the processor\n")
        heads = ["checkpoint", "recipe", "plan", "peak", "tasks", "each reads (most)",
                 "each writes (most)", "packing one", "sent of it"]  # fmt: skip
        print(table(heads, (_plan_row(title, found) for (title, _), found in plans.items())))
        runs = real_runs(Path(made))
    _tell(runs, plans)
    return 0


def _tell(runs: Sequence[Real], plans: dict[tuple[str, str], Planned]) -> None:
    cores = os.cpu_count() or 1
    written = sum(w for _, w in runs[0].tasks)
    per_byte = min(run.worker_seconds for run in runs) / written
    # Files of the real runs are in memory: what they cost is in the seconds of the processor.
    near = Costs(per_byte, 0.005, storage=float("inf"), link=float("inf"))
    rows = []
    for run in runs:
        guess = simulated(run.tasks, min(run.processes, cores), near).seconds
        rows.append([
            run.processes, f"{run.seconds:.2f} s", f"{guess:.2f} s", f"{run.worker_seconds:.2f} s",
            f"{runs[0].seconds / run.seconds / run.processes:.0%}",
            f"{runs[0].worker_seconds / run.worker_seconds:.0%}",
        ])  # fmt: skip
    print(f"\nties of 3, {written / 1e6:.0f} MB written, over processes here ({cores} cores)\n")
    heads = ["processes", "took", "simulated", "workers' processors", "efficiency",
             "of the processor"]  # fmt: skip
    print(table(heads, rows))
    print(
        f"\nSimulated: {per_byte * 1e9:.2f} s of a processor per GB of `ties` (a quarter for "
        f"`scale`), storage of {STORAGE_BYTES_PER_SECOND / 1e9:.0f} GB/s, links of "
        f"{LINK_BYTES_PER_SECOND / 1e9:.0f} GB/s\n"
    )
    rows = []
    for (title, kind), found in plans.items():
        share = 1.0 if kind == "ties" else 0.25
        before = found.plan_seconds + found.listing_seconds
        costs = Costs(per_byte * share, found.packing_seconds + 0.005, before)
        for workers in WORKERS:
            done = simulated(found.tasks, workers, costs)
            rows.append([title, TITLES[kind], workers, f"{done.seconds:,.0f} s",
                         f"{done.efficiency:.0%}", done.bound])  # fmt: skip
    print(table(["checkpoint", "recipe", "workers", "time", "efficiency", "bound by"], rows))


if __name__ == "__main__":
    raise SystemExit(main())
