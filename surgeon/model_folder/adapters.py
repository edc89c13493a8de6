"""An adapter folder's adapter_config.json, which follows what the steps did to the tensors."""

from __future__ import annotations

import re
from collections import Counter
from copy import deepcopy
from math import sqrt
from typing import Any

from surgeon.base import bounded
from surgeon.draft import Tensors
from surgeon.draft.adapters import CONFIG, PREFIX, exactly, scaling, setting
from surgeon.lazy import LazyTensor, moved_from, walk

Json = dict[str, Any]
_A = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_(embedding_)?A(\.weight)?")


def followed_adapter(
    config: Json, stated: Json, before: Tensors, after: Tensors
) -> tuple[Json, list[str]]:
    """Return the configuration after the steps and what the recipe states, and contradictions.

    What a module's product is multiplied with stays: where its rank changes, its alpha does too.
    """
    new = {**deepcopy(config), **deepcopy(stated)}
    if config.get("peft_type") != "LORA":
        return new, []
    old, made = _modules(before), _modules(after)
    sources = {moved_from(tensor): module for module, tensor in old.items()}
    wanted: dict[str, tuple[int, float]] = {}
    problems: list[str] = []
    try:
        for module, tensor in made.items():
            source = next((sources[key] for form in walk(tensor)
                           if (key := moved_from(form)) in sources), module)  # fmt: skip
            rank, alpha = _settings(config, source)
            if rank != old.get(source, tensor).spec.shape[0]:
                continue  # the input contradicts itself: nothing to follow
            size = tensor.spec.shape[0]
            kept = scaling(rank, alpha, config)
            wanted[module] = size, kept * (sqrt(size) if config.get("use_rslora") else size)
        if any(not _is_said(new, module, *pair) for module, pair in wanted.items()):
            _follow(new, stated, wanted)
        for module, (rank, alpha) in wanted.items():
            if not _is_said(new, module, rank, alpha):
                problems.append(
                    f"{CONFIG}: output.config makes rank and alpha of '{module}' "
                    f"{setting(new, 'r', 'rank_pattern', module)} and "
                    f"{setting(new, 'lora_alpha', 'alpha_pattern', module)}, but its tensors have "
                    f"rank {rank}, and alpha {alpha:g} keeps what it computes"
                )
                break
    except (ValueError, TypeError) as error:
        problems.append(f"{CONFIG}: {error}")
        return new, problems
    if old.keys() != made.keys() and "target_modules" not in stated:
        _follow_targets(new, list(made))
    return new, problems


def _modules(tensors: Tensors) -> dict[str, LazyTensor]:
    return {found[1]: t for name, t in tensors.items() if (found := _A.fullmatch(name))}


def _settings(config: Json, module: str) -> tuple[int, float]:
    rank = setting(config, "r", "rank_pattern", module)
    alpha = setting(config, "lora_alpha", "alpha_pattern", module)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise ValueError(f"r is {rank!r} and lora_alpha {alpha!r} for '{module}'")
    return rank, float(alpha)


def _is_said(config: Json, module: str, rank: int, alpha: float) -> bool:
    found = _settings(config, module)
    return found[0] == rank and abs(found[1] - alpha) <= 1e-12 * abs(alpha)


def _follow(new: Json, stated: Json, wanted: dict[str, tuple[int, float]]) -> None:
    """Write the usual rank and alpha, and patterns for the modules that have others."""
    rank = Counter(rank for rank, _ in wanted.values()).most_common(1)[0][0]
    alpha = Counter(alpha for _, alpha in wanted.values()).most_common(1)[0][0]
    made = {
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": {exactly(m): r for m, (r, _) in wanted.items() if r != rank},
        "alpha_pattern": {exactly(m): _number(a) for m, (_, a) in wanted.items() if a != alpha},
    }
    new.update({word: value for word, value in made.items() if word not in stated})


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _follow_targets(new: Json, modules: list[str]) -> None:
    """Keep target_modules where they mean the modules that there are, else list these."""
    targets = new.get("target_modules")
    if isinstance(targets, str):
        if targets == "all-linear":
            return
        try:
            is_right = all(bounded.fullmatch(targets, module) for module in modules)
        except ValueError:
            is_right = False
    else:
        listed = targets if isinstance(targets, list) else []
        found = {
            word
            for word in listed
            for module in modules
            if module == word or module.endswith(f".{word}")
        }
        is_right = found == set(listed) and all(
            any(module == word or module.endswith(f".{word}") for word in listed)
            for module in modules
        )
    if not is_right:
        new["target_modules"] = sorted(modules)
