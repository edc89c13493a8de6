"""Regions: cutting, spelling and reading them."""

from __future__ import annotations

from itertools import combinations_with_replacement, product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.base import regions
from surgeon.base.regions import (
    Region,
    count,
    intersection,
    parsed,
    remainder,
    reshaped,
    spelled,
    split_block,
    whole,
    without,
)

SHAPES = st.lists(st.integers(1, 6), min_size=0, max_size=4)


@st.composite
def boxes(draw: st.DrawFn, shape: list[int]) -> Region:
    starts = [draw(st.integers(0, size - 1)) for size in shape]
    stops = [draw(st.integers(start + 1, size)) for start, size in zip(starts, shape, strict=True)]
    return tuple(zip(starts, stops, strict=True))


def painted(shape: list[int], regions: list[Region]) -> np.ndarray:
    """How many of the regions cover each element."""
    covered = np.zeros(shape, int)
    for region in regions:
        covered[tuple(slice(*side) for side in region)] += 1
    return covered


@settings(deadline=None)
@given(st.data(), SHAPES)
def test_without_partitions_what_is_left(data: st.DataObject, shape: list[int]) -> None:
    region, taken = data.draw(boxes(shape)), data.draw(boxes(shape))
    expected = painted(shape, [region]) * (1 - painted(shape, [taken]))
    np.testing.assert_array_equal(painted(shape, without(region, taken)), expected)


@settings(deadline=None)
@given(st.data(), SHAPES)
def test_remainder_covers_each_element_left_once(data: st.DataObject, shape: list[int]) -> None:
    taken = data.draw(st.lists(boxes(shape), max_size=4))
    expected = (painted(shape, taken) == 0).astype(int)
    left = remainder(shape, taken)
    np.testing.assert_array_equal(painted(shape, left), expected)
    assert sum(count(region) for region in left) == expected.sum()
    assert left == sorted(left)


@settings(deadline=None)
@given(st.data(), SHAPES)
def test_intersection_is_what_both_cover(data: st.DataObject, shape: list[int]) -> None:
    a, b = data.draw(boxes(shape)), data.draw(boxes(shape))
    shared = intersection(a, b)
    expected = painted(shape, [a]) * painted(shape, [b])
    np.testing.assert_array_equal(painted(shape, [shared] if shared is not None else []), expected)


@settings(deadline=None)
@given(st.data(), SHAPES)
def test_what_is_spelled_is_parsed_back(data: st.DataObject, shape: list[int]) -> None:
    region = data.draw(boxes(shape))
    name, slices = split_block(spelled("a.b.weight", region, shape))
    assert name == "a.b.weight"
    assert parsed(slices, shape) == region


@pytest.mark.parametrize(
    ("region", "shape", "text"),
    [
        (((0, 8), (0, 3)), (8, 3), "w"),
        (((7, 8), (0, 3)), (8, 3), "w[7:8]"),
        (((0, 8), (1, 3)), (8, 3), "w[:,1:3]"),
        (((7, 8), (1, 3)), (8, 3), "w[7:8,1:3]"),
        ((), (), "w"),
    ],
)
def test_regions_are_spelled_with_slices(region: Region, shape: tuple[int, ...], text: str) -> None:
    assert spelled("w", region, shape) == text


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        (None, ((0, 8), (0, 3))),
        ("2:", ((2, 8), (0, 3))),
        (":5", ((0, 5), (0, 3))),
        (":", ((0, 8), (0, 3))),
        (" 1 : 2 , : ", ((1, 2), (0, 3))),
        (":,2:3", ((0, 8), (2, 3))),
    ],
)
def test_slices_may_leave_out_their_ends(slices: str | None, expected: Region) -> None:
    assert parsed(slices, (8, 3)) == expected


@pytest.mark.parametrize(
    ("slices", "problem"),
    [
        ("3", "'3' is not a slice"),
        ("-1:", "'-1:' is not a slice"),
        ("1:2:3", "'1:2:3' is not a slice"),
        ("", "'' is not a slice"),
        ("3:3", r"\[3:3\] is empty or outside of dimension 0, which has 8 entries"),
        ("5:2", "is empty or outside"),
        ("7:9", "is empty or outside"),
        ("8:", "is empty or outside"),
        (":0", "is empty or outside"),
        (":,4:", "outside of dimension 1, which has 3 entries"),
        (":,:,:", r"3 slices for a tensor of shape \(8, 3\)"),
    ],
)
def test_slices_that_select_nothing_are_errors(slices: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parsed(slices, (8, 3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fc.weight", ("fc.weight", None)),
        ("fc.weight[7:8]", ("fc.weight", "7:8")),
        ("fc.weight[:, 64:96]", ("fc.weight", ":, 64:96")),
        ("fc[0]", ("fc", "0")),
        ("fc[a]", ("fc[a]", None)),
        ("[1:2]", ("[1:2]", None)),
    ],
)
def test_blocks_are_split_into_name_and_slices(text: str, expected: tuple[str, str | None]) -> None:
    assert split_block(text) == expected


@settings(deadline=None)
@given(SHAPES)
def test_whole_has_every_element(shape: list[int]) -> None:
    assert count(whole(shape)) == prod(shape) == len(list(product(*map(range, shape))))
    assert remainder(shape, [whole(shape)]) == []


def test_of_an_empty_tensor_nothing_remains() -> None:
    assert remainder((0, 3), []) == []
    assert remainder((0, 3), [whole((0, 3))]) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((2, 3, 4), (24,)),
        ((2, 3, 4), (6, 4)),
        ((2, 3, 4), (2, 12)),
        ((6, 4), (2, 12)),
        ((6, 4), (3, 2, 1, 4)),
        ((1, 6, 1), (3, 2)),
        ((4,), (1, 4, 1)),
        ((1,), ()),
    ],
)
def test_reshaped_regions_hold_the_same_elements(
    old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    numbers = np.arange(int(np.prod(old)))
    sides = [[(a, b) for a in range(size) for b in range(a + 1, size + 1)] for size in old]
    for region in product(*sides):
        chosen = numbers.reshape(old)[tuple(slice(*side) for side in region)].reshape(-1)
        parts = [
            numbers.reshape(new)[tuple(slice(*side) for side in part)].reshape(-1)
            for part in reshaped(region, old, new)
        ]
        assert sorted(np.concatenate(parts)) == chosen.tolist()


def test_boxes_hold_a_window_in_order() -> None:
    numbers = np.arange(24).reshape(2, 3, 4)
    for start, stop in combinations_with_replacement(range(25), 2):
        found = list(regions.boxes(numbers.shape, start, stop))
        parts = [numbers[tuple(slice(*side) for side in box)].reshape(-1) for box in found]
        assert [number for part in parts for number in part] == list(range(start, stop))
        assert len(found) <= 5
