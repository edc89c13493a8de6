"""Regular expressions of data: Python's own answers, in bounded time."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.base import bounded
from surgeon.base.regex_cost import PARSER

PATTERNS = [
    "q_proj", r"(.*\.)?(q|k)_proj", r"layers\.\d+\.q", r"layers\.[0-4]\.q", r"^layers.*q$",
    "a{2,3}b?", r"[^.]+", r"\w+\.\w+?", r"(a|b)*c", "", r".*\.(?:up|down)", "x*?y", r"\S+\d\D",
    r"(l|m).*\1", "(?=a)a+b", "(?i)LAYERS.*",
]  # fmt: skip
TEXTS = ["q_proj", "model.layers.3.q_proj", "layers.3.q", "layers.7.q", "aab", "aaab", "abc", "",
         "y", "xxy", "model.mlp.up", "c", "a.b", "layers.12.q", "m9x"]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_answers_are_pythons(pattern):
    found = [text for text in TEXTS if bounded.fullmatch(pattern, text)]
    assert found == [text for text in TEXTS if re.fullmatch(pattern, text)]


PARTS = st.sampled_from(
    ["a", "b", "ab", ".", r"\.", "[^.]", r"\w", r"\d", "[^.]+", ".*?", "a?", "a+"]
)
REPEATS = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "{0,12}"])
EXPRESSIONS = st.recursive(
    PARTS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{'|'.join(pair)})"),
        st.tuples(inner, REPEATS).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        inner.map(lambda text: f"(?P<g>{text})" if "?P" not in text else text),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, st.text("aab.1\n", max_size=9), st.sampled_from([0, re.DOTALL]))
def test_what_is_followed_captures_what_python_captures(pattern, text, flags):
    try:
        parsed, expected = PARSER.parse(pattern, flags), re.compile(pattern, flags)
        found = bounded._Program(parsed).fullmatch(text)
    except (ValueError, re.error):
        return
    wanted = expected.fullmatch(text)
    assert (found and found.groupdict()) == (wanted and wanted.groupdict())


@given(EXPRESSIONS, st.sampled_from(["a" * 60, "a." * 30, "ab1" * 20, "a" * 59 + "!"]))
def test_pythons_engine_gets_what_is_fast_alone(pattern, text):
    try:
        match = bounded.compiled(pattern)
        start = time.perf_counter()
        match(text)
    except (ValueError, re.error):
        return
    assert time.perf_counter() - start < 1


def test_time_does_not_explode():
    start = time.monotonic()
    assert not bounded.fullmatch("(a+)+(a|aa)*(.*)*b", "a" * 200)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "pattern",
    ["(", r"(a+)+\1", "(?=(a+)+b)a", "(?i:(a+)+)", "(?i)(a+)+", "a" * 3000, "(a{99})+" * 9],
)
def test_what_is_not_followed_is_an_error(pattern):
    with pytest.raises(ValueError, match=r".+"):
        bounded.fullmatch(pattern, "aa")
