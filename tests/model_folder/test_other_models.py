"""Models that mean something else than the input are told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon import surgery
from tests.model_folder.test_follow import LLAMA, Json, llama
from tests.network import Bench, write

AVERAGE = {"op": "average", "models": ["b"], "weights": [0.5, 0.5]}


def saved(folder: Path, config: Json, tokenizer: str) -> Path:
    folder.mkdir()
    write(folder / "model.safetensors", llama())
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer)
    return folder


@pytest.mark.parametrize(
    ("config", "tokenizer", "said"),
    [
        ({}, "{}", []),
        ({"use_cache": False, "transformers_version": "5.0", "head_dim": None}, "{}", []),
        ({"rope_theta": 5e5, "eos_token_id": [7], "rope": {"type": "yarn"}}, "{}",
         ['eos_token_id is 2 here and [7] there, rope.type is "default" here and "yarn" there, '
          "rope_theta is 10000.0 here and 500000.0 there; what the input says is written"]),
        ({}, "[]", ["has another tokenizer (tokenizer.json): rows of its embeddings may be other"]),
    ],
)  # fmt: skip
def test_models_that_mean_something_else_are_told_of(
    bench: Bench, config: Json, tokenizer: str, said: list[str]
) -> None:
    base: dict[str, Any] = LLAMA | {"rope_theta": 1e4, "eos_token_id": 2, "use_cache": True}
    base |= {"rope": {"type": "default"}}
    source = saved(bench.folder / "one", base, "{}")
    other = saved(bench.folder / "other", base | config, tokenizer)
    recipe = bench.recipe(AVERAGE, models={"b": str(other)})
    with surgery.opened(recipe, str(source), {"b": str(other)}) as opened:
        notes = [n for n in surgery.output_plan(opened, bench.folder / "out").notes if "'b'" in n]
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))
