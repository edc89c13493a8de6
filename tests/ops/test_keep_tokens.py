"""Tokens trimmed from a tokenizer and from the rows of its tensors."""

import json

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import write_tokenizer

ROWS = torch.arange(14.0).reshape(7, 2)


@pytest.fixture
def model(bench):
    """Seven rows, of which the last has no token."""
    write_tokenizer(bench.folder, "?", "a", "b", "c", "d", "e")
    return bench.given({"embed_tokens.weight": ROWS})


def step(**rest):
    return {"op": "keep_tokens", "target": "embed_tokens.weight", **rest}


def test_rows_of_kept_tokens_stay_in_their_order(model):
    made = model.operate(step(tokens=["d", "b"]))
    assert torch.equal(made["embed_tokens.weight"], ROWS[[0, 2, 4]])
    assert not made.lineage("embed_tokens.weight")[0].get("new")


@pytest.mark.parametrize(("name", "text"), [("list.txt", "b\nd\n"), ("list.json", '["d", "b"]')])
def test_a_file_lists_what_stays(model, name, text):
    (model.folder / name).write_text(text)
    made = model.operate(step(file=name, pad_to_multiple_of=4))
    expected = torch.cat([ROWS[[0, 2, 4]], ROWS[[0, 2, 4]].mean(0, keepdim=True)])
    torch.testing.assert_close(made["embed_tokens.weight"], expected, rtol=0, atol=0)


def test_what_a_text_uses_stays(model):
    (model.folder / "corpus.txt").write_text("e a\na b")
    made = model.operate(step(used_in="corpus.txt"))
    assert torch.equal(made["embed_tokens.weight"], ROWS[[0, 1, 2, 5]])


def test_added_tokens_stay_if_asked(model):
    file = model.folder / "tokenizer.json"
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": 6, "content": "<x>", **entry}]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens": added}))
    made = model.operate(step(tokens=["a"], always="added"))
    assert torch.equal(made["embed_tokens.weight"], ROWS[[0, 1, 6]])


@pytest.mark.parametrize("form", ["file", "config", "list"])
def test_tokens_of_the_chat_template_stay(model, form):
    file = model.folder / "tokenizer.json"
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": n, "content": c, **entry} for n, c in enumerate(("<x>", "<y>"), 6)]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens": added}))
    text = "{{ '<y>' + messages[0].content }}"
    if form == "file":
        (model.folder / "chat_template.jinja").write_text(text)
    else:
        given = text if form == "config" else [{"name": "default", "template": text}]
        path = model.folder / "tokenizer_config.json"
        path.write_text(json.dumps({"chat_template": given}))
    rows = torch.arange(8.0).reshape(8, 1)
    made = model.given({"embed_tokens.weight": rows}).operate(step(tokens=["a"]))
    assert torch.equal(made["embed_tokens.weight"], rows[[0, 1, 7]])


def bpe(model, **settings):
    """BPE of the characters of 'abc' that merges ab, and then abc."""
    words = ["a", "b", "c", "ab", "abc", "bc", "<u>"]
    vocab = {token: number for number, token in enumerate(words)}
    merges = [["a", "b"], ["ab", "c"], ["b", "c"]]
    document = {"type": "BPE", "vocab": vocab, "merges": merges, **settings}
    text = json.dumps({"version": "1.0", "added_tokens": [], "model": document})
    (model.folder / "tokenizer.json").write_text(text)


def test_what_a_token_is_merged_from_stays(model):
    bpe(model)
    made = model.operate(step(tokens=["abc"]))
    assert torch.equal(made["embed_tokens.weight"], ROWS[[0, 1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": ["a", "nope"]}, "'nope' is no token"),
        ({"tokens": ["ab"]}, "text with 'c' could not be encoded any more"),
    ],
)
def test_what_cannot_be_is_refused(model, change, said):
    bpe(model)
    with pytest.raises(PlanError, match=said):
        model.plan(step(**change))


def test_lost_characters_are_said(model):
    bpe(model, unk_token="<u>")
    made = model.operate(step(tokens=["ab"]))
    assert any("'c' becomes '<u>', unless" in note for note in made.notes)
    assert any("4 of 7 tokens are kept" in note for note in made.notes)
