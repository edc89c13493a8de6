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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_first_layer_of_t5_goes_and_leaves_its_biases(tmp_path: Path) -> None:
    """The first layer has the position biases that all layers use: by itself it is refused."""
    pytest.importorskip("transformers")
    import surgeon
    from tests.folders.jobs import REFUSED, outcomes
    from tests.folders.models import loaded, logits, saved, tiny

    model = tiny("t5", 0)
    source = saved(model, tmp_path / "source")
    ((_, what, why),) = outcomes("t5", tmp_path, jobs=["drop"], dropped=0)
    assert (what, "relative_attention_bias.weight' is missing" in why) == (REFUSED, True)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    steps = [{"op": "rename", "from": bias, "to": "aside"},
             {"op": "layers", "container": "encoder.block", "take": ["1:4"]},
             {"op": "rename", "from": "aside", "to": bias}]  # fmt: skip
    surgeon.apply({"surgeon": 1, "steps": steps}, source, tmp_path / "out")
    blocks = loaded(source, model).encoder.block
    model.encoder.block = blocks[1:]
    first, was = (blocks[n].layer[0].SelfAttention for n in (1, 0))
    first.has_relative_attention_bias = True
    first.relative_attention_bias = was.relative_attention_bias
    assert (logits(loaded(tmp_path / "out", model)) == logits(model)).all()
