"""mergekit in an environment of its own, and what it needs beside the weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.jobs import PeerJob
from benchmarks.llama import Llama
from benchmarks.measure import OUTPUT, Command

VERSION = "0.1.5"
# It asks for nothing online: the models lie beside it.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def install(environment: Path) -> str:
    """Make the environment unless it is there; return why that is impossible, or nothing."""
    root = Path(__file__).parent.parent
    ready = environment / "ready"
    if ready.exists():
        return ""
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "-q"]
    pinned = [*pip, "-c", str(root / "constraints.txt")]
    # torch first: what comes along must not choose another build of it.
    for arguments in (
        [sys.executable, "-m", "venv", str(environment)],
        [*pinned, "torch"],
        [*pinned, f"mergekit=={VERSION}"],
        # Compiles it, reads it into the page cache, and shows that it starts.
        [str(environment / "bin/mergekit-yaml"), "--help"],
    ):
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["nothing said"]
            return f"mergekit {VERSION} cannot be installed: {lines[-1]}"
    ready.touch()
    return ""


def prepare(folder: Path, size: float, job: PeerJob) -> list[str]:
    """Make the model folders and the configuration that both sides read; return their names.

    The weights are hard links to the same files that surgeon's other jobs read.
    """
    names = []
    for model in job.inputs:
        name = f"mergekit-{Path(model).stem}"
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
        os.link(folder / model, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(Llama(size).config()))
        names.append(name)
    config: dict[str, object] = {
        "merge_method": job.method,
        "dtype": "bfloat16",
        "models": [{"model": f"./{name}"} for name in names],
        "parameters": dict(job.parameters),
    }
    if job.base:
        config["base_model"] = f"./{names[0]}"
    # JSON is YAML, too.
    (folder / "mergekit.yaml").write_text(json.dumps(config))
    return names


def recipe(program: str, folder: Path) -> str:
    """Have surgeon make a recipe of the configuration; return its name."""
    done = subprocess.run(
        [program, "import", "mergekit", "mergekit.yaml"],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    (folder / "mergekit.json").write_bytes(done.stdout)
    return "mergekit.json"


def command(environment: Path, inputs: Sequence[str]) -> Command:
    """Return the merge with everything left out that surgeon does not do either."""
    program = str(environment.resolve() / "bin/mergekit-yaml")
    options = ["--no-copy-tokenizer", "--no-write-model-card", "--lazy-unpickle", "--quiet"]
    return Command(
        [program, "mergekit.yaml", f"{OUTPUT}/merged", *options], inputs, environment=_OFFLINE
    )


def remove(folder: Path) -> None:
    """Delete what `prepare` made."""
    for path in folder.glob("mergekit*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
