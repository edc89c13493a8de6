"""Where the models of a configuration are, and what their layers are called."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surgeon.base.depth import all_positions, is_before_layers, layer_of
from surgeon.base.errors import UsageError
from surgeon.formats import open_checkpoint
from surgeon.mergekit.values import Names

# What older models hold though it follows from the config; mergekit leaves it out.
BUFFERS = ".rotary_emb.inv_freq"


def path_of(reference: Any) -> str:
    """Return where a model is, and its adapter after a `+`; raises UsageError for a revision."""
    if isinstance(reference, dict):
        if "model" not in reference:
            raise UsageError(f"model {reference!r} is not imported: give its path")
        parts = [reference["model"], reference.get("lora")]
        return "+".join(path_of(_revised(part)) for part in parts if part is not None)
    text = str(reference)
    model, at, revision = text.partition("@")
    if not at or "@" not in Path(text).name:
        return text
    if model.count("/") != 1 or Path(model).exists() or "+" in text:
        raise UsageError(f"model '{text}': download the revision, and give its path")
    return f"hf://{model}@{revision}"


def _revised(part: Any) -> str:
    """Return a path as one text, which mergekit's own files write as {path, revision}."""
    if not isinstance(part, dict):
        return str(part)
    return "@".join(str(part[word]) for word in ("path", "revision") if part.get(word))


def overrides_of(config: Any) -> list[str]:
    """Return which architectures a configuration states for its models."""
    if isinstance(config, dict):
        own = config.get("override_architecture")
        found = [str(own)] if own else []
        return [*found, *(name for value in config.values() for name in overrides_of(value))]
    return [n for item in config for n in overrides_of(item)] if isinstance(config, list) else []


def parts_of(path: str) -> tuple[str, str]:
    """Return a model's path and its adapter's, which mergekit writes as `model+adapter`."""
    model, _, adapter = path.partition("+")
    return (path, "") if Path(path).exists() or not model else (model, adapter)


def have_buffers(paths: Iterable[str]) -> bool:
    """Return whether a model that is here holds rotary frequencies, as older files do."""
    for path in paths:
        place = parts_of(path)[0]
        if Path(place).exists():
            checkpoint = open_checkpoint(place)
            try:
                if any(name.endswith(BUFFERS) for name in checkpoint.tensors):
                    return True
            finally:
                checkpoint.close()
    return False


def names_of(path: str, notes: list[str]) -> Names:
    """Return the names of a model's layers, from its headers where it lies here."""
    path = parts_of(path)[0]
    if not Path(path).exists():
        note = (
            f"{path} is not here: its layers are taken to be 'model.layers', with 'model.norm' "
            "and 'lm_head' behind them"
        )
        notes += [note] if note not in notes else []
        return Names("model.layers", ("model.norm", "lm_head"))
    checkpoint = open_checkpoint(path)
    try:
        found = all_positions(checkpoint.tensors)
        if not found:
            return Names("model.layers", ())
        container = max(found, key=lambda name: len(found[name]))
        modules = [name.rpartition(".")[0] for name in checkpoint.tensors
                   if layer_of(name) is None and not is_before_layers(name)]  # fmt: skip
        return Names(container, tuple(dict.fromkeys(modules)), len(found[container]))
    finally:
        checkpoint.close()
