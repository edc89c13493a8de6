"""Tokens added to folders, held to what transformers does by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.network import correctly_rounded
from tests.tokens.made import load, write_model
from tests.tokens.operated import apply

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TOKENS = ["<call>", "zebras jump", {"token": "<x>", "description": "every piece of text"}]
CASES = [
    ("llama", "bpe", {"tie_word_embeddings": True}),
    ("llama", "llama_bpe", {"tie_word_embeddings": False}),
    ("gpt2", "bpe", {}),
    ("bert", "wordpiece", {}),
    ("bart", "unigram", {}),
    ("llava", "wordlevel", {}),
]


def by_hand(folder: Path, pad: int | None):
    """Return what resize_token_embeddings and means of subtokens make of a folder."""
    model, tokenizer = load(folder)
    before = len(tokenizer)
    texts = ["<call>", "zebras jump", "every piece of text"]
    pieces = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    tokenizer.add_tokens(["<call>", "zebras jump", "<x>"])
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(max(rows, len(tokenizer)), pad, mean_resizing=False)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if len(tokenizer) <= max(tensor.shape, default=0) and "position" not in name:
                flat = tensor.view(tensor.shape[-1], 1) if tensor.shape[0] == 1 else tensor
                if flat.shape[0] < before:
                    continue
                for row, some in enumerate(pieces, before):
                    mean = flat[some].double().mean(0)
                    flat[row] = correctly_rounded(mean, tensor.dtype)
                flat[max(rows, before + 3) :] = flat[:before].double().mean(0).to(tensor.dtype)
    return model, tokenizer


@pytest.mark.parametrize(("model", "kind", "settings"), CASES)
@pytest.mark.parametrize(("padding", "pad"), [(0, None), (2, None), (5, 8)])
def test_tokens_are_added_as_transformers_does(tmp_path, model, kind, settings, padding, pad):
    write_model(tmp_path / "in", model, kind, padding=padding, **settings)
    step = {"op": "add_tokens", "tokens": TOKENS}
    apply(tmp_path / "in", tmp_path / "out", step | ({"pad_to_multiple_of": pad} if pad else {}))
    expected, theirs = by_hand(tmp_path / "in", pad)
    found, ours = load(tmp_path / "out")
    assert ours.get_vocab() == theirs.get_vocab()
    text = "the <call> zebras jump over <x>, and rows"
    assert ours(text).input_ids == theirs(text).input_ids
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=3e-8, msg=name)
    assert found.config.get_text_config().vocab_size == len(found.get_input_embeddings().weight)


@pytest.mark.parametrize(("model", "kind"), [("llama", "bpe"), ("bert", "wordpiece")])
@pytest.mark.parametrize("token", ["[P]", None])
def test_a_role_is_given_as_transformers_does(tmp_path, model, kind, token):
    """To a new token, and to one that is there: as padding, the end of a text."""
    tokenizer = write_model(tmp_path / "in", model, kind)
    token = token or tokenizer.eos_token or tokenizer.sep_token
    step = {"op": "add_tokens", "tokens": [{"token": token, "role": "pad_token"}]}
    apply(tmp_path / "in", tmp_path / "out", step)
    tokenizer.add_special_tokens({"pad_token": token})
    found, ours = load(tmp_path / "out")
    assert ours.special_tokens_map == tokenizer.special_tokens_map
    assert ours.get_vocab() == tokenizer.get_vocab()
    assert found.config.pad_token_id == ours.pad_token_id == tokenizer.pad_token_id
    texts = ["the dog", "every piece of text"]
    assert ours(texts, padding=True).input_ids == tokenizer(texts, padding=True).input_ids
