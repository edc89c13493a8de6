"""What goes from a folder that an output replaces, and what stays there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from surgeon.base.errors import UsageError, listed
from surgeon.base.files import names_in
from surgeon.manifest.names import FOLDER_MANIFEST, FOLDER_OPTIMIZER
from surgeon.output.free import is_input, is_weights, manifest_at, real_path
from surgeon.output.keeping import foreign
from surgeon.output.plan import OutputPlan

# What a model folder of ours may hold besides what its manifest lists: what was carried into it.
_SIDECARS = (
    "config.json", "adapter_config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
# Beside other weights, either would be taken for the model.
_MODELS = ("model.safetensors", "model.safetensors.index.json")


def with_replaced(plan: OutputPlan, *, force_any: bool) -> OutputPlan:
    """Return a folder's plan with what it replaces; raises UsageError where names collide."""
    root = real_path(plan.path)
    if not plan.is_folder or not root.is_dir():
        return plan
    ours = _ours(plan, root, force_any=force_any)
    others = foreign(root, ours)
    written = {file.name for file in plan.tensor_files}
    written |= {FOLDER_MANIFEST, *(plan.texts or ()), *(plan.carried or ())}
    taken = [name for name in others if name in _MODELS or _collides(name, written)]
    if taken:
        raise UsageError(
            f"{plan.path}: {listed(taken)}: surgeon did not write them, and the output could not "
            "be told from them; move them away, or --force-any replaces weights"
        )
    if not others:
        return replace(plan, replaced=ours)
    note = f"stays in {plan.path}, since surgeon did not write it: {listed(others)}"
    return replace(plan, replaced=ours, notes=(*plan.notes, note))


def _ours(plan: OutputPlan, root: Path, *, force_any: bool) -> frozenset[str]:
    """Return the names in a folder that may go, or are written anew."""
    weights = {file.name for file in plan.weights}
    ours = {*_SIDECARS, *(plan.carried or ()), *(plan.texts or ())} - weights
    if len(plan.weights) > 1:
        ours.discard(plan.checkpoint)  # the index, which is the weights' too
    if manifest := manifest_at(plan.path):
        ours |= {FOLDER_MANIFEST, FOLDER_OPTIMIZER, manifest.checkpoint.file}
        ours |= {part.file for part in manifest.checkpoint.parts} | {*manifest.carried}
        if manifest.optimizer_state:
            ours.add(manifest.optimizer_state.file)
    if is_input(plan.path, plan.opened):
        files = (file.absolute() for file in plan.opened.input.weight_files)
        ours |= {file.name for file in files if real_path(file.parent) == root}
    if force_any:
        ours |= {FOLDER_MANIFEST, FOLDER_OPTIMIZER}
        ours |= {name for name in names_in(root) if is_weights(name)}
    return frozenset(ours)


def _collides(name: str, written: set[str]) -> bool:
    return any(
        one == name or one.startswith(f"{name}/") or name.startswith(f"{one}/") for one in written
    )
