"""Models of different vocabularies: each token has the row that mergekit gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surgeon.mergekit import imported
from tests.conformance import sides
from tests.conformance.environment import installed
from tests.tokens import made
from tests.tokens.made import transformers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
# Means of rows are rounded to the models' float32 before they are merged.
_BOUND = 1e-8
# mergekit adds the token to the base's tokenizer in place, and then misses it among its rows.
_BREAKS = {"a model's": "KeyError: 320"}
# Without a base model "base" is any of the models in mergekit, by the order of a set, which changes
# from run to run; here it is the first.
_ANY = ("the first model's", "an unpadded one", "a model's")
Json = dict[str, Any]
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def two(**rest: Any) -> Json:
    models = [{"model": f"${name}", "parameters": {"weight": weight}}
              for name, weight in (("first", 0.4), ("second", 0.7))]  # fmt: skip
    return {"merge_method": "linear", "models": models, "dtype": "float64", **rest}


def three(method: str, base: str, **rest: Any) -> Json:
    return two(base_model=f"${base}", parameters={"density": 1.0}, **rest) | {
        "merge_method": method
    }


TOKEN = {"kind": "model_token", "model": "$second"}
CASES: dict[str, Json] = {
    "a union": two(tokenizer_source="union"),
    "the first model's": two(tokenizer_source="base"),
    "the second model's": two(tokenizer_source="$second"),
    "a third model's": two(tokenizer_source="$base"),
    "padded": two(tokenizer={"source": "union", "pad_to_multiple_of": 64}),
    "an unpadded one": two(tokenizer={"source": "base", "pad_to_multiple_of": None}),
    "ties, a union": three("ties", "base", tokenizer_source="union"),
    "ties, the base's": three("ties", "base", tokenizer_source="base"),
    "task arithmetic": three("task_arithmetic", "base", tokenizer_source="union"),
    "slerp": {"merge_method": "slerp", "base_model": "$first", "dtype": "float64",
              "models": [{"model": "$first"}, {"model": "$second"}], "parameters": {"t": 0.3},
              "tokenizer_source": "union"},
    "zeros": two(tokenizer={"source": "union", "tokens": {"<b>": {"source": {"kind": "zero"}}}}),
    "a model's": two(tokenizer={"source": "base", "tokens": {"<b>": {"source": "$second"}}}),
    "forced": two(tokenizer={"source": "union", "tokens": {
        "<s>": {"source": "$second", "force": True}}}),
    "another token": two(tokenizer={"source": "union", "tokens": {
        "<new>": {"source": TOKEN | {"token": "<b>"}, "force": True}}}),
    "a number": two(tokenizer={"source": "union", "tokens": {
        "<new>": {"source": TOKEN | {"token_id": 261}, "force": True}}}),
    "passthrough": {"merge_method": "passthrough", "dtype": "float64", "slices": [
        {"sources": [{"model": "$first", "layer_range": [0, 2]}]},
        {"sources": [{"model": "$second", "layer_range": [1, 2]}]}],
        "tokenizer_source": "union"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three models, each with tokens of its own, and what each case says."""
    folder = tmp_path_factory.mktemp("vocabularies")
    parts = {"first": made.CORPUS[:3], "second": made.CORPUS[1:5], "base": made.CORPUS[2:4]}
    for number, (name, corpus) in enumerate(parts.items()):
        tokenizer = made.llama_bpe(60, corpus)
        tokenizer.add_tokens({"first": ["<a>"], "second": ["<b>", "<a>"], "base": []}[name])
        made.write_model(folder / name, "llama", "llama_bpe", made=tokenizer, seed=number,
                         padding=number)  # fmt: skip
    for number, config in enumerate(CASES.values()):
        (folder / f"{number}.yml").write_text(json.dumps(config).replace("$", f"{folder}/"))
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """Return what mergekit refused of each, by its output."""
    return sides.merged_whole(installed(), folder, len(CASES))


def name_of(number: int) -> str:
    return list(CASES)[number]


def vocabulary(folder: Path) -> set[str]:
    return set(transformers.AutoTokenizer.from_pretrained(folder).get_vocab())


def ours(folder: Path, number: int) -> tuple[sides.Tensors, Any]:
    found = imported(folder / f"{number}.yml")
    output = folder / f"{number}.ours"
    if not output.exists():
        sides.apply_recipe(found.recipe, found.input, output)
    return sides.read(output), transformers.AutoTokenizer.from_pretrained(output)


@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_each_gives_a_folder_whose_rows_are_its_tokens(folder: Path, number: int) -> None:
    tensors, tokenizer = ours(folder, number)
    model, _ = made.load(folder / f"{number}.ours")
    rows = len(tensors["model.embed_tokens.weight"])
    assert model.config.vocab_size == rows >= len(tokenizer)
    texts = [*made.TEXTS, "<s> a <a> b </s>"]
    assert [tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "")
            for text in texts[:-1]] == [text.replace(" ", "") for text in texts[:-1]]  # fmt: skip
    assert model.config.eos_token_id == tokenizer.convert_tokens_to_ids("</s>")


@pytest.mark.parametrize("number", range(len(CASES)), ids=list(CASES))
def test_each_gives_the_rows_of_mergekit(folder: Path, theirs: Any, number: int) -> None:
    output = folder / f"{number}.theirs"
    if theirs[str(output)] is None and name_of(number) in _ANY:
        taken = vocabulary(output)
        if taken == vocabulary(folder / "second"):
            pytest.skip("mergekit took the second model for the base")
    if name_of(number) in _BREAKS:
        assert theirs[str(output)] == _BREAKS[name_of(number)]
        return
    assert theirs[str(output)] is None
    tensors, tokenizer = ours(folder, number)
    expected = sides.read(output)
    own = tokenizer.get_vocab()
    other = transformers.AutoTokenizer.from_pretrained(output).get_vocab()
    assert own.keys() == other.keys()
    tokens = list(own)
    if name_of(number) == "passthrough":  # what a slice's only model lacks is zeros in mergekit
        tokens = list(own.keys() & vocabulary(folder / "first") & vocabulary(folder / "second"))
    for name in expected:
        found, wanted = tensors[name], expected[name]
        if name in EMBEDDINGS:
            assert found.shape == wanted.shape
            padding = list(range(len(own), len(wanted)))
            found = found[[own[token] for token in tokens] + padding]
            wanted = wanted[[other[token] for token in tokens] + padding]
        assert sides.difference(found, wanted) <= _BOUND, name
