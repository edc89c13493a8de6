"""URLs are shown without what is secret, and taken as their schemes have it."""

import pytest

import surgeon
from surgeon.base.errors import UsageError
from surgeon.recipe import load
from surgeon.remote.locations import bare, hidden_of, shown, taken, without_hidden
from surgeon.remote.paths import path_of


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://user:pw@host:8/a/x.pt?X-Amz-Signature=abc#model", "https://host:8/a/x.pt#model"),
        ("HTTPS://host/x.pt?a=b", "https://host/x.pt"),
        ("s3://bucket/model/", "s3://bucket/model/"),
        ("hf://org/name@refs/pr/1/x.pt", "hf://org/name@refs/pr/1/x.pt"),
        ("a folder/x.pt?really", "a folder/x.pt?really"),
    ],
)
def test_what_is_secret_is_not_shown(location, expected):
    assert shown(location) == expected
    assert taken(location) == expected


def test_who_fetches_finds_what_is_hidden():
    path = path_of("https://user:pw@host.one/x.pt?token=abc")
    assert str(path) == "https://host.one/x.pt"
    assert hidden_of(str(path)) == ("user:pw", "token=abc")
    assert hidden_of("https://host.one/config.json") == ("user:pw", "")
    path_of("https://host.two/model/?sas=abc")
    assert hidden_of("https://host.two/model/config.json").query == "sas=abc"


@pytest.mark.parametrize("location", ["s3://key:pw@bucket/x.pt", "s3://bucket/x.pt?pw=1", "s3://"])
def test_object_storage_takes_no_secrets_in_a_url(location):
    with pytest.raises(UsageError) as failure:
        taken(location)
    assert "pw" not in str(failure.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("tcp://me:p/w@host:1", "tcp://host:1"),
        ("mysql+x://me:pw@host/db?password=pw", "mysql+x://host/db"),
        ("sqlite:////a/b.sqlite", "sqlite:////a/b.sqlite"),
        ("/a/b@c?d", "/a/b@c?d"),
    ],
)
def test_a_service_s_url_is_shown_without_secrets(url, shown):
    assert bare(url) == shown


def test_a_path_that_is_a_url_has_the_parts_of_one():
    path = path_of("s3://bucket/model/in.safetensors")
    assert (path.name, path.suffix, str(path.parent)) == (
        "in.safetensors", ".safetensors", "s3://bucket/model",
    )  # fmt: skip
    assert str(path.parent / "config.json") == "s3://bucket/model/config.json"
    assert str(path.relative_to(path.parent)) == "in.safetensors"


@pytest.mark.parametrize("where", ["models", "steps"])
def test_a_recipe_with_a_secret_is_refused(where):
    url = "https://user:pw@host/x.pt?pw=1"
    step = {"op": "lora_merge", "adapter": url if where == "steps" else "a"}
    models = {"m": url} if where == "models" else {}
    with pytest.raises(UsageError) as failure:
        load({"surgeon": 1, "models": models, "steps": [step]}, {})
    assert "pw" not in str(failure.value)
    assert "https://host/x.pt" in str(failure.value)


def test_urls_that_only_secrets_tell_apart_are_refused():
    urls = [f"https://host.three/get?file={name}" for name in "ab"]
    with pytest.raises(UsageError, match="differ in their queries") as failure:
        surgeon.diff(*urls)
    with pytest.raises(UsageError, match="differ in their queries"):
        surgeon.plan({"surgeon": 1, "steps": []}, urls[0], models={"m": urls[1]})
    assert "file" not in str(failure.value)
    assert taken(urls[0], is_first=True) == taken(urls[0].partition("?")[0])
    assert hidden_of("https://host.three/get").query == "file=a"
    with pytest.raises(UsageError, match="differ in their queries"):
        taken(urls[1], is_first=True)


def test_urls_in_a_text_lose_what_is_secret():
    assert without_hidden("at https://a:b@h/x?c=d no") == "at https://h/x no"
