"""Adapters: what their tensors' names and their configuration say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from surgeon.base import bounded
from surgeon.base.errors import CheckpointError, MissingError, PlanError, UsageError, listed
from surgeon.draft import Draft, Outside, Tensors
from surgeon.draft.adapters import CONFIG, PREFIX, scaling, setting
from surgeon.lazy import LazyTensor
from surgeon.ops.shared.adapter_names import Named, named_otherwise
from surgeon.remote.paths import path_of

KINDS = ("LORA", "LOHA", "LOKR", "IA3", "TRAINABLE_TOKENS")

_USED = {
    "peft_type", "r", "lora_alpha", "alpha", "use_rslora", "rank_pattern", "alpha_pattern",
    "fan_in_fan_out", "use_dora", "target_parameters", "trainable_token_indices", "token_indices",
    "feedforward_modules", "init_lora_weights",
}  # fmt: skip
# They say how the adapter was trained, or what the names of its tensors say already.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "decompose_both",
    "decompose_factor", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode",
    "init_ia3_weights", "init_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "module_dropout", "modules_to_save", "peft_version", "qalora_group_size", "rank_dropout",
    "rank_dropout_scale", "revision", "runtime_config", "target_modules", "task_type",
    "use_effective_conv2d",
}  # fmt: skip
_REASONS = {
    "alora_invocation_tokens": "it acts from some token on only, which no weight can",
    "layer_replication": "it repeats layers; do that to the state first and say null",
}
# These start from a base whose weights were changed too.
_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PART = re.compile(
    r"(?P<module>.+?)\.(lora_(?P<part>[AB])\.weight|(?P<bias>lora_B\.bias)"
    r"|lora_embedding_(?P<embedding>[AB])|(?P<magnitude>lora_magnitude_vector)(\.weight)?"
    r"|(?P<other>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](_[ab])?|lokr_t2|ia3_l)"
    r"|(token_adapter\.)?(?P<tokens>trainable_tokens_delta))"
)
_OF_PARTS = ("lora_", "hada_", "lokr_", "ia3_", "trainable_tokens")


@dataclass(frozen=True)
class Adapter:
    """An adapter's tensors, sorted by what they do.

    `parts` are the tensors that change a module, by their roles: A, B, bias, magnitude, tokens, or
    as PEFT calls them (hada_w1_a, lokr_w1, ia3_l). `replaced` are whole tensors; those of them in
    `bases` are what an adapter's change comes on top of. `given` is what of the configuration the
    recipe says; `factors` is a scaling per module that the names give instead of a configuration.
    """

    label: str
    kind: str
    config: Mapping[str, Any]
    given: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, LazyTensor]]
    embeddings: frozenset[str]
    replaced: Mapping[str, list[LazyTensor]]
    bases: frozenset[str] = frozenset()
    factors: Mapping[str, float] = field(default_factory=dict)

    def rank(self, module: str) -> int:
        """Return the rank that the configuration gives a module."""
        value = self._setting("r", "rank_pattern", module)
        if type(value) is not int or value <= 0:
            raise PlanError(f"{self.label}: {CONFIG}: r is {value!r}, expected a number above 0")
        return value

    def scaling(self, module: str) -> float:
        """Return what a module's change is multiplied with."""
        if module in self.factors:
            return self.factors[module]
        rank = self.rank(module)
        word = "lora_alpha" if self.kind == "LORA" else "alpha"
        alpha = self._setting(word, "alpha_pattern", module)
        is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not is_number or not isfinite(alpha):
            raise PlanError(f"{self.label}: {CONFIG}: {word} is {alpha!r}, expected a number")
        return scaling(rank, alpha, self.config)

    def _setting(self, word: str, pattern_word: str, module: str) -> Any:
        try:
            return setting(self.config, word, pattern_word, module)
        except ValueError as error:
            place = "" if str(error).startswith(f"{pattern_word}: ") else f"{CONFIG}: "
            raise PlanError(f"{self.label}: {place}{error}") from None


def matches(label: str, word: str, pattern: str, module: str) -> bool:
    """Say whether a pattern means a module, as PEFT matches: an expression for the name's end."""
    try:
        return bounded.fullmatch(rf"(.*\.)?({pattern})", module)
    except ValueError as error:
        raise PlanError(f"{label}: {word}: '{pattern}': {error}") from None


def read_adapter(draft: Draft, location: str, given: Mapping[str, Any]) -> Adapter:
    """Open an adapter: a folder, or a file with its configuration beside it.

    `given` says what the configuration lacks, or says wrongly. Raises PlanError, a line for each
    thing that cannot be understood.
    """
    return adapter_of(draft, draft.outside.open_model(location), location, given)


def adapter_of(
    draft: Draft,
    tensors: Tensors,
    location: str,
    given: Mapping[str, Any],
    configuration: Mapping[str, Any] | None = None,
) -> Adapter:
    """Return what the tensors of an adapter are, by their names and its configuration.

    That is read where the adapter lies, unless it is given.
    """
    if empty := [name for name, tensor in tensors.items() if tensor.spec.shape == (0,)]:
        raise PlanError(
            f"{location}: {listed(empty)}: placeholders of shape (0,), "
            "which DeepSpeed's ZeRO-3 leaves where nothing gathered the parameters; save with "
            "stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32.py"
        )
    if not any(name.startswith(PREFIX) for name in tensors):
        return _adapter_of_others(draft, tensors, location, given)
    if configuration is None:
        configuration = _configuration(draft.outside, location, given)
    config = {**configuration, **given}
    problems = [f"{location}: {problem}" for problem in _misfits(config)]
    found = _Found()
    for name, tensor in tensors.items():
        if problem := found.take(name, tensor):
            problems.append(f"{location}: '{name}' {problem}")
    if config.get("peft_type") == "LORA":
        for module, parts in found.parts.items():
            lacking = [part for part in "AB" if part not in parts and "tokens" not in parts]
            problems += [f"{location}: '{module}' has no lora_{part}" for part in lacking]
            if bool(config.get("use_dora")) is not ("magnitude" in parts) and "A" in parts:
                problems.append(
                    f"{location}: use_dora is {bool(config.get('use_dora'))}, but '{module}' has "
                    f"{'a' if 'magnitude' in parts else 'no'} magnitude vector"
                )
    if problems:
        raise PlanError(*problems)
    return Adapter(
        location, str(config["peft_type"]), config, given, found.parts,
        frozenset(found.embeddings), found.replaced,
        frozenset(found.bases),
    )  # fmt: skip


def _adapter_of_others(
    draft: Draft, tensors: Tensors, location: str, given: Mapping[str, Any]
) -> Adapter:
    """Return an adapter that kohya's scripts or diffusers named; it needs no configuration."""
    found: Named = named_otherwise(tensors, draft.tensors, location)
    draft.notes += found.notes
    config = {"peft_type": found.kind, **given}
    return Adapter(
        location, found.kind, config, given, found.parts, frozenset(), {}, factors=found.factors
    )


def _configuration(outside: Outside, location: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what adapter_config.json says, in the folder or beside the file."""
    for folder in (path_of(location), path_of(location).parent):
        try:
            found = outside.read_json(str(folder / CONFIG))
        except MissingError:
            continue
        except UsageError as error:
            raise CheckpointError(*error.problems) from None
        if not isinstance(found, dict):
            raise CheckpointError(f"{folder / CONFIG}: not an object")
        return found
    if "r" not in given or "lora_alpha" not in given:
        raise PlanError(
            f'{location}: has no {CONFIG}; say {{"adapter": "{location}", '
            '"config": {"r": ..., "lora_alpha": ...}}'
        )
    return {"peft_type": "LORA"}


def _misfits(config: Mapping[str, Any]) -> Iterable[str]:
    """Say which settings change the arithmetic in a way that is not known here."""
    if (kind := config.get("peft_type")) not in KINDS:
        yield f"is a {kind} adapter; only {', '.join(KINDS)} can be folded into weights"
        return
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGED_BASES):
        yield (
            f"was started with '{start}', which changes the base's weights: it goes on top of the "
            'residual base that its training saved; where the state is that, say "config": '
            '{"init_lora_weights": true}, else convert it with PEFT '
            "(path_initial_model_for_weight_conversion)"
        )
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
    bases: set[str] = field(default_factory=set)

    def take(self, full_name: str, tensor: LazyTensor) -> str | None:
        """Put a tensor where it belongs, or say what is wrong with its name."""
        name = full_name.removeprefix(PREFIX)
        if name == full_name:
            return f"is not named as PEFT names tensors, '{PREFIX}...'"
        if part := _PART.fullmatch(name):
            which = part["embedding"] or part["part"] or part["other"]
            which = which or next(
                word for word in ("bias", "magnitude", "tokens") if part[word] is not None
            )
            self.parts.setdefault(part["module"], {})[which] = tensor
            if part["embedding"]:
                self.embeddings.add(part["module"])
        elif any(f".{word}" in name for word in _OF_PARTS):
            return "is a part of an adapter that is not known"
        elif ".original_module." not in name:  # what PEFT keeps to go back to
            plain = name.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
            self.replaced.setdefault(plain, []).append(tensor)
            if ".base_layer." in name:
                self.bases.add(plain)
        return None
