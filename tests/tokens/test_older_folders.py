"""Folders as transformers 4 and models' own classes have them: every file says the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tokens import made
from tests.tokens.made import transformers
from tests.tokens.operated import apply

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
CLASSES = {"bpe": "GPT2Tokenizer", "llama_bpe": "LlamaTokenizer", "wordpiece": "BertTokenizer",
           "unigram": "T5Tokenizer"}  # fmt: skip
STEPS = {
    "add": {"op": "add_tokens", "tokens": ["<new>", "wörd"], "special": True},
    "keep": {"op": "keep_tokens", "used_in": "corpus.txt"},
}


def older(folder: Path, kind: str, **more: object) -> None:
    """Have a folder's files be what transformers 4 writes: each token in several of them."""
    document = json.loads((folder / "tokenizer.json").read_text())
    entries = {str(entry.pop("id")): entry for entry in document["added_tokens"]}
    roles = made._ROLES[kind]
    config = {**roles, "tokenizer_class": CLASSES[kind], "added_tokens_decoder": entries, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(roles))
    added = {entry["content"]: int(number) for number, entry in entries.items()
             if entry["content"] not in dict(document["model"]["vocab"])}  # fmt: skip
    (folder / "added_tokens.json").write_text(json.dumps(added))
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        merges = document["model"].get("merges", [])
        (folder / "merges.txt").write_text("\n".join(" ".join(merge) for merge in merges))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("step", STEPS)
def test_a_folder_of_transformers_4_is_followed_in_all_its_files(tmp_path, kind, step):
    tokenizer = made.KINDS[kind](400)
    tokenizer.add_tokens(["<old>", "<tool>"])
    made.write_model(tmp_path / "in", "llama", kind, made=tokenizer)
    older(tmp_path / "in", kind)
    (tmp_path / "corpus.txt").write_text("\n".join([*made.TEXTS, "<tool> vow"]))
    notes = apply(tmp_path / "in", tmp_path / "out", STEPS[step])
    before = transformers.AutoTokenizer.from_pretrained(tmp_path / "in")
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(after) is type(before)
    for text in [*made.TEXTS, "<tool> vow"]:
        old, new = before(text).input_ids, after(text).input_ids
        assert before.convert_ids_to_tokens(old) == after.convert_ids_to_tokens(new), text
    document = json.loads((tmp_path / "out/tokenizer.json").read_text())
    said = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    assert {t: after.convert_tokens_to_ids(t) for t in said} == said
    assert ("<new>" in said) == (step == "add")
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    decoder = config["added_tokens_decoder"]
    assert {entry["content"]: int(number) for number, entry in decoder.items()} == said
    added = json.loads((tmp_path / "out/added_tokens.json").read_text())
    assert added == {token: said[token] for token in added}
    assert {"<tool>"} <= added.keys()
    assert kind == "unigram" or any("vocab.json" in note for note in notes)
    assert not (tmp_path / "out/vocab.json").exists()
