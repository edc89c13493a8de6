"""Adapters that PEFT did not name: kohya's scripts, LyCORIS, diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from surgeon.base import patterns
from surgeon.base.errors import PlanError, did_you_mean
from surgeon.draft import Tensors
from surgeon.lazy import LazyTensor, Scratch, upcast_blocks

_ROLES = {
    "lora_down.weight": "A", "lora_up.weight": "B", "lora_A.weight": "A", "lora_B.weight": "B",
    "lora.down.weight": "A", "lora.up.weight": "B", "lora_linear_layer.down.weight": "A",
    "lora_linear_layer.up.weight": "B", "alpha": "alpha",
}  # fmt: skip
_LYCORIS = re.compile(r"(.+)\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)")
_KOHYA = re.compile(r"(lora_unet|lora_te\d?|lora_transformer|lycoris)_")
# What diffusers puts before the names of the parts of a pipeline.
_PIPELINE = ("unet.", "transformer.", "text_encoder.", "text_encoder_2.", "diffusion_model.")


@dataclass(frozen=True)
class Named:
    """The parts of an adapter by modules of the state, and what their names say of scalings."""

    kind: str
    parts: dict[str, dict[str, LazyTensor]]
    factors: dict[str, float]
    notes: list[str]


def named_otherwise(tensors: Tensors, state: Tensors, location: str) -> Named:
    """Find the state's modules behind other tools' names.

    A change is multiplied with alpha / rank where there is an alpha, which is read here, else with
    1. What is for another model than the state, such as a text encoder, is left out with a note.
    Raises PlanError for names of no known habit, and for modules that the state lacks.
    """
    found: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in tensors.items():
        module, role = _split(name)
        if not role:
            raise PlanError(
                f"{location}: '{name}' is named neither as PEFT names tensors, "
                "'base_model.model....', nor as kohya's scripts or diffusers do"
            )
        found.setdefault(module, {})[role] = tensor
    modules = {module for module in patterns.modules(state) if module}
    flat = {module.replace(".", "_"): module for module in modules}
    placed: dict[str, dict[str, str]] = {}
    for module in found:
        prefix, rest = _prefix(module)
        target = flat.get(rest) if prefix.endswith("_") else (rest if rest in modules else None)
        if not prefix.endswith("_") and module in modules:
            target = module
        placed.setdefault(prefix, {})[module] = target or ""
    problems, notes = [], []
    for prefix, targets in placed.items():
        missing = [module for module, target in targets.items() if not target]
        if len(missing) == len(targets) and len(placed) > 1:
            notes.append(f"{location}: '{prefix}...' ({len(targets)} modules) is for another "
                         "model; left out")  # fmt: skip
        else:
            problems += [f"{location}: changes '{module}', which the state does not have"
                         f"{did_you_mean(module, modules)}" for module in missing]  # fmt: skip
    if problems:
        raise PlanError(*problems[:10])
    kept = {target: found[module] for targets in placed.values()
            for module, target in targets.items() if target}  # fmt: skip
    if not kept:
        raise PlanError(f"{location}: changes no module of the state")
    kinds = {_kind(parts) for parts in kept.values()}
    if len(kinds) > 1:
        raise PlanError(f"{location}: holds {' and '.join(sorted(kinds))} at once; split it")
    factors = {module: _factor(parts, module, location) for module, parts in kept.items()}
    parts = {module: {role: tensor for role, tensor in own.items() if role != "alpha"}
             for module, own in kept.items()}  # fmt: skip
    return Named(kinds.pop(), parts, factors, notes)


def _split(name: str) -> tuple[str, str]:
    if part := _LYCORIS.fullmatch(name):
        return part[1], part[2]
    for ending, role in _ROLES.items():
        if name.endswith(f".{ending}"):
            return name[: -len(ending) - 1], role
    return name, ""


def _prefix(module: str) -> tuple[str, str]:
    if part := _KOHYA.match(module):
        return part[0], module[part.end() :]
    for word in _PIPELINE:
        if module.startswith(word):
            return word, module.removeprefix(word)
    return "", module


def _kind(parts: Mapping[str, LazyTensor]) -> str:
    if any(role.startswith("hada_") for role in parts):
        return "LOHA"
    return "LOKR" if any(role.startswith("lokr_") for role in parts) else "LORA"


def _factor(parts: Mapping[str, LazyTensor], module: str, location: str) -> float:
    """Return alpha / rank; 1 where there is no alpha, or a whole matrix and so no rank."""
    down = next((parts[role] for role in ("A", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
                 if role in parts), None)  # fmt: skip
    alpha = parts.get("alpha")
    if alpha is None or down is None:
        return 1.0
    if alpha.spec.count != 1:
        raise PlanError(f"{location}: alpha of '{module}' is {alpha.spec}, expected one number")
    # One number, which the arithmetic is planned with; it stands in a header elsewhere.
    (value,) = upcast_blocks([alpha], 0, 1, Scratch())
    return float(value[0]) / down.spec.shape[0]
