"""A chat template that a recipe states is what transformers reads from the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from surgeon.base.errors import UsageError
from tests.network import Bench, write

_OLD, _NEW = "{{ 'old' }}", "{{ messages[0]['content'] }}!"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_the_stated_template_takes_the_place_of_the_old_one(bench: Bench, place: str) -> None:
    folder = bench.folder / "model"
    folder.mkdir()
    write(folder / "model.safetensors", {"x": torch.ones(2)})
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": model}))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 7}
    old = {"chat_template": _OLD} if place == "tokenizer_config.json" else {}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **old}))
    if not old:
        (folder / place).write_text(_OLD)
    assert said_by(applied(bench, folder, {})) == "old"
    assert said_by(applied(bench, folder, {"chat_template": _NEW})) == "hi!"
    kept = json.loads((bench.folder / "out" / "tokenizer_config.json").read_text())
    assert kept == config


def test_a_template_is_for_folders(bench: Bench) -> None:
    bench.given({"x": torch.ones(2)})
    with pytest.raises(UsageError, match=r"output\.chat_template is for model folders"):
        bench.operate(output={"chat_template": _NEW})


def applied(bench: Bench, folder: Path, output: dict[str, str]) -> Path:
    bench.input = folder
    bench.operate(to=bench.folder / "out", output=output, force=True)
    return bench.folder / "out"


def said_by(folder: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = [{"role": "user", "content": "hi"}]
    return str(tokenizer.apply_chat_template(said, tokenize=False))
