"""Locations that are URLs, and how they are shown: without credentials, without a query.

What is not to be shown is taken off where a location comes in, and kept here for whoever fetches;
all that travels on through messages, notes and manifests is the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from surgeon.base.errors import UsageError

_URL = re.compile(r"(s3|gs|az|https?|memory|hf)://", re.ASCII | re.IGNORECASE)
_WEB = ("http", "https")
# Anywhere in a text, as in a message of a library.
_IN_TEXT = re.compile(r"\b(?:s3|gs|az|https?|memory|hf)://[^\s'\"<>]+", re.ASCII | re.IGNORECASE)


class Hidden(NamedTuple):
    """What of a URL is never shown: what stands before the host's '@', and behind the '?'."""

    userinfo: str = ""
    query: str = ""


class _Split(NamedTuple):
    scheme: str
    host: str
    path: str
    fragment: str
    hidden: Hidden


# By what is shown of a URL, and for userinfo by scheme and host alone.
_queries: dict[str, str] = {}
_userinfos: dict[str, str] = {}
# What somebody named, and of that what had a '/' at its end.
_given: set[str] = set()
_folders: set[str] = set()


def is_url(location: str) -> bool:
    """Say whether a location is one that has to be fetched."""
    return bool(_URL.match(location))


def shown(location: str) -> str:
    """Return a location as it may be shown: of a URL neither credentials nor a query."""
    if not is_url(location):
        return location
    one = _split(location)
    return f"{one.scheme}://{one.host}{one.path}{one.fragment}"


def require_distinct(locations: Iterable[str]) -> None:
    """Raise UsageError where two URLs of one call differ in what is not shown alone."""
    known: dict[str, Hidden] = {}
    for location in filter(is_url, locations):
        one = _split(location)
        place = f"{one.scheme}://{one.host}{one.path}"
        if known.setdefault(place, one.hidden) != one.hidden:
            raise _alike(place)


def _alike(place: str) -> UsageError:
    return UsageError(
        f"{place}: two URLs differ in their queries or credentials alone, which are not shown, and "
        "could not be told apart; fetch one of them first"
    )


def taken(location: str, *, is_first: bool = False) -> str:
    """Return a location as it is shown; what is hidden of it is kept for who fetches it.

    Raises UsageError for what its scheme does not take, and where what is known by the same name
    already has to be the same: on a command line, on which nothing is signed anew.
    """
    if not is_url(location):
        return location
    one, plain = _split(location), shown(location)
    if one.hidden != Hidden() and one.scheme not in _WEB:
        what = "a query" if one.hidden.query else "credentials"
        raise UsageError(
            f"{plain}: {one.scheme}:// takes no {what} in the URL; credentials come from the "
            "environment"
        )
    if not one.host or (one.scheme == "hf" and not one.path.strip("/")):
        meant = {"hf": "hf://org/name", "s3": "s3://bucket/key"}.get(one.scheme, "a whole URL")
        raise UsageError(f"{plain}: names nothing that could be fetched; say {meant}")
    place = plain.removesuffix(one.fragment) if one.fragment else plain
    if place.endswith("/"):
        _folders.add(place.rstrip("/"))
    place = place.rstrip("/")
    if is_first and _queries.get(place, one.hidden.query) != one.hidden.query:
        raise _alike(place)
    _given.add(place)
    if one.hidden.query:
        _queries[place] = one.hidden.query
    elif is_first:
        _queries.setdefault(place, "")
    if one.hidden.userinfo:
        _userinfos[f"{one.scheme}://{one.host}"] = one.hidden.userinfo
    return plain


def hidden_of(place: str) -> Hidden:
    """Return what belongs to a place and is not shown: its own, or that of the folder around it."""
    one = _split(place)
    query = _queries.get(place, "")
    above = place
    while not query and (above := above.rpartition("/")[0]).count("/") >= 2:
        query = _queries.get(above, "") if above in _folders else ""
    return Hidden(_userinfos.get(f"{one.scheme}://{one.host}", ""), query)


def is_given(place: str) -> bool:
    """Say whether a place was named, or is one that is looked for beside such a one."""
    return place in _given


def is_given_as_folder(place: str) -> bool:
    """Say whether a place was named with a '/' at its end."""
    return place in _folders


def split_fragment(location: str) -> tuple[str, str]:
    """Split `s3://bucket/in.pt#model.ema` into the place, and what is meant inside of it."""
    place, _, inner = location.partition("#")
    return place, inner


def bare(url: str) -> str:
    """Return the URL of whatever service without credentials and query; paths stay as they are."""
    scheme, mark, rest = url.partition("://")
    return scheme + mark + rest.partition("?")[0].rpartition("@")[2] if mark else url


def require_plain(value: Any, label: str) -> None:
    """Raise UsageError where a recipe holds a URL with credentials or a query.

    Both a recipe and what is said of it in a manifest are kept and shown.
    """
    for text in _strings(value):
        if is_url(text) and _split(text).hidden != Hidden():
            raise UsageError(
                f"{label}: {shown(text)}: a recipe is kept and shown, so no URL in it may have "
                "credentials or a query; leave the model open, and give --model NAME=URL"
            )


def without_hidden(text: str) -> str:
    """Return a text in which every URL is as it may be shown."""
    return _IN_TEXT.sub(lambda found: shown(found.group()), text) if "://" in text else text


def _strings(value: Any) -> Iterator[str]:
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            pending += [*one, *one.values()]
        elif isinstance(one, list | tuple):
            pending += one


def _split(location: str) -> _Split:
    scheme, _, rest = location.partition("://")
    rest, mark, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    host, slash, path = rest.partition("/")
    userinfo, _, host = host.rpartition("@")
    return _Split(scheme.lower(), host, slash + path, mark + fragment, Hidden(userinfo, query))
