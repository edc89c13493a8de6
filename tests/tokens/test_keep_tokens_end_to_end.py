"""Trimmed folders cut a text as before, and compute the same of it."""

from __future__ import annotations

import json

import pytest
import torch

from tests.tokens import made
from tests.tokens.operated import apply
from tests.tokens.test_vocabulary_end_to_end import logits

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CASES = [
    ("llama", "bpe", {"tie_word_embeddings": True}),
    ("llama", "llama_bpe", {}),
    ("gpt2", "bpe", {}),
    ("bert", "wordpiece", {}),
    ("bart", "unigram", {}),
    ("llava", "wordlevel", {}),
]


@pytest.mark.parametrize(("model", "kind", "settings"), CASES)
def test_a_text_is_cut_and_computed_as_before(tmp_path, model, kind, settings):
    tokenizer = made.KINDS[kind](500) if kind != "wordlevel" else made.wordlevel()
    tokenizer.add_tokens(["<gone>", "dog"])
    made.write_model(tmp_path / "in", model, kind, made=tokenizer, padding=3, **settings)
    (tmp_path / "corpus.txt").write_text("\n".join(made.TEXTS))
    step = {"op": "keep_tokens", "used_in": "corpus.txt"}
    apply(tmp_path / "in", tmp_path / "out", step)
    (before, old), (after, new) = made.load(tmp_path / "in"), made.load(tmp_path / "out")
    assert after.config.get_text_config().vocab_size == len(new) < len(old)
    assert "<gone>" not in new.get_vocab()
    kept = sorted(new.get_vocab(), key=new.get_vocab().get)
    assert kept == sorted(kept, key=old.get_vocab().get)
    places = [old.get_vocab()[token] for token in kept]
    for text in made.TEXTS:
        pieces = old(text).input_ids, new(text).input_ids
        assert old.convert_ids_to_tokens(pieces[0]) == new.convert_ids_to_tokens(pieces[1])
        assert new.decode(pieces[1]) == old.decode(pieces[0])
        expected = logits(before, pieces[0])[:, places]
        torch.testing.assert_close(logits(after, pieces[1]), expected, rtol=0, atol=1e-5)
    for key, number in made.ids_of(old).items():
        moved = getattr(after.config.get_text_config(), key)
        assert new.convert_ids_to_tokens(moved) == old.convert_ids_to_tokens(number)


def test_llama_3s_whole_words_stay(tmp_path):
    tokenizer = made.bpe(400)
    document = json.loads(tokenizer.to_str())
    document["model"]["ignore_merges"] = True
    words = {"Ġ" + word: 400 + number for number, word in enumerate(["xylophone", "quartzes"])}
    document["model"]["vocab"] |= words
    made.write_model(tmp_path / "in", "llama", "bpe",
                     made=made.tokenizers.Tokenizer.from_str(json.dumps(document)))  # fmt: skip
    (tmp_path / "corpus.txt").write_text("a xylophone and a dog")
    apply(tmp_path / "in", tmp_path / "out", {"op": "keep_tokens", "used_in": "corpus.txt"})
    _, new = made.load(tmp_path / "out")
    assert "Ġxylophone" in new.tokenize("a xylophone and a dog")
    assert "Ġquartzes" not in new.get_vocab()
