"""Hints in errors: the nearest words, and no more of them than anybody reads."""

from __future__ import annotations

import pytest
import torch

from surgeon.base import errors
from surgeon.base.errors import Hints, SurgeonError, did_you_mean, listed, nearest
from surgeon.surgery import opened


def test_the_nearest_word_is_named():
    assert did_you_mean("clasifier", ["classifier", "embed"]) == "; did you mean 'classifier'?"
    assert did_you_mean("zzz", ["classifier", "embed"]) == ""


def test_words_that_are_clearly_further_away_are_not():
    assert nearest("fc.weigth", ["fc.weight", "fc2.weights", "fc.bias"]) == ["fc.weight"]


def test_many_words_get_hints_for_the_first_ones_alone():
    hint = Hints(["classifier"])
    hints = [hint("clasifier") for _ in range(100)]
    assert hints[:10] == ["; did you mean 'classifier'?"] * 10
    assert set(hints[10:]) == {""}


# What a forgotten prefix does to every name of a model: nothing may take a search for each.
EVERY_NAME = {
    "match": [{"op": "match", "shapes": "shapes.json"}],
    "add": [{"op": "add", "target": "{name**}", "from": "model.{name}", "model": "other"}],
    "a target": [
        {"op": "cast", "target": [f"model.layer.{i}" for i in range(300)], "dtype": "F16"}
    ],
    "variables": [{"op": "rename", "from": f"${{v{i}}}", "to": "x"} for i in range(300)],
}


@pytest.mark.parametrize("case", EVERY_NAME)
def test_no_mistake_takes_a_search_for_each_name(case, bench, monkeypatch):
    searched = []
    monkeypatch.setattr(errors, "nearest", lambda *_: searched.append(1) or [])
    tensors = {f"layers.{i}.weight": torch.zeros(1) for i in range(300)}
    bench.given(tensors, other=tensors)
    shapes = ", ".join(f'"model.layers.{i}.weight": [1]' for i in range(300))
    (bench.folder / "shapes.json").write_text(f"{{{shapes}}}")
    with pytest.raises(SurgeonError) as caught:
        bench.plan(*EVERY_NAME[case])
    assert len(caught.value.problems) >= 300
    assert 0 < len(searched) <= 10


def test_keys_that_are_there_twice_are_found_at_once(bench):
    twice = ", ".join(f'"k{i % 50_000}": 1' for i in range(100_000))
    (bench.folder / "recipe.json").write_text(f'{{"surgeon": 1, "steps": [], "vars": {{{twice}}}}}')
    from surgeon.recipe import load

    with pytest.raises(SurgeonError, match=r"'k0', 'k1', .* and 49995 more is there twice"):
        load(str(bench.folder / "recipe.json"), {})


def test_groups_of_training_share_their_hints(bench, monkeypatch):
    searched = []
    monkeypatch.setattr(errors, "nearest", lambda *_: searched.append(1) or [])
    bench.given({f"model.layers.{i}.weight": torch.zeros(1) for i in range(100)})
    groups = [{"name": f"g{i}", "params": [f"layers.{i}"], "lr": 0.1} for i in range(100)]
    recipe = bench.recipe(training={"stages": [{"name": "s", "groups": groups}]})
    with pytest.raises(SurgeonError) as caught, opened(recipe, str(bench.input), {}):
        pass
    assert len(caught.value.problems) == 100
    assert 0 < len(searched) <= 10


def test_many_names_that_would_become_one_are_counted(bench):
    bench.given({f"layers.{i}.weight": torch.zeros(1) for i in range(100)})
    with pytest.raises(SurgeonError) as caught:
        bench.plan({"op": "rename", "from": "layers.{i}.weight", "to": "x"})
    (problem,) = caught.value.problems
    assert problem.endswith("'layers.12.weight' and 95 more would all be 'x'")


def test_what_is_long_is_told_by_its_ends():
    assert listed(["a", "b" * 1000 + "c"]) == (
        f"'a', {'b' * 150!r}...{'b' * 149 + 'c'!r} (1,001 characters)"
    )
    assert did_you_mean("a" * 100_000, ["a" * 99_999]) == ""
