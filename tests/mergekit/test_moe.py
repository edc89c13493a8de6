"""mergekit-moe's configurations become recipes; against mergekit itself see tests/conformance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from surgeon.base.errors import UsageError
from surgeon.mergekit import imported
from surgeon.recipe import load

EXPERTS = [
    {"source_model": "x/code", "positive_prompts": ["def"]},
    {"source_model": "x/base", "positive_prompts": ["why"], "negative_prompts": ["so"]},
    {"source_model": "x/code", "positive_prompts": ["sum"], "residual_scale": 0.5},
]


def of(folder: Path, **config: Any) -> Any:
    path = folder / "moe.yml"
    path.write_text(yaml.safe_dump({"base_model": "x/base", "experts": EXPERTS, **config}))
    found = imported(path)
    (folder / "recipe.json").write_text(json.dumps(found.recipe))
    load(str(folder / "recipe.json"), {})
    return found


def test_experts_are_in_their_order_with_prompts_by_name(tmp_path: Path) -> None:
    found = of(tmp_path, gate_mode="cheap_embed", dtype="bfloat16", experts_per_token=1)
    assert found.input == "x/base"
    assert found.recipe["models"] == {"code": "x/code"}
    assert found.recipe["output"] == {"dtype": "BF16"}
    prompts = {"code": ["def"], "@input": {"positive": ["why"], "negative": ["so"]},
               "code-2": ["sum"]}  # fmt: skip
    models = ["code", "@input", {"model": "code", "name": "code-2", "scale": 0.5}]
    step = {"op": "experts", "models": models, "per_token": 1, "router": {"prompts": prompts}}
    assert found.recipe["steps"] == [step]


@pytest.mark.parametrize(("mode", "tokens"), [
    ("hidden", "last"), ("hidden_last", "last"), ("hidden_avg", "mean"),
])  # fmt: skip
def test_hidden_states_are_a_file_that_the_notes_say_how_to_make(
    tmp_path: Path, mode: str, tokens: str
) -> None:
    found = of(tmp_path, gate_mode=mode)
    assert found.recipe["steps"][0]["router"] == {"rows": "router.safetensors"}
    (note,) = [note for note in found.notes if "collect_router" in note]
    assert f"inputs='layer', tokens='{tokens}'" in note
    assert '"code": ["def"]' in note


def test_random_routers_are_drawn(tmp_path: Path) -> None:
    assert of(tmp_path, gate_mode="random").recipe["steps"][0]["router"] == {"random": 1.0}
    _, again = of(tmp_path, gate_mode="uniform_random").recipe["steps"]
    wanted = {"op": "reinit", "target": ["**.(block_sparse_moe|mlp).gate"], "init": "default"}
    assert again == wanted


def test_a_shared_expert_and_an_architecture_are_said(tmp_path: Path) -> None:
    shared = [{"source_model": "x/code", "residual_scale": 0.1}]
    found = of(tmp_path, gate_mode="random", shared_experts=shared, architecture="qwen")
    (step,) = found.recipe["steps"]
    assert step["shared"] == {"model": "code", "name": "code-3", "scale": 0.1}
    assert step["layout"] == "qwen2_moe"


def test_words_that_mean_nothing_are_notes(tmp_path: Path) -> None:
    odd = [{"source_model": "x/a", "positive_prompt": ["x"]}, {"source_model": "x/b"}]
    found = of(tmp_path, gate_mode="random", experts=odd, merge="moe")
    notes = [note for note in found.notes if "means nothing" in note]
    assert [note.partition(" means")[0] for note in notes] == [
        "'merge' in the configuration", "'positive_prompt' in experts[0]",
    ]  # fmt: skip
    assert "did you mean 'positive_prompts'?" in notes[1]


@pytest.mark.parametrize(("config", "problem"), [
    ({"gate_mode": "hiden"}, "gate_mode 'hiden' is not imported; did you mean 'hidden'?"),
    ({"gate_mode": "random", "architecture": "deepseek"}, "architecture 'deepseek' is not impor"),
    ({"experts": [{"source_model": "a"}]}, r"experts\[0\] has no positive_prompts, which hidden"),
    ({"experts": [{**EXPERTS[0], "noise_scale": 0.1}]}, r"experts\[0\].noise_scale: noise of"),
    ({"shared_experts": EXPERTS[:2]}, "shared_experts: there are 2, and one is imported"),
])  # fmt: skip
def test_what_has_no_counterpart_is_refused(tmp_path: Path, config: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        of(tmp_path, **config)
