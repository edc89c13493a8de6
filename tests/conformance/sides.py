"""The same configurations by surgeon and by mergekit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file

from surgeon import recipe, surgery
from surgeon.mergekit import imported
from surgeon.output.execute import Options
from surgeon.recipe.locations import bind_models
from tests.conformance import models
from tests.conformance.environment import environment

Json = dict[str, Any]
Tensors = dict[str, torch.Tensor]
Key = TypeVar("Key")

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    # The tensors are tiny.
    "OMP_NUM_THREADS": "1",
}
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """A configuration with models' names for paths, and the folder of models it is about."""

    config: Mapping[str, Any]
    family: str = "ordinary"
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """What both made of one configuration; `operands` are the state and the models merged into it.

    Of what mergekit refused there are no tensors, but a reason.
    """

    ours: Tensors
    theirs: Tensors
    refused: str | None
    recipe: Json
    operands: list[Tensors]


def write_models(folder: Path) -> None:
    """Write the families of models that jobs are about."""
    models.write(folder / "ordinary", models.ordinary())
    models.write(folder / "degenerate", models.degenerate())
    models.write(folder / "near", models.ordinary(1, 0.05))
    models.write(folder / "tiny", models.ordinary(1, 1e-6))
    models.write(folder / "bfloat16", models.ordinary(1), torch.bfloat16)


def both(jobs: Mapping[Key, Job]) -> dict[Key, Made]:
    """Run jobs on fresh models; raises NotInstalledError where mergekit cannot be had."""
    place = environment()
    with TemporaryDirectory() as folder:
        write_models(Path(folder))
        return run(Path(folder), place, jobs)


def run(folder: Path, environment: Path, jobs: Mapping[Key, Job]) -> dict[Key, Made]:
    """Run jobs."""
    written = {name: _write(folder, number, job) for number, (name, job) in enumerate(jobs.items())}
    orders = [
        {"config": str(path), "output": str(path.with_suffix(".theirs")), "seed": jobs[name].seed}
        for name, path in written.items()
    ]
    refused = merged(environment, orders)
    return {name: _made(path, refused) for name, path in written.items()}


def merged(environment: Path, orders: Sequence[Json]) -> dict[str, str | None]:
    """Have mergekit merge; return what it refused of each order, by its output.

    All in one process, since to import it takes longer than all merges.
    """
    said = run_python(environment, _HERE / "run_mergekit.py", told=json.dumps(orders))
    refused: dict[str, str | None] = json.loads(said.splitlines()[-1])
    return refused


def merged_whole(environment: Path, folder: Path, count: int) -> dict[str, str | None]:
    """Have mergekit make `N.theirs` of each `N.yml` of a folder, tokenizer and all."""
    orders = [{"config": str(folder / f"{number}.yml"), "output": str(folder / f"{number}.theirs"),
               "seed": 0, "whole": True} for number in range(count)]  # fmt: skip
    return merged(environment, orders)


def run_python(environment: Path, *arguments: str | Path, told: str = "") -> str:
    """Run the Python of mergekit's environment; returns what it prints."""
    done = subprocess.run(
        [environment / "bin/python", *arguments], input=told, capture_output=True, text=True,
        check=False, env={**os.environ, **_SETTINGS},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"mergekit cannot be run:\n{done.stderr}")
    return done.stdout


def _write(folder: Path, number: int, job: Job) -> Path:
    # JSON is YAML, too.
    path = folder / f"{number}.yml"
    path.write_text(json.dumps(_placed(job.config, folder / job.family)))
    return path


def _placed(config: Any, folder: Path) -> Any:
    """Return a configuration with paths for models' names."""
    match config:
        case dict():
            return {
                key: str(folder / value)
                if key in ("model", "base_model")
                else _placed(value, folder)
                for key, value in config.items()
            }
        case list():
            return [_placed(item, folder) for item in config]
    return config


def _made(path: Path, refused: Mapping[str, str | None]) -> Made:
    theirs = path.with_suffix(".theirs")
    why = refused[str(theirs)]
    found = imported(path)
    ours = apply_recipe(found.recipe, found.input, path.with_suffix(".ours"))
    places = found.recipe.get("models", {})
    merged = [model for step in found.recipe["steps"][-1:] for model in step.get("models", [])]
    operands = [found.input, *(places[name] for name in merged)]
    return Made(
        ours,
        {} if why else read(theirs),
        why,
        found.recipe,
        [read(Path(operand)) for operand in operands],
    )


def apply_recipe(wanted: Json, source: str, output: Path) -> Tensors:
    """Apply a recipe as the command does; returns what it wrote."""
    path = output.with_suffix(".json")
    path.write_text(json.dumps(wanted))
    loaded = recipe.load(str(path), {})
    bound = bind_models(loaded, [], {})
    with surgery.opened(loaded, source, bound) as opened:
        surgery.write(opened, output, Options(), force=True)
    return read(output)


def read(folder: Path) -> Tensors:
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, as a fraction of the largest magnitude of both."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    largest = max(float(tensor.double().abs().max()) for tensor in (found, expected)) or 1.0
    apart = float((found.double() - expected.double()).abs().max()) / largest
    return apart if apart == apart else float("inf")
