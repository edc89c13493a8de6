"""What inspect and diff say of tokens, where a tokenizer lies beside."""

import pytest
import torch

from surgeon.formats import open_checkpoint
from surgeon.inspection import diff, inspect
from tests.network import write, write_tokenizer


@pytest.fixture
def folders(tmp_path):
    """Two model folders, whose second has other tokens."""
    for name, tokens, rows in (("a", "?xyz", 6), ("b", "?zxuv", 5)):
        (tmp_path / name).mkdir()
        write_tokenizer(tmp_path / name, *tokens)
        write(tmp_path / name / "model.safetensors", {"embed_tokens.weight": torch.ones(rows, 2)})
    return str(tmp_path / "a"), str(tmp_path / "b")


def inspected(path):
    opened = open_checkpoint(path)
    return inspect.as_text(
        opened, inspect.inspected(opened.tensors, [], stats=False), as_tree=False
    )


def test_diff_says_which_rows_are_new_gone_and_moved(folders):
    found = diff.compare(*folders, [])
    assert found.as_text().splitlines()[-4:] == [
        "tokens: 4 -> 5",
        "rows 3:5 new: 'u', 'v'",
        "rows 2:3 gone: 'y'",
        "in other rows: 'x', 1 -> 2 and 1 more",
    ]
    assert found.as_json()["tokens"]["moved"]["z"] == {"a": 3, "b": 1}


def test_inspect_says_which_rows_have_no_token(folders):
    assert "tokenizer: WordLevel, 4 tokens, of which special: '?'; rows 4:6 have none" in inspected(
        folders[0]
    )


def test_a_tokenizer_that_cannot_be_read_is_a_note(folders, tmp_path):
    (tmp_path / "b" / "tokenizer.json").write_text("[]")
    assert "tokenizer.json: is no JSON object" in inspected(folders[1])
    found = diff.compare(*folders, [])
    assert found.tokens is None
    assert any("is no JSON object" in note for note in found.notes)
