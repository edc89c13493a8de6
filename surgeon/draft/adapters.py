"""What tells an adapter's tensors, and the words that PEFT's folders are written in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any

from surgeon.base import bounded

CONFIG = "adapter_config.json"
# What PEFT puts before the names of the model that it wraps.
PREFIX = "base_model.model."

_TELLING = re.compile(
    r"\.(lora_(embedding_)?[AB](\.weight)?|lora_(down|up)\.weight|hada_w1_[ab]|lokr_w[12](_[ab])?|"
    r"ia3_l|trainable_tokens_delta)\Z"
)
_LONGEST_END = len(".lora_embedding_A.weight")


def is_adapter(names: Iterable[str]) -> bool:
    """Say whether names are an adapter's, by PEFT's or by other tools' habits."""
    # Of many names few ends differ.
    ends = {name[-_LONGEST_END:] for name in names}
    return any(map(_TELLING.search, ends))


def setting(config: Mapping[str, Any], word: str, pattern_word: str, module: str) -> Any:
    """Return what a configuration says of a module; patterns are for the end of its name.

    Raises ValueError for patterns that cannot be followed.
    """
    patterns = config.get(pattern_word) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{pattern_word} is not an object")
    for pattern, value in patterns.items():
        try:
            if bounded.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        except ValueError as error:
            raise ValueError(f"{pattern_word}: '{pattern}': {error}") from None
    return config.get(word)


def exactly(module: str) -> str:
    """Return the pattern of PEFT's that means one module."""
    return f"^{re.escape(module)}"


def scaling(rank: int, alpha: float, config: Mapping[str, Any]) -> float:
    """Return what the product of a module's factors is multiplied with."""
    return float(alpha / (sqrt(rank) if config.get("use_rslora") else rank))
