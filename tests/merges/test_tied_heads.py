"""Merges of models of which one ties its output layer to its embedding, and another does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.model_folder.test_follow import LLAMA, llama
from tests.network import Bench, write
from tests.tokens.made import load, write_model
from tests.tokens.operated import apply

HEAD, EMBED = "lm_head.weight", "model.embed_tokens.weight"
AVERAGE = {"op": "average", "models": ["b"], "weights": [0.25, 0.75]}


def saved(folder: Path, seed: int, *, is_tied: bool) -> dict[str, torch.Tensor]:
    """Write a folder; returns the tensors as the class has them."""
    torch.manual_seed(seed)
    tensors = {name: torch.randn(tensor.shape) for name, tensor in llama().items()}
    folder.mkdir()
    stored = {name: tensor for name, tensor in tensors.items() if not (is_tied and name == HEAD)}
    write(folder / "model.safetensors", stored)
    config = LLAMA | {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": is_tied}
    (folder / "config.json").write_text(json.dumps(config))
    return {**stored, HEAD: stored[EMBED] if is_tied else stored[HEAD]}


@pytest.mark.parametrize("is_tied", [(True, False), (False, True)])
def test_a_tied_head_is_the_embedding(bench: Bench, is_tied: Any) -> None:
    one, other = (saved(bench.folder / str(n), n, is_tied=tied) for n, tied in enumerate(is_tied))
    apply(bench.folder / "0", bench.folder / "out", AVERAGE, models={"b": bench.folder / "1"})
    made = load_file(bench.folder / "out/model.safetensors")
    assert made.keys() == one.keys()
    for name, tensor in made.items():
        expected = 0.25 * one[name].double() + 0.75 * other[name].double()
        assert torch.equal(tensor, expected.float()), name
    config = json.loads((bench.folder / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_models_that_tie_alike_stay_tied(bench: Bench) -> None:
    for number in range(2):
        saved(bench.folder / str(number), number, is_tied=True)
    apply(bench.folder / "0", bench.folder / "out", AVERAGE, models={"b": bench.folder / "1"})
    assert HEAD not in load_file(bench.folder / "out/model.safetensors")
    assert json.loads((bench.folder / "out/config.json").read_text())["tie_word_embeddings"]


def test_a_merge_into_a_model_has_the_head_too(bench: Bench) -> None:
    one, other = (saved(bench.folder / str(n), n, is_tied=not n) for n in range(2))
    steps = [AVERAGE | {"into": "c"}, {"op": "copy", "model": "c", "from": HEAD, "to": HEAD}]
    apply(bench.folder / "0", bench.folder / "out", *steps, models={"b": bench.folder / "1"})
    made = load_file(bench.folder / "out/model.safetensors")
    assert torch.equal(made[EMBED], one[EMBED])
    expected = 0.25 * one[HEAD].double() + 0.75 * other[HEAD].double()
    assert torch.equal(made[HEAD], expected.float())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_transformers_computes_the_mean_of_the_models_weights(tmp_path: Path, model: str) -> None:
    states = []
    for number, is_tied in enumerate((True, False)):
        folder = tmp_path / str(number)
        write_model(folder, model, "bpe", seed=number, tie_word_embeddings=is_tied)
        states.append(
            {name: tensor.double() for name, tensor in load(folder)[0].state_dict().items()}
        )
    apply(tmp_path / "0", tmp_path / "out", AVERAGE, models={"b": tmp_path / "1"})
    expected = load(tmp_path / "1")[0].double()
    expected.load_state_dict({name: 0.25 * states[0][name] + 0.75 * states[1][name]
                              for name in states[0]})  # fmt: skip
    found = load(tmp_path / "out")[0].double()
    ids = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(found(ids).logits, expected(ids).logits, rtol=0, atol=1e-5)
