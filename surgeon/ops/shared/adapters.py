"""PEFT's adapters: what their tensors' names and their configuration say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import sqrt
from pathlib import PurePath
from typing import Any

from surgeon.base.errors import PlanError, UsageError
from surgeon.draft import Draft, Outside
from surgeon.lazy import LazyTensor

CONFIG = "adapter_config.json"
# What PEFT puts before the names of the model that it wraps.
PREFIX = "base_model.model."

_USED = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
         "fan_in_fan_out"}  # fmt: skip
# They say how the adapter was trained, or what the names of its tensors say already.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_bias", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
_REASONS = {
    "alora_invocation_tokens": "it acts from some token on only, which no weight can",
    "layer_replication": "it repeats layers; do that to the state first and say null",
    "target_parameters": "its tensors do not say which parameters of a module they change",
    "trainable_token_indices": "it changes single rows of an embedding",
    "use_dora": "it rescales each row (DoRA), which is not implemented",
}
# These start from a base whose weights were changed too.
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PART = re.compile(
    r"(?P<module>.+)\.(lora_(?P<part>[AB])\.weight|lora_B\.bias|lora_embedding_(?P<embedding>[AB]))"
)


@dataclass(frozen=True)
class Factors:
    """The two small matrices that change one module's weight, and what changes its bias."""

    a: LazyTensor
    b: LazyTensor
    bias: LazyTensor | None
    is_embedding: bool


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors, sorted by what they do: low-rank changes, and whole replacements.

    `given` is what of the configuration the recipe says.
    """

    label: str
    config: Mapping[str, Any]
    given: Mapping[str, Any]
    factors: Mapping[str, Factors]
    replaced: Mapping[str, list[LazyTensor]]

    def rank(self, module: str) -> int:
        """Return the rank that the configuration gives a module."""
        rank: int = self._setting("r", "rank_pattern", module)
        return rank

    def scaling(self, module: str) -> float:
        """Return what a module's product is multiplied with."""
        rank, alpha = self.rank(module), self._setting("lora_alpha", "alpha_pattern", module)
        return float(alpha / (sqrt(rank) if self.config.get("use_rslora") else rank))

    def _setting(self, word: str, pattern_word: str, module: str) -> Any:
        patterns = self.config.get(pattern_word) or {}
        if not isinstance(patterns, dict):
            raise PlanError(f"{self.label}: {CONFIG}: {pattern_word} is not an object")
        for pattern, value in patterns.items():
            # As PEFT matches them: a regular expression for the end of the name.
            try:
                found = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise PlanError(f"{self.label}: {pattern_word}: '{pattern}': {error}") from None
            if found:
                return _positive(self.label, f"{pattern_word} '{pattern}'", value)
        return _positive(self.label, word, self.config.get(word))


def _positive(label: str, word: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise PlanError(f"{label}: {CONFIG}: {word} is {value!r}, expected a number above 0")
    return value


def read_adapter(draft: Draft, location: str, given: Mapping[str, Any]) -> Adapter:
    """Open an adapter: a folder, or a file with its configuration beside it.

    `given` says what the configuration lacks, or says wrongly. Raises PlanError, a line for each
    thing that cannot be understood.
    """
    tensors = draft.outside.open_model(location)
    config = {**_configuration(draft.outside, location, given), **given}
    problems = [f"{location}: {problem}" for problem in _misfits(config)]
    found = _Found()
    for name, tensor in tensors.items():
        if problem := found.take(name, tensor):
            problems.append(f"{location}: '{name}' {problem}")
    for module, parts in found.parts.items():
        problems += [
            f"{location}: '{module}' has no lora_{part}" for part in "AB" if part not in parts
        ]
    if problems:
        raise PlanError(*problems)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGED_BASES):
        draft.notes.append(
            f"{location}: was started with '{start}', which changes the base's weights; the state "
            "must be that changed base"
        )
    factors = {
        module: Factors(parts["A"], parts["B"], parts.get("bias"), module in found.embeddings)
        for module, parts in found.parts.items()
    }
    return Adapter(location, config, given, factors, found.replaced)


def _configuration(outside: Outside, location: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what adapter_config.json says, in the folder or beside the file."""
    for folder in (PurePath(location), PurePath(location).parent):
        try:
            found = outside.read_json(str(folder / CONFIG))
        except UsageError as error:
            if not any("cannot be read" in problem for problem in error.problems):
                raise
            continue
        if not isinstance(found, dict):
            raise PlanError(f"{folder / CONFIG}: not an object")
        return found
    if "r" not in given or "lora_alpha" not in given:
        raise PlanError(
            f'{location}: has no {CONFIG}; say {{"adapter": "{location}", '
            '"config": {"r": ..., "lora_alpha": ...}}'
        )
    return {"peft_type": "LORA"}


def _misfits(config: Mapping[str, Any]) -> Iterable[str]:
    """Say which settings change the arithmetic in a way that is not known here."""
    if (kind := config.get("peft_type")) != "LORA":
        yield f"is a {kind} adapter; only LORA can be folded into weights"
        return
    for word, value in config.items():
        if value in (None, False, {}, []) or word in _USED | _WITHOUT_EFFECT:
            continue
        why = _REASONS.get(word, "what it does is not known; say null if it does not matter")
        yield f"{CONFIG}: {word}: {why}"


@dataclass(frozen=True)
class _Found:
    """An adapter's tensors: the parts of each module's change, and what replaces others."""

    parts: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    replaced: dict[str, list[LazyTensor]] = field(default_factory=dict)

    def take(self, full_name: str, tensor: LazyTensor) -> str | None:
        """Put a tensor where it belongs, or say what is wrong with its name."""
        name = full_name.removeprefix(PREFIX)
        if name == full_name:
            return f"is not named as PEFT names tensors, '{PREFIX}...'"
        if part := _PART.fullmatch(name):
            which = part["embedding"] or part["part"] or "bias"
            self.parts.setdefault(part["module"], {})[which] = tensor
            if part["embedding"]:
                self.embeddings.add(part["module"])
        elif "lora_" in name:
            return "is a part of an adapter that is not known"
        elif ".original_module." not in name:  # what PEFT keeps to go back to
            plain = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
            self.replaced.setdefault(plain, []).append(tensor)
        return None
