"""The rules in the package are what the installed transformers shows."""

from __future__ import annotations

from typing import Any

import pytest

from surgeon.model_folder.architectures import record_of

TYPES = (
    "llama", "qwen3", "gpt2", "bert", "t5", "bart", "mixtral", "gemma3_text", "gemma2", "whisper",
    "vit", "phi3", "deepseek_v3", "marian", "falcon", "bloom", "gpt_neox", "olmo2", "opt",
    "distilbert", "roberta", "qwen2_moe", "mamba", "clip", "gpt_oss", "vit_mae", "deit", "jetmoe",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_probing_afresh_finds_the_shipped_rules(model_type: str) -> None:
    pytest.importorskip("transformers")
    from tests.architectures.build import classes_of_types
    from tests.architectures.probe import probe

    shipped = record_of(model_type)
    assert shipped is not None
    found = probe(model_type, classes_of_types()[model_type])
    for key in ("rows", "counts", "lists", "kinds", "heads", "defaults", "settings", "fused"):
        assert _plain(found.get(key)) == shipped.get(key), key


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    import json

    return json.loads(json.dumps(value))
