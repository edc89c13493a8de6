"""What a search varies: the words for it, items of variables, values in their places."""

from __future__ import annotations

from typing import Any

import pytest

from surgeon.base.errors import UsageError
from surgeon.trials.varied import Choice, Range, expand, own_value, parse, with_values

VARIABLES = {"t": 0.5, "shares": [1, 2], "by": {"a": 1, "b": None}, "open": None}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("0:1", Range(0, 1)),
        ("-1e-3:.5:log", None),
        ("1e-4:1:log", Range(1e-4, 1, is_log=True)),
        ("4:64:int", Range(4, 64, is_whole=True)),
        ("4:64:4:int", Range(4, 64, 4, is_whole=True)),
        ("1:64:int:log", Range(1, 64, is_whole=True, is_log=True)),
        ("0:1:0.25", Range(0, 1, 0.25)),
        ((0, 2), Range(0, 2)),
        ('["sum", "count"]', Choice(("sum", "count"))),
        ([True, 1], Choice((True, 1))),
    ],
)
def test_values_are_ranges_or_choices(values: Any, expected: object) -> None:
    if expected is None:
        with pytest.raises(UsageError, match=r"vary t=.*: log is for numbers above 0"):
            parse("t", values)
    else:
        assert parse("t", values) == expected


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ("0.5", "give LOW:HIGH"),
        ("1:0", "1 is not less than 0"),
        ("0:x", "'x' is not a number"),
        ("0:inf", "'inf' is not finite"),
        ("0:1:2", "leaves one value"),
        ("0:1:0.3", "no whole number of steps"),
        ("0:1.5:int", "whole numbers"),
        ("1:2:0.5:log", "without a step"),
        ("0:1:2:3", "give LOW:HIGH"),
        ("[1]", "two different choices"),
        ("[1, 1]", "two different choices"),
        ("[1", "is not a JSON list"),
    ],
)
def test_what_is_no_range_is_told(values: str, what: str) -> None:
    with pytest.raises(UsageError, match=f"^vary t=.*{what}"):
        parse("t", values)


def test_items_are_varied_one_by_one() -> None:
    found = expand({"shares.*": "0:1", "by.a": "0:1", "t": "0:1"}, VARIABLES, "recipe")
    assert [one.label for one in found] == ["shares.0", "shares.1", "by.a", "t"]
    made = with_values(VARIABLES, found, {one.label: 9 + i for i, one in enumerate(found)})
    assert made == {"t": 12, "shares": [9, 10], "by": {"a": 11, "b": None}, "open": None}
    assert VARIABLES["shares"] == [1, 2]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tt", "no variable 'tt'; did you mean 't'"),
        ("open.*", r"such as --set open=\[1,1,1\]"),
        ("t.0", "has no items"),
        ("shares.2", r"no item '2'; there are \[0, 1\]"),
        ("by.c", "no item 'c'"),
    ],
)
def test_what_a_recipe_has_no_place_for_is_told(name: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        expand({name: "0:1"}, VARIABLES, "recipe")


def test_nothing_is_varied_twice() -> None:
    with pytest.raises(UsageError, match=r"'shares.1' is varied already"):
        expand({"shares.*": "0:1", "shares.1": "0:2"}, VARIABLES, "recipe")


@pytest.mark.parametrize(
    ("values", "own"),
    [("0:1", 0.5), ("0:1:0.25", 0.5), ("0:1:0.2", None), ("0:4:int", None), ("[0.5, 1]", 0.5)],
)
def test_a_recipes_own_value_counts_where_it_is_among_those_varied(
    values: str, own: float | None
) -> None:
    (one,) = expand({"t": values}, VARIABLES, "recipe")
    assert own_value(one, VARIABLES) == own
