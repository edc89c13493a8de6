"""Four jobs on a model folder, and what must come of each by transformers' own means."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import nn

from surgeon.cli.commands import commands
from surgeon.model_folder.architectures import Architecture, architecture_of
from surgeon.model_folder.case import containers
from surgeon.model_folder.said import count_of
from tests.folders.models import LAYERS, VOCABULARY, loaded, logits, saved, tiny

JOBS = ("drop", "grow", "average", "cast")
DONE, REFUSED, WRONG, SKIPPED = "done", "refused", "WRONG", "-"
_DROPPED = 1


def outcomes(
    model_type: str,
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    dropped: int = _DROPPED,
    jobs: Sequence[str] = JOBS,
) -> Iterator[tuple[str, str, str]]:
    """Yield (job, what came of it, why) for jobs on one type.

    `settings` are those of its config that are not the usual ones; config.json is written without
    the keys `without`, which the class has a default for. `dropped` is the layer that goes.
    """
    try:
        model = tiny(model_type, 0, settings)
        source = saved(model, folder / "in", without)
        loaded(source, model)
        before = logits(loaded(source, model))
    except Exception as error:  # no model of this type to try: nothing of ours
        yield "model", SKIPPED, f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        return
    for job in jobs:
        try:
            yield job, *_outcome(job, model, source, folder, before, dropped)
        except Exception as error:
            yield job, WRONG, f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"


def _outcome(
    job: str, model: Any, source: Path, folder: Path, before: torch.Tensor, dropped: int
) -> tuple[str, str]:
    out = folder / job
    names = shapes(source)
    config = json.loads((source / "config.json").read_text())
    known = architecture_of(config, names)
    if known is None:
        return REFUSED, "not in the data"
    steps = _steps(job, known, names, model, dropped)
    if not steps:
        return SKIPPED, f"nothing to {job}"
    recipe: dict[str, Any] = {"surgeon": 1, "steps": steps}
    if job == "average":
        other = saved(tiny(model.config.model_type, 1), folder / "other")
        recipe["models"] = {"b": str(other)}
    path = folder / f"{job}.json"
    path.write_text(json.dumps(recipe))
    result = CliRunner().invoke(commands, ["apply", str(path), str(source), str(out), "--quiet"])
    if result.exit_code == 4:
        return REFUSED, result.output.strip().splitlines()[0].partition("config.json: ")[2][:160]
    if result.exit_code:
        return WRONG, f"exit {result.exit_code}: {result.output.strip()[:160]}"
    dtype = torch.bfloat16 if job == "cast" else torch.float32
    try:
        expected = _expected(job, model, source, folder, before, dropped)
    except Exception as error:  # not even transformers runs it
        return SKIPPED, f"transformers: {type(error).__name__}: {str(error)[:80]}"
    found = logits(loaded(out, model, dtype))
    if job == "grow":
        if found.shape[-1] != VOCABULARY + 4:
            return WRONG, f"{found.shape[-1]} logits"
        found = found[..., :VOCABULARY]
    if torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
        return DONE, ""
    return WRONG, f"logits differ by {float((found - expected).abs().max()):.2g}"


def _expected(
    job: str, model: Any, source: Path, folder: Path, before: torch.Tensor, dropped: int
) -> torch.Tensor:
    if job == "grow":
        return before
    if job == "cast":
        return logits(loaded(source, model, torch.bfloat16))
    if job == "average":
        return logits(_averaged(loaded(source, model), loaded(folder / "other", model)))
    return logits(_without_a_layer(loaded(source, model), dropped))


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a folder's tensors."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _steps(
    job: str, known: Architecture, names: dict[str, tuple[int, ...]], model: Any, dropped: int
) -> list[Any]:
    match job:
        case "average":
            return [{"op": "average", "models": ["b"], "weights": [0.5, 0.5]}]
        case "cast":
            # Those that transformers keeps in float32 are left as they are, as surgeon's note says.
            kept = [f"!re:.*{part}.*" for part in sorted(model._keep_in_fp32_modules_strict or ())]
            return [{"op": "cast", "target": ["**", *kept], "dtype": "BF16", "optional": True}]
        case "drop":
            take = [str(n) for n in range(LAYERS) if n != dropped]
            stacks = [c for c, numbers in containers(names).items()
                      if len(numbers) == LAYERS and count_of(known, c)]  # fmt: skip
            outer = [c for c in stacks if not any(c.startswith(f"{o}.") for o in stacks)]
            return [{"op": "layers", "container": c, "take": take} for c in outer]
    return [
        {"op": "widen", "target": name, ("columns" if dim else "rows"): 4, "init": "zeros"}
        for name, shape in names.items()
        for dim, size in enumerate(shape)
        if size == VOCABULARY and any(
            dim < len(kind) and "vocab_size" in kind[dim]
            for row in known.rows_of(name) for kind in row.kinds
        )
    ]  # fmt: skip


def _averaged(one: Any, other: Any) -> Any:
    with torch.no_grad():
        theirs = dict(other.named_parameters())
        for name, parameter in one.named_parameters():
            parameter.copy_(((parameter.double() + theirs[name].double()) / 2).to(parameter.dtype))
    return one


def _without_a_layer(model: Any, dropped: int) -> Any:
    """Take a layer out of a model that is loaded: nothing is built by its number again."""
    for module in list(model.modules()):
        for name, stack in list(module.named_children()):
            if isinstance(stack, nn.ModuleList) and len(stack) == LAYERS:
                kept = [layer for n, layer in enumerate(stack) if n != dropped]
                setattr(module, name, nn.ModuleList(kept))
    config = model.config
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == LAYERS and "layer" in key:
            setattr(config, key, [one for n, one in enumerate(value) if n != dropped])
    for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers",
                "decoder_layers", "num_decoder_layers"):  # fmt: skip
        if vars(config).get(key) == LAYERS:
            setattr(config, key, LAYERS - 1)
    return model
