"""Models of different vocabularies, of which one ties its output layer: each row by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tokens import made
from tests.tokens.operated import apply

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = [
    {"op": "vocabulary", "from": "union", "missing": {"otherwise": "zeros"}},
    {"op": "average", "models": ["b"], "weights": [0.25, 0.75]},
]


def rows(folder: Any) -> tuple[dict[str, int], list[torch.Tensor]]:
    """Return token ids, and the rows of input and output as transformers has them."""
    model, tokenizer = made.load(folder)
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    return tokenizer.get_vocab(), [layer.weight.detach().double() for layer in layers]


@pytest.mark.parametrize("is_tied", [(True, False), (False, True), (True, True)])
def test_rows_that_a_model_lacks_are_the_others_of_the_same_layer(
    tmp_path: Any, is_tied: Any
) -> None:
    for name, tied, token in zip("ab", is_tied, ("<one>", "<two>"), strict=True):
        tokenizer = made.bpe()
        tokenizer.add_special_tokens([token])
        made.write_model(tmp_path / name, "llama", "bpe", made=tokenizer, seed=ord(name),
                         tie_word_embeddings=tied)  # fmt: skip
    apply(tmp_path / "a", tmp_path / "out", *STEPS, models={"b": tmp_path / "b"})
    ids, found = rows(tmp_path / "out")
    (a_ids, a), (b_ids, b) = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert ids.keys() == a_ids.keys() | b_ids.keys()
    for token, number in ids.items():
        for layer in range(2):
            ours = a[layer][a_ids[token]] if token in a_ids else b[layer][b_ids[token]]
            theirs = b[layer][b_ids[token]] if token in b_ids else ours
            expected = 0.25 * ours + 0.75 * theirs
            torch.testing.assert_close(found[layer][number], expected, rtol=0, atol=1e-7)
