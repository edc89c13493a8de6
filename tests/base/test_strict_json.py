"""The one reader of JSON, and of files: what is bounded, and that nothing is waited for."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.base.strict_json import DEEPEST, parse_json, parse_object, read_json

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES.filter(lambda leaf: leaf not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.slow
@given(VALUES)
def test_what_is_json_is_read_as_json_reads_it(value):
    try:
        text = json.dumps(value).encode()
        value_in_utf8 = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert parse_json(text) == parse_json(value_in_utf8) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"1" + b"0" * 400, "10000000000000000000... is beyond the largest number"),
        (b'{"a": [-1' + b"0" * 309 + b"]}", "is beyond the largest number"),
        (b"9" * 5000, "is beyond the largest number"),
        (b"[1e400]", "1e400 is beyond the largest number"),
        (b"[" * 101 + b"]" * 101, "nested too deeply"),
        (b'["[",' * 101 + b"1" + b"]" * 101, "nested too deeply"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is there twice in one object"),
        (b'[{"a": 1, "a": 2}]', "'a' is there twice in one object"),
        (b"[NaN]", "NaN is not JSON"),
        (b"\xef\xbb\xbf{}", "line 1, column 1"),
        (b'["\\ud800"]', "half of a surrogate pair"),
        (b'["\xff"]', "not UTF-8 at byte 2"),
        (b"{", "line 1, column 2"),
    ],
)
def test_what_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_json(text)


@pytest.mark.parametrize(
    "value",
    [
        10**308,
        "9" * 400,
        {"\U0001f600 [[[": "]" * 300 + '"\\'},
        json.loads("[" * DEEPEST + "]" * DEEPEST),
    ],
)
def test_what_only_looks_like_it_is_read(value):
    assert parse_json(json.dumps(value).encode()) == value


def test_infinities_are_read_where_they_are_allowed():
    assert parse_json(b'{"a": [-Infinity, 1]}', allow_infinite=True) == {"a": [-float("inf"), 1]}


def test_an_object_starts_with_its_brace():
    with pytest.raises(ValueError, match="should start"):
        parse_object(b" {}")


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_json(tmp_path / "a.json")


def test_a_terabyte_is_refused_by_its_size(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="longer than 25,000,000 bytes"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("item", ["{}", "[]", '""', "7"])
def test_what_becomes_gigabytes_is_refused(item):
    text = f"[{f'{item},' * 5_000_000}{item}]".encode()
    with pytest.raises(ValueError, match="holds more than 5,000,000 values"):
        parse_json(text)
