"""Regular expressions of data: Python's own answers, in bounded time."""

import re
import time

import pytest

from surgeon.base import bounded

PATTERNS = [
    "q_proj", r"(.*\.)?(q|k)_proj", r"layers\.\d+\.q", r"layers\.[0-4]\.q", r"^layers.*q$",
    "a{2,3}b?", r"[^.]+", r"\w+\.\w+?", r"(a|b)*c", "", r".*\.(?:up|down)", "x*?y", r"\S+\d\D",
]  # fmt: skip
TEXTS = ["q_proj", "model.layers.3.q_proj", "layers.3.q", "layers.7.q", "aab", "aaab", "abc", "",
         "y", "xxy", "model.mlp.up", "c", "a.b", "layers.12.q", "m9x"]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_answers_are_pythons(pattern):
    found = [text for text in TEXTS if bounded.fullmatch(pattern, text)]
    assert found == [text for text in TEXTS if re.fullmatch(pattern, text)]


def test_time_does_not_explode():
    start = time.monotonic()
    assert not bounded.fullmatch("(a+)+(a|aa)*(.*)*b", "a" * 200)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)a", "(?i:a)", "a" * 3000])
def test_what_is_not_followed_is_an_error(pattern):
    with pytest.raises(ValueError, match=r".+"):
        bounded.fullmatch(pattern, "aa")
