"""Apply the golden recipes, and describe and compare what they wrote; without surgeon's code."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.golden import inputs
from tests.golden.cases import Case, Json

DRIVER = Path(__file__).with_name("driver.py")
# The integers that order the floating-point numbers of each dtype, next ones next to each other.
BITS = {"F64": np.int64, "F32": np.int32, "F16": np.int16, "BF16": np.int16}


def apply(folder: Path, cases: Mapping[str, Case]) -> dict[str, Path | str]:
    """Write inputs into an empty folder and outputs beside them: of each case the output.

    Of one that failed, instead, what surgeon said.
    """
    inputs.write(folder)
    outputs = {n: folder / "out" / (n + "." * (not c.folder) + "safetensors" * (not c.folder))
               for n, c in cases.items()}  # fmt: skip
    (folder / "out").mkdir()
    jobs = []
    for name, case in cases.items():
        models = {model: f"{model}.safetensors" for model in case.models}
        recipe = {"surgeon": 1, "models": models, "steps": list(case.steps), **case.rest}
        (folder / f"{name}.json").write_text(json.dumps(recipe))
        jobs.append(["apply", f"{name}.json", case.given, str(outputs[name]), "--workers", "1",
                     "--quiet", *case.arguments])  # fmt: skip
    (folder / "jobs.json").write_text(json.dumps(jobs))
    ended = json.loads(_driven(folder))
    failed = {n: f"exit code {e['code']}: {e['said']}"
              for n, e in zip(cases, ended, strict=True) if e["code"]}  # fmt: skip
    return {**outputs, **failed}


def _driven(folder: Path) -> str:
    return _python(str(DRIVER), "jobs.json", folder=folder)


def ops() -> list[str]:
    """List the ops that there are."""
    listed = json.loads(_python("-m", "surgeon", "ops", "--json", folder=Path.cwd()))
    return sorted(op["name"] for op in listed)


def _python(*arguments: str, folder: Path) -> str:
    """Run Python in a folder, from which it finds the surgeon that is found here."""
    found = importlib.util.find_spec("surgeon")
    assert found is not None
    assert found.origin is not None
    environment = os.environ | {"PYTHONPATH": str(Path(found.origin).parents[1])}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def described(output: Path | str, *, whole: bool) -> Json:
    """Say what an output is: hashes of its files; with `whole`, instead of data's, the data."""
    if isinstance(output, str):
        return {"failed": output}
    if output.is_dir():
        found = {path.name: path for path in sorted(output.glob("*"))}
    else:
        carried = output.with_suffix(".optimizer.safetensors")
        # Not by its own name, so that a case can have another one.
        found = {"model.safetensors": output} | ({"optimizer.safetensors": carried}
                                                 if carried.exists() else {})  # fmt: skip
    return {
        name: _tensors(path, whole=whole) if path.suffix == ".safetensors" else _text(path)
        for name, path in found.items()
        if name in ("config.json", "model.safetensors.index.json") or path.suffix == ".safetensors"
    }


def _text(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tensors(path: Path, *, whole: bool) -> Json:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header: Json = json.loads(raw[8:start])
    # What surgeon says of itself, such as its version, is no part of the result.
    header.get("__metadata__", {}).pop("surgeon", None)
    seen = {"header": hashlib.sha256(json.dumps(header).encode()).hexdigest()}
    data, values = hashlib.sha256(), {}
    for name, entry in sorted(header.items()):
        if name == "__metadata__":
            continue
        begin, end = (start + offset for offset in entry["data_offsets"])
        data.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode() + raw[begin:end])
        values[name] = packed(entry["dtype"], raw[begin:end])
    return {**seen, "values": values} if whole else {**seen, "data": data.hexdigest()}


def packed(dtype: str, raw: bytes) -> list[str]:
    """Put a tensor's data into text."""
    return [dtype, base64.b64encode(zlib.compress(raw, 9)).decode()]


def differences(found: Json, recorded: Json) -> list[str]:
    """List where an output is not what was recorded; floating-point data may differ by one ulp."""
    if "failed" in found:
        return [found["failed"]]
    lines = [f"{name} is in one only" for name in sorted(found.keys() ^ recorded.keys())]
    for name in sorted(found.keys() & recorded.keys()):
        here, there = found[name], recorded[name]
        if isinstance(here, str):
            lines += [f"{name} has another text"] * (here != there)
            continue
        lines += [f"{name}: another {key}" for key in ("header", "data")
                  if here.get(key) != there.get(key)]  # fmt: skip
        lines += [
            f"{name}: {tensor}: {furthest} ulp apart"
            for tensor in sorted(here.get("values", {}).keys() & there.get("values", {}).keys())
            if (furthest := _apart(here["values"][tensor], there["values"][tensor])) > 1
        ]
    return lines


def _apart(found: list[str], recorded: list[str]) -> float:
    """Say by how many units in the last place two arrays differ at most."""
    if found == recorded:
        return 0
    (dtype, a), (other, b) = found, recorded
    left, right = (zlib.decompress(base64.b64decode(text)) for text in (a, b))
    if dtype != other or len(left) != len(right) or dtype not in BITS:
        return 0 if (dtype, left) == (other, right) else float("inf")
    return max((abs(x - y) for x, y in zip(_ordered(left, dtype), _ordered(right, dtype),
                                           strict=True)), default=0)  # fmt: skip


def _ordered(raw: bytes, dtype: str) -> list[int]:
    """Number floating-point values in their order, both zeros being 0."""
    bits = np.frombuffer(raw, np.dtype(BITS[dtype]).newbyteorder("<"))
    lowest = -(1 << (8 * bits.itemsize - 1))
    return [bit if bit >= 0 else lowest - bit for bit in bits.tolist()]
