"""The pattern language, form by form, and what it refuses."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.base import patterns
from surgeon.base.errors import PlanError, UsageError

NAMES = [
    "embed.weight",
    "h.0.attn.q.weight",
    "h.0.attn.k.weight",
    "h.0.mlp.weight",
    "h.1.attn.q.weight",
    "h.1.attn.k.weight",
    "h.1.mlp.weight",
    "h.10.mlp.weight",
    "head.weight",
    "head.bias",
    "log_scale",
]


def select(target, *, special=None, optional=False, names=NAMES):
    return patterns.select(target, names, special=special or {}, optional=optional)


def under(prefix):
    return [name for name in NAMES if name.startswith(prefix)]


def ending(*suffixes):
    return [name for name in NAMES if name.endswith(suffixes)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("head.weight", ["head.weight"]),
        ("log_scale", ["log_scale"]),
        ("head", ["head.weight", "head.bias"]),
        ("h", under("h.")),
        ("h.1", under("h.1.")),
        ("h.*.mlp", ending("mlp.weight")),
        ("h.*.mlp.weight", ending("mlp.weight")),
        ("*", NAMES),
        ("**", NAMES),
        ("*.weight", ["embed.weight", "head.weight"]),
        ("**.weight", ending(".weight")),
        ("**.attn", [n for n in NAMES if ".attn." in n]),
        ("h.**.weight", under("h.")),
        ("h.**", under("h.")),
        ("**.h.**", under("h.")),
        ("h.0.**.weight", under("h.0.")),
        ("h.0.attn.**.q.weight", ["h.0.attn.q.weight"]),
        ("head.weight.**", ["head.weight"]),
        ("**.log_scale", ["log_scale"]),
        ("head.b*", ["head.bias"]),
        ("h*.bias", ["head.bias"]),
        ("*_scale", ["log_scale"]),
        ("log_*", ["log_scale"]),
        ("h.1*.mlp", ["h.1.mlp.weight", "h.10.mlp.weight"]),
        ("h.*.attn.(q|k).weight", ending("q.weight", "k.weight")),
        ("h.0.(attn.q|mlp).weight", ["h.0.attn.q.weight", "h.0.mlp.weight"]),
        ("(head|embed)", ["embed.weight", "head.weight", "head.bias"]),
        ("h.(0|1(0|)).mlp.weight", ending("mlp.weight")),
        ("h.{i}.mlp.weight", ending("mlp.weight")),
        ("h.{i}.attn.{x}.weight", ending("q.weight", "k.weight")),
        ("{rest**}", NAMES),
        ("h.{rest**}", under("h.")),
        ("h.{rest**}.weight", under("h.")),
        ("re:h\\.\\d\\.mlp\\.weight", ["h.0.mlp.weight", "h.1.mlp.weight"]),
        ("re:.*bias", ["head.bias"]),
        ("re:(?P<a>log|lin)_scale", ["log_scale"]),
    ],
)
def test_pattern_selects(pattern, expected):
    assert select(pattern) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "weight",
        "hea",
        "head.weight.x",
        "h.*.weight",
        "head.*.weight",
        "embed.weigh?",
        "re:head",
        "re:weight",
        "HEAD",
        "h.[01].mlp",
        "**scale.weight",
    ],
)
def test_pattern_selects_nothing(pattern):
    with pytest.raises(PlanError, match="no tensor matches"):
        select(pattern)


def test_literal_dots_are_dots():
    assert select("a.b", names=["axb", "a.b"]) == ["a.b"]


def test_names_with_odd_characters_are_literal():
    names = ["a+b.w", "a b.w", "a$b.w", "a[0].w", "a^b"]
    assert [select(name, names=names) for name in names] == [[name] for name in names]


def test_module_name_is_no_prefix_of_a_longer_name():
    assert select("h.1", names=["h.1.w", "h.10.w", "h.1x"]) == ["h.1.w"]


def test_list_is_a_union_in_the_order_of_the_names():
    assert select(["log_scale", "embed", "head.bias"]) == ["embed.weight", "head.bias", "log_scale"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (["**", "!h", "!re:.*\\.bias"], ["embed.weight", "head.weight", "log_scale"]),
        (["!h", "**"], ["embed.weight", "head.weight", "head.bias", "log_scale"]),
        (["head", "!head.bias"], ["head.weight"]),
        (["head", "!@vectors"], ["head.weight"]),
        (["@vectors"], ["head.bias", "log_scale"]),
        (["@vectors", "!head"], ["log_scale"]),
        (["@new", "embed"], ["embed.weight", "head.weight"]),
    ],
)
def test_exclamation_mark_removes(target, expected):
    special = {"@vectors": ["head.bias", "log_scale"], "@new": ["head.weight"]}
    assert select(target, special=special) == expected


def test_removing_everything_is_an_error():
    with pytest.raises(PlanError, match="removes everything"):
        select(["head", "!head"])


def test_every_pattern_without_a_match_is_listed():
    with pytest.raises(PlanError) as caught:
        select(["heed", "embed", "!h.7"])
    starts = ("no tensor matches 'heed'; did you mean 'head'", "no tensor matches 'h.7'; ")
    assert len(caught.value.problems) == 2
    assert all(map(str.startswith, caught.value.problems, starts))


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("head.wieght", "; did you mean 'head.weight'?"),
        ("head.biass", "; did you mean 'head.bias'"),
        ("embd", "'embed'"),
        ("logscale", "; did you mean 'log_scale'?"),
        ("re:emb.d", r"and 'embed' is a module; '\..*' at the end matches what is under it"),
    ],
)
def test_nothing_matched_names_the_nearest(pattern, hint):
    with pytest.raises(PlanError) as caught:
        select(pattern)
    assert str(caught.value).startswith(f"no tensor matches '{pattern}'")
    assert hint in str(caught.value)


def test_nothing_near_gives_no_hint():
    with pytest.raises(PlanError) as caught:
        select("zzzzzz")
    assert str(caught.value) == "no tensor matches 'zzzzzz'"


def test_optional_pattern_may_match_nothing():
    assert select("no.such", optional=True) == []


@pytest.mark.parametrize("word", ["@new", "@vectors"])
def test_special_word_that_holds_nothing_says_why(word):
    with pytest.raises(PlanError, match=f"'{word}' matches nothing: "):
        select(word, special={"@new": [], "@vectors": []})


# --- Captures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "destination", "expected"),
    [
        ("a", "a", "b", "b"),
        ("a", "a.w.x", "b", "b.w.x"),
        ("h.{i}", "h.3.mlp.w", "layers.{i}", "layers.3.mlp.w"),
        ("h.{i}.{rest**}", "h.3.mlp.w", "layers.{i}.{rest}", "layers.3.mlp.w"),
        ("h.{i}.{rest**}", "h.3.mlp.w", "layers.{i}.{rest**}", "layers.3.mlp.w"),
        ("h.{i}.{rest**}", "h.3.w", "h.{i-1}.{rest}", "h.2.w"),
        ("h.{i}.{rest**}", "h.3.w", "h.{i+1}.{rest}", "h.4.w"),
        ("h.{i}.{rest**}", "h.3.w", "h.{ i + 1 }.{rest}", "h.4.w"),
        ("h.{i}.w", "h.7.w", "h.{i*2}.w", "h.14.w"),
        ("h.{i}.w", "h.7.w", "h.{i//2}.{i%2}.w", "h.3.1.w"),
        ("h.{i}.w", "h.7.w", "h.{(i+1)*2}.w", "h.16.w"),
        ("g.{i}.{j}", "g.2.3", "f.{i*4+j}", "f.11"),
        ("block{i}_{j}.w", "block2_3.w", "blocks.{i}.{j}.w", "blocks.2.3.w"),
        ("{x}.w", "a.w", "{x}.{x}.w", "a.a.w"),
        ("h.{i}.(q|k).w", "h.0.q.w", "x.{i}", "x.0"),
        ("re:h\\.(?P<i>\\d+)\\.(?P<rest>.*)", "h.3.w", "l.{i+1}.{rest}", "l.4.w"),
        ("h.{i}", "h.007.w", "l.{i}", "l.007.w"),
        ("h.{i}", "h.007.w", "l.{i+0}", "l.7.w"),
        ("**.w", "a.b.w", "only", "only"),
    ],
)
def test_capture_is_written_on_the_other_side(pattern, name, destination, expected):
    captures = patterns.match(pattern, name)
    assert patterns.expand(destination, captures) == expected


def test_capture_used_twice_must_be_the_same_twice():
    assert patterns.match("{x}.to.{x}", "a.to.a") is not None
    assert patterns.match("{x}.to.{x}", "a.to.b") is None


def test_one_capture_takes_one_segment_only():
    assert patterns.match("h.{i}.w", "h.0.mlp.w") is None


def test_many_capture_takes_at_least_one_segment():
    assert patterns.match("h.{rest**}", "h") is None
    assert patterns.match("a.{rest**}.w", "a.w") is None


@pytest.mark.parametrize(
    ("destination", "problem"),
    [
        ("h.{j}", "neither a capture nor arithmetic"),
        ("h.{i-4}", "is -1"),
        ("h.{word+1}", "not a number"),
        ("h.{i//0}", "division by zero"),
        ("h.{i%0}", "division by zero"),
        ("h.{i**9}", "neither a capture nor arithmetic"),
        ("h.{i/2}", "neither a capture nor arithmetic"),
        ("h.{__import__('os')}", "neither a capture nor arithmetic"),
        ("h.{i.real}", "neither a capture nor arithmetic"),
        ("h.{True}", "neither a capture nor arithmetic"),
        ("h.{-i}", "neither a capture nor arithmetic"),
        ("h.{'a'}", "neither a capture nor arithmetic"),
    ],
)
def test_impossible_destination_is_a_plan_error(destination, problem):
    with pytest.raises(PlanError, match=problem):
        patterns.expand(destination, {"i": "3", "word": "mlp"})


# --- Malformed patterns ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "a.(b", "a.b)", "a|b", ")(", "(a", "a.{b", "a.}b", "{}", "{1}", "{a b}", "{a*}", "{a+1}",
        "re:(", "re:[", "re:(?P<a>x)(?P<a>y)", "re:*", "!re:(", "@old", "@vector", "@",
    ],
)  # fmt: skip
def test_malformed_pattern_is_refused(pattern):
    with pytest.raises(UsageError) as caught:
        patterns.check(pattern)
    (line,) = caught.value.problems
    assert line.startswith(f"'{pattern.removeprefix('!')}'")


@pytest.mark.parametrize("word", ["@vector", "@vektors", "@mew"])
def test_unknown_special_word_names_the_nearest(word):
    with pytest.raises(UsageError, match=r"did you mean '@(vectors|new)'"):
        patterns.check(word)


@pytest.mark.parametrize(
    "destination", ["a.*", "**", "a.(b|c)", "{", "a.{b", "a}", "{}", "{i+}", "{1 2}", "a|b"]
)
def test_malformed_destination_is_refused(destination):
    with pytest.raises(UsageError):
        patterns.check_destination(destination)


@given(st.text(alphabet="ab.*(){}|!@r:\\", max_size=12))
def test_any_text_is_a_pattern_or_a_usage_error(text):
    try:
        patterns.check(text)
    except UsageError:
        return
    patterns.match(text.removeprefix("!"), "a.b.a")


@given(st.text(alphabet="ab.*(){}|+-1/%", max_size=12))
def test_any_text_is_a_destination_or_an_error(text):
    try:
        patterns.check_destination(text)
        patterns.expand(text, {"a": "1", "b": "x"})
    except (UsageError, PlanError):
        return


@pytest.mark.parametrize(
    "pattern",
    [
        ".".join(["**"] * 40) + ".x",
        "*" * 40 + "x",
        "**.a.**.a.**.a.**.a.**.a.*y.z",
        "**a**a**a**a**a*y.z",
        "*a*a*a*a*a*a.z",
        "{a**}.{b**}.{c**}.{d**}.{e**}.*.z",
        "(a|a.a|**)" * 4 + "*.z",
    ],
)
def test_pathological_patterns_do_not_hang(pattern):
    name = ".".join(["a"] * 24) + ".y"
    start = time.perf_counter()
    assert patterns.match(pattern, name) is None
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "pattern",
    ["re:(a+)+b", "re:" + "(a|a)" * 30 + "b", "re:(a|aa)+b", "re:(.*)*b", "re:.*a.*a.*a.*a.*b",
     "*a" * 60, ".".join(["**", "a"] * 40) + ".b", "".join(f"{{{c}**}}." for c in "cdefghij") + "b",
     "**a" * 40 + "b"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a" * 4000, "a." * 2000, "a\n" * 2000, "a" * 60])
def test_no_name_takes_long(pattern, name):
    start = time.perf_counter()
    assert patterns.match(pattern, name) is None or pattern == "*a" * 60
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "pattern", ["re:(?=(a+)+b)a*", r"re:(a+)+\1", "re:((a{1,99}){1,99}){1,99}"]
)
def test_what_has_no_bound_is_refused_by_name(pattern):
    with pytest.raises(UsageError, match=r"takes too long to match, and ") as caught:
        patterns.check(pattern)
    assert str(caught.value).startswith(f"'{pattern}' ")


def test_what_is_too_long_for_a_pattern_is_refused_by_name():
    assert patterns.match(r"re:(?!b).*a.*\.c", "a.c") is not None
    with pytest.raises(UsageError, match="takes too long to match a name of 5,000 characters"):
        patterns.match(r"re:(?!b).*a.*\.c", "a" * 5000)


@pytest.mark.parametrize("pattern", ["**", "**.w", "{rest**}", "a.{x}.w", "*.*.w"])
def test_a_newline_in_a_name_is_a_character_as_others(pattern):
    assert patterns.match(pattern, "a.b\nc.w") is not None


def test_neighbouring_wildcards_are_one():
    assert select("**.**.**.bias") == select("**.bias")
    assert select("h.**.**") == select("h.**")


def test_selecting_is_linear_in_the_names():
    names = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(50_000)]
    start = time.perf_counter()
    assert len(select(["model.layers.{i}.**.weight", "!model.layers.7"], names=names)) == 49_999
    assert time.perf_counter() - start < 2


# --- What comes under a module --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "name", "expected"),
    [
        ("fc", "fc.weight", "weight"),
        ("fc.weight", "fc.weight", None),
        ("**.weight", "fc.weight", None),
        ("model", "model.fc.weight", "fc.weight"),
        (["model", "model.fc"], "model.fc.weight", "weight"),
        (["model", "model.fc.weight"], "model.fc.weight", None),
        (["fc", "!fc.bias"], "fc.weight", "weight"),
        ("@vectors", "fc.bias", None),
    ],
)
def test_under_says_what_follows_the_module(target, name, expected):
    assert patterns.under(target, name) == expected
