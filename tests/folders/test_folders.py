"""Folders that surgeon writes load, with the logits that they should have."""

from __future__ import annotations

from pathlib import Path

import pytest

TYPES = ("llama", "gemma2", "gpt2", "bert", "t5", "marian", "qwen3_moe", "gpt_oss", "deepseek_v3")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", TYPES)
def test_what_is_written_loads_and_computes_the_same(tmp_path: Path, model_type: str) -> None:
    pytest.importorskip("transformers")
    from tests.folders.jobs import DONE, JOBS, outcomes

    assert {job: what for job, what, _ in outcomes(model_type, tmp_path)} == dict.fromkeys(
        JOBS, DONE
    )
