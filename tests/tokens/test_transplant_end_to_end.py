"""Folders with another model's tokenizer, held to mergekit-tokensurgeon where that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conformance import sides
from tests.conformance.environment import installed
from tests.tokens import made
from tests.tokens.operated import apply
from tests.tokens.test_vocabulary_end_to_end import logits

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def pair(folder: Path, kind: str, other: str, **settings) -> None:
    made.write_model(folder / "in", "llama", kind, seed=1, **settings)
    tokenizer = made.KINDS[other](350 if other == "bpe" else 80, made.CORPUS[1:4])
    made.write_model(
        folder / "donor", "llama", other, made=tokenizer, seed=2, padding=3, **settings
    )


@pytest.mark.parametrize(("kind", "other"), [("bpe", "bpe"), ("llama_bpe", "bpe"),
                                             ("bpe", "llama_bpe")])  # fmt: skip
def test_the_folder_is_the_model_with_the_donors_tokenizer(tmp_path, kind, other):
    pair(tmp_path, kind, other)
    step = {"op": "transplant_tokenizer", "from": "donor", "k": 6}
    # Llama's tokenizer pads with nothing.
    stated = {"output": {"config": {"pad_token_id": None}}} if other == "llama_bpe" else {}
    places = {"donor": tmp_path / "donor"}
    apply(tmp_path / "in", tmp_path / "out", step, models=places, **stated)
    (before, old), (after, new) = made.load(tmp_path / "in"), made.load(tmp_path / "out")
    _, theirs = made.load(tmp_path / "donor")
    assert new.get_vocab() == theirs.get_vocab()
    for text in made.TEXTS:
        assert new(text).input_ids == theirs(text).input_ids
    assert after.config.eos_token_id == theirs.eos_token_id
    ids = [(old.convert_tokens_to_ids(token), number) for token, number in new.get_vocab().items()
           if token in old.get_vocab() and token not in new.all_special_tokens]  # fmt: skip
    here, there = ([number[side] for number in ids] for side in (0, 1))
    expected = logits(before, here[:40])[:, here]
    torch.testing.assert_close(logits(after, there[:40])[:, there], expected, rtol=0, atol=1e-5)


def test_a_sum_of_shared_tokens_is_that_of_mergekit(tmp_path):
    mergekit = installed()
    pair(tmp_path, "bpe", "bpe", tie_word_embeddings=False)
    step = {"op": "transplant_tokenizer", "from": "donor", "k": 6}
    apply(tmp_path / "in", tmp_path / "ours", step, models={"donor": tmp_path / "donor"})
    script = "from mergekit.scripts.tokensurgeon import main; main()"
    arguments = [str(tmp_path / name) for name in ("in", "donor", "theirs")]
    sides.run_python(
        mergekit, "-c", script, *arguments, "--approximation-method", "omp", "--k", "6"
    )
    ours, theirs = sides.read(tmp_path / "ours"), sides.read(tmp_path / "theirs")
    for name, tensor in theirs.items():
        assert sides.difference(ours[name][: len(tensor)], tensor) <= 2e-6, name
