"""Tokens added to a tokenizer and to the rows of its tensors."""

import json

import pytest
import torch

import surgeon
from surgeon.base.errors import PlanError
from tests.network import write_tokenizer

VECTORS = torch.arange(24.0).reshape(6, 4).to(torch.bfloat16)


@pytest.fixture
def model(bench):
    """Six rows, of which the last has no token."""
    write_tokenizer(bench.folder, "?", "a", "b", "c", "d")
    bias = torch.arange(6.0).reshape(1, 6)
    return bench.given({"embed_tokens.weight": VECTORS, "final_logits_bias": bias})


def step(*tokens, **rest):
    targets = ["embed_tokens.weight", "final_logits_bias"]
    return {"op": "add_tokens", "tokens": list(tokens), "target": targets, **rest}


def test_rows_are_means_of_pieces_and_use_padding_first(model):
    made = model.operate(step("<x>", {"token": "<y>", "description": "b d"}))
    expected = torch.cat([VECTORS[:5], VECTORS[[0]], (VECTORS[[2]] + VECTORS[[4]]) / 2])
    assert torch.equal(made["embed_tokens.weight"], expected)
    assert torch.equal(made["final_logits_bias"], torch.tensor([[0.0, 1, 2, 3, 4, 0, 3]]))
    assert made.lineage("embed_tokens.weight")[0]["new"] == ["embed_tokens.weight[5:7]"]
    assert any("rows 5:7 are '<x>', '<y>', 1 of which had no token" in n for n in made.notes)
    assert any("only a folder as output gets the tokenizer" in note for note in made.notes)


def test_rows_without_a_token_are_means_of_old_ones(model):
    made = model.operate(step("a", pad_to_multiple_of=4))
    rows = made["embed_tokens.weight"]
    assert torch.equal(rows[:6], VECTORS)
    assert torch.equal(rows[6:], VECTORS[:5].float().mean(0).bfloat16().expand(2, 4))


def test_other_inits_look_at_rows_of_tokens_alone(model):
    made = model.operate(step("<x>", init="mean"))
    assert torch.equal(made["embed_tokens.weight"][5], VECTORS[:5].float().mean(0).bfloat16())


def test_a_second_step_goes_on(model):
    one, two = step("<x>"), step("<y>", {"token": "<z>", "description": "<x> a"})
    made = model.operate(one, {**two, "init": "subtokens"})
    x = VECTORS[0]
    assert torch.equal(made["embed_tokens.weight"][5:], torch.stack([x, x, (x + VECTORS[1]) / 2]))


@pytest.mark.parametrize("name", ["new.txt", "new.json"])
def test_a_file_lists_tokens(model, name):
    text = "<x>\n<y>\n" if name.endswith("txt") else json.dumps(["<x>", {"token": "<y>"}])
    (model.folder / name).write_text(text)
    plain = step()
    del plain["tokens"]
    made = model.operate({**plain, "file": name})
    assert made["embed_tokens.weight"].shape == (7, 4)


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(model):
    write_tokenizer(model.folder, *"?abcdefg")
    with pytest.raises(PlanError, match="has 6 rows, and the tokenizer 8 tokens: 'f', 'g' has"):
        model.plan(step("<x>"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": ["<x>", "<x>"]}, "'<x>' is given twice"),
        ({"target": ["final_logits_bias", "embed*"], "tokens": [{"token": "<x>",
         "description": " "}]}, "makes nothing of '<x>'"),
        ({"target": None}, "nothing is known of"),
        ({"tokens": [{"token": "<x>", "role": "pad_token"}]}, "there is no tokenizer_config.json"),
        ({"tokens": [{"token": "a", "role": "pad_token"}]}, "'a' is text, and no special token"),
        ({"tokens": [{"token": "<x>", "role": "pad_token"}, {"token": "<y>", "role": "pad_token"}]},
         "'pad_token' is given twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(model, change, said):
    made = step("<x>") | change
    if made["target"] is None:
        made.pop("target")
        model.given({"other.weight": VECTORS})
    with pytest.raises(PlanError, match=said):
        model.plan(made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "there is no tokenizer.json, which is what"),
        ("tokenizer.model", "but tokenizer.model: load the folder with transformers"),
        ("vocab.json", "but vocab.json: load the folder with transformers"),
        ({"model": {"type": "Other", "vocab": {"a": 0}}}, "is 'Other', which is none of BPE"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}}, "added_tokens": 3}, "no tokenizer"),
    ],
)
def test_tokenizers_that_cannot_be_read_are_refused(model, change, said):
    file = model.folder / "tokenizer.json"
    if isinstance(change, dict):
        file.write_text(json.dumps(change))
    else:
        file.unlink()
    if isinstance(change, str):
        (model.folder / change).write_bytes(b"")
    with pytest.raises(Exception, match=said):
        model.plan(step("<x>"))


def test_codes_have_no_mean(model):
    model.given({"embed_tokens.weight": VECTORS.to(torch.int8)})
    with pytest.raises(PlanError, match="of whose entries there is no mean"):
        model.plan(step("<x>", target="embed_tokens.weight"))


def test_tensors_in_memory_have_no_tokenizer(model, monkeypatch):
    monkeypatch.chdir(model.folder)
    recipe = {"surgeon": 1, "steps": [step("<x>", target="embed_tokens.weight")]}
    with pytest.raises(PlanError, match="no tokenizer beside tensors in memory"):
        surgeon.apply_to({"embed_tokens.weight": VECTORS}, recipe)
