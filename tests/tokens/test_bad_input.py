"""Tokenizers, and texts for them, that strangers made: a line that says what, and soon."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("tokenizers")
from surgeon.base.errors import CheckpointError, PlanError, SurgeonError
from surgeon.tokens.folder import read_tokenizer
from surgeon.tokens.tokenizer import Tokenizer
from surgeon.tokens.trimming import _Merges, used_in
from tests.tokens.made import bpe
from tests.tokens.operated import apply

MADE = json.loads(bpe().to_str())
EMBEDDING = "embed.weight"


def folder(path: Path, document: Any = MADE) -> Path:
    path.mkdir()
    save_file({EMBEDDING: np.ones((300, 2), np.float32)}, path / "model.safetensors")
    (path / "tokenizer.json").write_text(json.dumps(document))
    return path


def keep(path: Path, **more: Any) -> list[str]:
    return apply(path, path.with_name("out"), {"op": "keep_tokens", "target": EMBEDDING, **more})


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    model = folder(tmp_path / "model")
    (tmp_path / "secret").write_text(json.dumps(MADE if name == "tokenizer.json" else {}))
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../secret")
    with pytest.raises(CheckpointError, match=f"{name}: found a link that leaves the folder"):
        read_tokenizer(model)


def test_a_normalizer_that_makes_terabytes_is_refused(tmp_path: Path) -> None:
    grows = {"type": "Replace", "pattern": {"String": "<"}, "content": "<" * 11}
    document = {**MADE, "normalizer": {"type": "Sequence", "normalizers": [grows] * 9}}
    with pytest.raises(PlanError, match="may make a character more than 1,000 long"):
        read_tokenizer(folder(tmp_path / "model", document))


@pytest.mark.parametrize("merge", [["a"], "ab", 7, None, ["a", ["b"]]])
def test_merges_of_other_than_two_parts_are_refused(tmp_path: Path, merge: Any) -> None:
    document = {**MADE, "model": {**MADE["model"], "merges": [*MADE["model"]["merges"], merge]}}
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is no tokenizer"):
        read_tokenizer(folder(tmp_path / "model", document))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", json.dumps([{}]), r"\{\} is no token"),
        ("a.json", json.dumps([["x"] * 1000]), r"\['x', .*\.\.\. is no token"),
        ("a.txt", "x" * 10_000, r"'x{150}'\.\.\.'x{150}' \(10,000 characters\) is no token"),
        ("a.txt", "x\n" * 1_000_001, "has more than 1,000,000 lines"),
    ],
)
def test_a_file_of_no_tokens(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SurgeonError, match=said):
        keep(folder(tmp_path / "model"), file=str(tmp_path / name))


@pytest.mark.parametrize(("word", "most"), [("token", 1_000), ("description", 100_000)])
def test_a_token_that_would_take_minutes_is_refused(tmp_path: Path, word: str, most: int) -> None:
    step = {
        "op": "add_tokens",
        "target": EMBEDDING,
        "tokens": [{"token": "x", word: "[" * 200_000}],
    }
    with pytest.raises(PlanError, match=f"is longer than {most:,} characters"):
        apply(folder(tmp_path / "model"), tmp_path / "out", step)


def test_a_line_that_would_take_gigabytes_is_refused() -> None:
    made = Tokenizer("made", MADE)
    assert used_in(made, "a\n" * 3_000_000 + "a" * 900_000) >= {"a"}
    with pytest.raises(PlanError, match="a line of more than 1,000,000 characters"):
        used_in(made, "a\n" + "a" * 1_100_000)


def test_a_pattern_of_a_tokenizer_that_gives_up_is_a_line() -> None:
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    document = {**MADE, "pre_tokenizer": {**pattern, "invert": False}}
    with pytest.raises(PlanError, match=r"made: the tokenizer cannot cut a text: .*retry-limit"):
        used_in(Tokenizer("made", document), "a" * 40 + "b")


def merged_naively(token: str, rank: Callable[[tuple[str, str]], int | None]) -> set[str] | None:
    symbols, found = [*token], {*token}
    while len(symbols) > 1:
        pairs = [(rank(pair), i) for i, pair in enumerate(pairwise(symbols))]
        known = [(number, i) for number, i in pairs if number is not None]
        if not known:
            return None
        _, place = min(known)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
        found.add(symbols[place])
    return found


def test_merging_is_that_of_a_loop_over_all_pairs() -> None:
    chosen = random.Random(0)
    parts = ["a", "b", "aa", "ab", "ba", "bb", "aab", "aba", "abab"]
    for _ in range(200):
        merges = [(chosen.choice(parts), chosen.choice(parts)) for _ in range(12)]
        ranks = {pair: number for number, pair in enumerate(merges)}  # the last of equal ones
        vocab = {word: i for i, word in enumerate({*parts, *(a + b for a, b in merges)})}
        model = {"type": "BPE", "vocab": vocab, "merges": [list(pair) for pair in merges]}
        made = _Merges(Tokenizer("made", {"model": model}))
        for token in vocab:
            wanted = merged_naively(token, ranks.get)
            assert made.parts(token) == (None if wanted is None else wanted & vocab.keys())


def test_a_token_of_many_characters_is_merged_soon() -> None:
    words = ["a" * 2**power for power in range(17)]
    model = {"type": "BPE", "vocab": {word: i for i, word in enumerate(words)},
             "merges": [[word, word] for word in words[:-1]]}  # fmt: skip
    assert _Merges(Tokenizer("made", {"model": model})).parts(words[-1]) == {*words}
