"""Models brought to one vocabulary: rows follow the strings of their tokens."""

from itertools import chain

import pytest
import torch

from surgeon.base.errors import PlanError
from tests.network import read, write, write_tokenizer

OWN, OTHER, THIRD = "?abc", "?bdca", "?ez"


def rows_of(tokens, add=0):
    """A row that says its token, and its model's number."""
    return torch.tensor([[float(ord(token)), float(add)] for token in tokens])


@pytest.fixture
def merge(bench):
    write_tokenizer(bench.folder, *OWN)
    bench.given({"embed.weight": rows_of(OWN, 1)})
    for number, (name, tokens) in enumerate((("other", OTHER), ("third", THIRD)), 2):
        (bench.folder / name).mkdir()
        write_tokenizer(bench.folder / name, *tokens)
        place = write(
            bench.folder / name / "m.safetensors", {"embed.weight": rows_of(tokens, number)}
        )
        bench.models[name] = str(place)
    return bench


def step(source, **rest):
    return {"op": "vocabulary", "from": source, "target": "embed.weight", **rest}


def rows_made(bench, *steps, model=None):
    """The rows of the state, or of a model, after steps."""
    if model is None:
        return bench.operate(*steps)["embed.weight"]
    moved = {"op": "rename", "from": "embed.weight", "to": "was"}
    copied = {"op": "copy", "from": "embed.weight", "to": "embed.weight", "model": model}
    return bench.operate(*steps, moved, copied)["embed.weight"]


@pytest.mark.parametrize("model", [None, "other", "third"])
def test_union_has_the_inputs_tokens_first_and_a_row_for_each(merge, model):
    found = rows_made(merge, step("union"), model=model)
    every = list(dict.fromkeys(chain(OWN, OTHER, THIRD)))
    mine = {None: OWN, "other": OTHER, "third": THIRD}
    number = {None: 1, "other": 2, "third": 3}
    for row, token in zip(found, every, strict=True):
        owner = model if token in mine[model] else next(m for m in mine if token in mine[m])
        assert row.tolist() == [ord(token), number[owner]], token


def test_what_the_input_lacks_is_the_mean_of_those_that_have_it(merge):
    write_tokenizer(merge.folder / "third", *"?dz")
    write(merge.folder / "third/m.safetensors", {"embed.weight": rows_of("?dz", 3)})
    found = rows_made(merge, step("union"))
    assert found[4].tolist() == [ord("d"), 2.5]


def test_a_models_order_is_taken(merge):
    found = rows_made(merge, step("other", models=["other"]))
    assert found.tolist() == [[63, 1], [98, 1], [100, 2], [99, 1], [97, 1]]


def test_a_merge_after_it_finds_the_same_token_in_the_same_row(merge):
    average = {"op": "average", "models": ["other"], "target": "embed.weight"}
    found = rows_made(merge, step("union", models=["other"]), average)
    assert found.tolist() == [[63, 1.5], [97, 1.5], [98, 1.5], [99, 1.5], [100, 2]]


@pytest.mark.parametrize(
    ("missing", "row"),
    [
        ({"init": "zeros"}, [0, 0]),
        ({"init": "mean"}, [(63 + 97 + 98 + 99) / 4, 1]),
        ({"init": "subtokens"}, [63, 1]),
        ({"tokens": {"d": {"model": "other", "token": "a"}}}, [97, 2]),
        ({"tokens": {"d": {"zeros": True}}}, [0, 0]),
        ({"tokens": {"a": {"model": "third", "token": "z", "always": True}}}, [100, 2]),
    ],
)
def test_missing_says_what_a_token_gets(merge, missing, row):
    found = rows_made(merge, step("union", missing=missing))
    torch.testing.assert_close(found[4], torch.tensor(row, dtype=torch.float32))
    if "always" in str(missing):
        assert found[1].tolist() == [122, 3]


def test_a_tokenizer_that_no_model_has_needs_to_be_told(merge):
    (merge.folder / "wanted").mkdir()
    write_tokenizer(merge.folder / "wanted", *"?bx")
    with pytest.raises(PlanError, match=r"no model has 'x'; missing.otherwise"):
        merge.plan(step("wanted"))
    found = rows_made(merge, step("wanted", missing={"otherwise": "zeros"}))
    assert found.tolist() == [[63, 1], [98, 1], [0, 0]]


def test_rows_are_padded_with_the_mean(merge):
    found = rows_made(merge, step("input", pad_to_multiple_of=3))
    torch.testing.assert_close(found[4:], found[:4].mean(0).expand(2, 2))


def test_what_is_equal_stays(merge):
    found = merge.operate(step("input", models=[]))
    assert found["embed.weight"].tolist() == read(merge.input)["embed.weight"].tolist()
    assert not found.lineage("embed.weight")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"missing": {"tokens": {"d": {"model": "nobody"}}}}, "'nobody' is none of the models"),
        ({"missing": {"tokens": {"d": {"model": "input"}}}}, "the input has no 'd'"),
        ({"from": "nowhere"}, "'nowhere' is none of 'input', 'union', 'other', 'third'"),
        ({"models": ["nobody"]}, "there is no model 'nobody'"),
    ],
)
def test_what_cannot_be_is_refused(merge, change, said):
    with pytest.raises(PlanError, match=said):
        merge.plan(step("union") | change)
