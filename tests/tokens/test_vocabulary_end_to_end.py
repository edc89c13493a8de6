"""Folders brought to one vocabulary compute what they did, on the tokens that they had."""

from __future__ import annotations

import pytest
import torch

from tests.tokens import made
from tests.tokens.operated import apply

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def logits(model, ids):
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([ids])}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor([ids])
        return model(**inputs).logits[0].double()


CASES = [
    ("llama", "bpe", {"tie_word_embeddings": True}),
    ("gpt2", "bpe", {}),
    ("llama", "llama_bpe", {}),
    ("llava", "wordlevel", {}),
    ("bert", "wordpiece", {}),
]


@pytest.mark.parametrize(("model", "kind", "settings"), CASES)
@pytest.mark.parametrize("source", ["union", "other"])
def test_a_model_computes_what_it_did_in_another_vocabulary(
    tmp_path, model, kind, settings, source
):
    folders = [tmp_path / "in", tmp_path / "other"]
    for seed, (folder, part) in enumerate(
        zip(folders, ({}, {"corpus": made.CORPUS[2:]}), strict=True)
    ):
        tokenizer = made.KINDS[kind](70) if "bpe" not in kind else made.KINDS[kind](280, **part)
        tokenizer.add_tokens([f"<{folder.name}>"])
        made.write_model(folder, model, kind, made=tokenizer, seed=seed, padding=seed, **settings)
    step = {"op": "vocabulary", "from": source, "missing": {"init": "subtokens"}}
    apply(folders[0], tmp_path / "out", step, models={"other": folders[1]})
    before, old = made.load(folders[0])
    after, new = made.load(tmp_path / "out")
    shared = sorted(old.get_vocab().keys() & new.get_vocab().keys())
    ids, moved = ([one.get_vocab()[token] for token in shared] for one in (old, new))
    found, expected = logits(after, moved[:50])[:, moved], logits(before, ids[:50])[:, ids]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if source == "other":
        _, other = made.load(folders[1])
        assert new("<other> the dog").input_ids == other("<other> the dog").input_ids
    assert new.convert_tokens_to_ids("<other>") in new("<other> the dog").input_ids


def test_a_merge_of_different_vocabularies_computes_the_merge(tmp_path):
    for seed, (name, extra) in enumerate((("in", ["<a>"]), ("other", ["<b>", "<a>"]))):
        tokenizer = made.bpe()
        tokenizer.add_tokens(extra)
        made.write_model(tmp_path / name, "llama", "bpe", made=tokenizer, seed=seed)
    steps = [{"op": "vocabulary", "from": "union"}, {"op": "average", "models": ["other"]}]
    notes = apply(tmp_path / "in", tmp_path / "out", *steps, models={"other": tmp_path / "other"})
    assert not any("has another tokenizer" in note for note in notes)
    after, new = made.load(tmp_path / "out")
    (one, old), (two, other) = made.load(tmp_path / "in"), made.load(tmp_path / "other")
    rows = {name: m.get_input_embeddings().weight.double() for name, m in
            (("one", one), ("two", two), ("out", after))}  # fmt: skip
    for token, number in new.get_vocab().items():
        having = [rows[name][tokenizer.get_vocab()[token]] for name, tokenizer in
                  (("one", old), ("two", other)) if token in tokenizer.get_vocab()]  # fmt: skip
        torch.testing.assert_close(
            rows["out"][number], sum(having) / len(having), atol=1e-7, rtol=0
        )
    assert after.config.eos_token_id == new.convert_tokens_to_ids("</s>")
