"""mergekit-moe's configurations: mixtures of dense models, as the op `experts`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.base.errors import UsageError, did_you_mean
from surgeon.mergekit.importer import Imported
from surgeon.mergekit.places import path_of
from surgeon.numeric.dtypes import require_dtype
from surgeon.recipe.validation import problems_of

Json = dict[str, Any]

_PATH: Json = {"type": ["string", "number", "object"]}
_TEXTS: Json = {"type": ["array", "null"], "items": {"type": "string"}}
_EXPERT: Json = {
    "type": "object",
    "properties": {
        "source_model": _PATH,
        "positive_prompts": _TEXTS,
        "negative_prompts": _TEXTS,
        "noise_scale": {"type": ["number", "null"]},
        "residual_scale": {"type": ["number", "null"]},
    },
    "required": ["source_model"],
}
_CONFIG: Json = {
    "type": "object",
    "properties": {
        "base_model": _PATH,
        "experts": {"type": "array", "items": _EXPERT, "minItems": 1},
        "shared_experts": {"type": ["array", "null"], "items": _EXPERT},
        "gate_mode": {"type": "string"},
        "dtype": {"type": ["string", "null"]},
        "experts_per_token": {"type": "integer", "minimum": 1},
        "architecture": {"type": ["string", "null"]},
    },
    "required": ["base_model", "experts"],
}
_INPUT = "@input"
_ROWS = "router.safetensors"
_RANDOM = ("random", "uniform_random")
# Which tokens' hidden states each mode takes.
_HIDDEN = {"hidden": "last", "hidden_last": "last", "hidden_avg": "mean"}
_MODES = (*_HIDDEN, "cheap_embed", *_RANDOM)
_LAYOUTS = {"mixtral": "mixtral", "qwen3 moe": "qwen3_moe", "qwen moe": "qwen2_moe"}


def is_moe(config: Any) -> bool:
    """Say whether a configuration is mergekit-moe's."""
    return isinstance(config, dict) and "experts" in config and "merge_method" not in config


def imported_moe(config: Any, label: str) -> Imported:
    """Return the recipe that makes a mixture; raises UsageError for all that is not imported."""
    problems = list(problems_of(config, _CONFIG, "")) or list(_problems(config))
    if problems:
        raise UsageError(*(f"{label}: {problem}" for problem in problems))
    notes = [*_unknown(config, _CONFIG, "the configuration")]
    for word in ("experts", "shared_experts"):
        for number, entry in enumerate(config.get(word) or []):
            notes += _unknown(entry, _EXPERT, f"{word}[{number}]")
    return _Reader(config, label, notes).result()


def _unknown(given: Json, schema: Json, where: str) -> list[str]:
    """Return a note for each word that mergekit-moe reads over."""
    known = schema["properties"]
    return [
        f"'{word}' in {where} means nothing to mergekit-moe, and is left out"
        f"{did_you_mean(word, known)}"
        for word in sorted(map(str, given.keys() - known.keys()))
    ]


def _problems(config: Json) -> list[str]:
    problems = []
    mode = config.get("gate_mode", "hidden")
    if mode not in _MODES:
        problems.append(f"gate_mode {mode!r} is not imported{did_you_mean(mode, _MODES)}")
    shared = config.get("shared_experts") or []
    if len(shared) > 1:
        problems.append(f"shared_experts: there are {len(shared)}, and one is imported")
    for word in ("experts", "shared_experts"):
        for number, entry in enumerate(config.get(word) or []):
            if entry.get("noise_scale"):
                problems.append(
                    f"{word}[{number}].noise_scale: noise of mergekit's own is not imported; add "
                    "it with a step of its own"
                )
            if word == "experts" and mode not in _RANDOM and not entry.get("positive_prompts"):
                problems.append(f"{word}[{number}] has no positive_prompts, which {mode} needs")
    wanted = config.get("architecture")
    if wanted and not any(name.startswith(wanted.lower()) for name in _LAYOUTS):
        problems.append(
            f"architecture {wanted!r} is not imported: transformers has no class of it, or there "
            f"is none; there are {', '.join(_LAYOUTS)}"
        )
    return problems


class _Reader:
    """Reads one configuration; `notes` are for the user."""

    def __init__(self, config: Json, label: str, notes: list[str]) -> None:
        self._config = config
        self._label = label
        self._notes = notes
        self._base = path_of(config["base_model"])
        self._models: dict[str, str] = {}
        self._taken: set[str] = set()

    def result(self) -> Imported:
        config = self._config
        shared = config.get("shared_experts") or []
        entries = [self._entry(entry) for entry in config["experts"]]
        own = self._entry(shared[0]) if shared else None
        step: Json = {"op": "experts", "models": [_short(entry) for entry in entries]}
        step["per_token"] = config.get("experts_per_token", 2)
        steps = [step]
        mode = config.get("gate_mode", "hidden")
        prompts = {
            entry["name"]: _prompts(given)
            for entry, given in zip(
                [*entries, *([own] if own else [])], [*config["experts"], *shared], strict=True
            )
            if given.get("positive_prompts")
        }
        if mode in _RANDOM:
            step["router"] = {"random": 1.0}
        elif mode == "cheap_embed":
            step["router"] = {"prompts": prompts}
        else:
            step["router"] = {"rows": _ROWS}
            self._notes.append(
                f"make {_ROWS} beside the recipe: surgeon.training.collect_router(model, "
                f"tokenizer, {json.dumps(prompts, ensure_ascii=False)}, '{_ROWS}', "
                f"inputs='layer', tokens='{_HIDDEN[mode]}'), with the model and tokenizer of "
                f"{self._base}"
            )
        if own:
            step["shared"] = _short(own)
        if layout := self._layout(is_shared=own is not None):
            step["layout"] = layout
        if mode == "uniform_random":
            target = ["**.(block_sparse_moe|mlp).gate", "**.mlp.shared_expert_gate"]
            steps.append({"op": "reinit", "target": target[: 2 if own else 1], "init": "default"})
        recipe: Json = {
            "surgeon": 1,
            "about": f"Imported from {self._label} (mergekit-moe, {mode}); apply it to "
            f"{self._base}.",
        }
        if self._models:
            recipe["models"] = {name: path for path, name in self._models.items()}
        recipe["steps"] = steps
        if dtype := config.get("dtype"):
            recipe["output"] = {"dtype": require_dtype(str(dtype))}
        return Imported(recipe, self._base, (f"apply it to {self._base}", *self._notes))

    def _layout(self, *, is_shared: bool) -> str | None:
        wanted = self._config.get("architecture")
        if not wanted:
            return None
        fitting = [ours for name, ours in _LAYOUTS.items() if name.startswith(wanted.lower())]
        if is_shared and "qwen2_moe" in fitting:
            return "qwen2_moe"
        return fitting[0]

    def _entry(self, given: Mapping[str, Any]) -> Json:
        """Return an expert: its model, a name of its own, its scale."""
        path = path_of(given["source_model"])
        model = _INPUT if path == self._base else self._named(path)
        name = next(
            n for n in (model, *(f"{model}-{k}" for k in range(2, 10_000))) if n not in self._taken
        )
        self._taken.add(name)
        scale = given.get("residual_scale")
        return {"model": model, "name": name, "scale": 1 if scale is None else scale}

    def _named(self, path: str) -> str:
        if "+" in path and not Path(path).exists():
            raise UsageError(
                f"{self._label}: model '{path}': fold the adapter in first, with lora_merge"
            )
        if path not in self._models:
            stem = re.sub(r"\W+", "-", Path(path).name).strip("-") or "model"
            taken = self._models.values()
            names = [stem, *(f"{stem}-{number}" for number in range(2, len(self._models) + 3))]
            self._models[path] = next(name for name in names if name not in taken)
        return self._models[path]


def _short(entry: Json) -> str | Json:
    """Return an expert as a recipe says it."""
    said = {"model": entry["model"]}
    if entry["name"] != entry["model"]:
        said["name"] = entry["name"]
    if entry["scale"] != 1:
        said["scale"] = entry["scale"]
    return said if len(said) > 1 else str(entry["model"])


def _prompts(given: Mapping[str, Any]) -> list[str] | Json:
    positive, negative = given["positive_prompts"], given.get("negative_prompts")
    return {"positive": positive, "negative": negative} if negative else positive
