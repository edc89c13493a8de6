"""Requests, by the libraries that make them; runs where `calls` says, in a process of its own.

Nothing here is shown as a library says it, since that may hold a URL with its query.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_Out = TypeVar("_Out")
# Requests that one call makes at a time.
_AT_ONCE = 16
# A connection that was cut in the middle of an answer is not tried again by the library.
_TRIES, _FIRST_WAIT = 4, 0.1
# A configuration, an index: what is fetched without saying how much of it.
_MOST_WHOLE = 512 << 20
_STATUS = re.compile(r"status code: (\d+)")
# As the library takes them; about ten seconds of a server that answers 503 all the time.
_RETRIES = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
}
_PREFIXES = ("AWS_", "GOOGLE_", "AZURE_", "HF_", "HUGGING_FACE_")
_ENDPOINTS = {"s3": "AWS_", "az": "AZURE_", "gs": "GOOGLE_"}
_EXTRA = "pip install 'surgeon-checkpoints[remote]'"


class Target(NamedTuple):
    """Where a request goes: a store by its root, a key in it, and what is never shown."""

    root: str
    key: str
    userinfo: str = ""
    query: str = ""
    token: str = ""
    # Of a commit, say: its content has no other, whatever ETags the servers give it.
    is_pinned: bool = False


class Identity(NamedTuple):
    """What tells one content of a file from another."""

    size_bytes: int
    etag: str
    modified: str


class Got(NamedTuple):
    """Bytes of a file, and which content they are of."""

    data: bytes
    identity: Identity


class Entry(NamedTuple):
    """What a listing says of a name in it."""

    is_folder: bool
    identity: Identity | None = None


class Failure(Exception):  # noqa: N818 (an answer, which becomes an error of ours)
    """Why a request came to nothing: a word of what is known, and what may be said of it."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(kind, said)
        self.kind = kind
        self.said = said


def fetch(target: Target, start: int, stop: int | None, known: Identity | None) -> Got:
    """Return bytes of a file, or where `stop` is None all from `start` on.

    Raises Failure: 'missing', 'changed' where it is no longer what is `known`, or another.
    """
    return _persistently(lambda: _fetched(target, start, stop, known))


def _fetched(target: Target, start: int, stop: int | None, known: Identity | None) -> Got:
    import obstore

    options: dict[str, Any] = {}
    if start or stop is not None:
        options["range"] = {"offset": start} if stop is None else (start, stop)
    # A weak one never matches: RFC 9110, section 13.1.1.
    if known and known.etag and not (target.is_pinned or known.etag.startswith("W/")):
        options["if_match"] = known.etag
    answer = obstore.get(_store(target), target.key, options=options)
    identity = _identity(answer.meta)
    if target.is_pinned:
        identity = Identity(identity.size_bytes, "", "")
    if known and not _is_same(identity, known):
        sizes = f"it had {known.size_bytes} bytes, and has {identity.size_bytes}"
        is_as_long = identity.size_bytes == known.size_bytes
        raise Failure("changed", "its ETag or its date is another" if is_as_long else sizes)
    if stop is None and identity.size_bytes > _MOST_WHOLE:
        raise Failure("large", f"it has {identity.size_bytes:,} bytes, too many for what it is")
    data = bytes(answer.bytes())
    end = identity.size_bytes if stop is None else min(stop, identity.size_bytes)
    if len(data) != max(end - start, 0):
        raise Failure("short", f"gave {len(data)} bytes of {end - start}")
    return Got(data, identity)


def _identity(meta: Any) -> Identity:
    modified = meta["last_modified"]
    stamp = modified.isoformat() if modified and modified.timestamp() else ""
    return Identity(meta["size"], meta["e_tag"] or "", stamp)


def _is_same(found: Identity, known: Identity) -> bool:
    """Say whether two contents are one, by all that both servers' answers say."""
    return found.size_bytes == known.size_bytes and all(
        not one or not other or one == other
        for one, other in ((found.etag, known.etag), (found.modified, known.modified))
    )


def fetch_several(
    wanted: Sequence[tuple[Target, int, int | None, Identity | None]],
) -> list[Got | Failure]:
    """Return bytes of several files, fetched at the same time; a Failure in the place of some."""
    return _at_once(lambda one: fetch(*one), wanted)


def _at_once(work: Callable[[Any], _Out], items: Iterable[Any]) -> list[_Out | Failure]:
    from concurrent.futures import ThreadPoolExecutor

    def tried(item: Any) -> _Out | Failure:
        try:
            return work(item)
        except Failure as failure:
            return failure

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(tried, items))


def listing(target: Target) -> dict[str, Entry]:
    """Return what a folder holds; nothing where there is none. Raises Failure."""
    return _persistently(lambda: _listed(target))


def _listed(target: Target) -> dict[str, Entry]:
    import obstore

    found = obstore.list_with_delimiter(_store(target), target.key or None)
    folders = [str(one).rstrip("/") for one in found["common_prefixes"]]
    names = {one.rpartition("/")[2]: Entry(True) for one in folders}
    for meta in found["objects"]:
        if name := str(meta["path"]).rpartition("/")[2]:
            names[name] = Entry(False, _identity(meta))
    return names


def put(target: Target, data: bytes) -> None:
    """Write a small file whole. Raises Failure."""
    import obstore

    _persistently(lambda: obstore.put(_store(target), target.key, data, use_multipart=False))


def upload(target: Target, blocks: Iterator[bytes], part_bytes: int, at_once: int) -> None:
    """Write a file of parts as they come; nothing is there where one fails. Raises Failure."""
    import obstore

    _told(
        lambda: obstore.put(
            _store(target), target.key, blocks, use_multipart=True, chunk_size=part_bytes,
            max_concurrency=at_once,
        )
    )  # fmt: skip


def copy(source: Target, target: Target) -> None:
    """Copy a file inside of its store, where it lies. Raises Failure."""
    import obstore

    _persistently(lambda: obstore.copy(_store(source), source.key, target.key))


def delete(targets: Sequence[Target]) -> None:
    """Delete files of one store. Raises Failure."""
    import obstore

    if targets:
        keys = [target.key for target in targets]
        _persistently(lambda: obstore.delete(_store(targets[0]), keys))


def _persistently(request: Callable[[], _Out]) -> _Out:
    """Make a request again where an answer was cut off, each time later."""
    for attempt in range(_TRIES):
        try:
            return _told(request)
        except Failure as failure:
            if failure.kind not in ("cut", "short") or attempt == _TRIES - 1:
                raise
            time.sleep(_FIRST_WAIT * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _told(request: Callable[[], _Out]) -> _Out:
    """Turn what a library raises into a Failure, which says nothing that the library says."""
    try:
        from obstore import exceptions
    except ImportError:
        raise Failure("no library", f"obstore is not installed: {_EXTRA}") from None
    try:
        return request()
    except Failure:
        raise
    except FileNotFoundError:
        raise Failure("missing", "no such file") from None
    except exceptions.PreconditionError:
        raise Failure("changed", "its ETag is another") from None
    except exceptions.NotSupportedError:
        raise Failure("no ranges", "the server gives no byte ranges") from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise Failure("denied", f"access is denied{_status(error)}") from None
    except (exceptions.BaseError, ValueError) as error:
        raise _failure(str(error)) from None


def _status(error: object) -> str:
    found = _STATUS.search(str(error))
    return f" (status {found.group(1)})" if found else ""


def _failure(text: str) -> Failure:
    if found := _STATUS.search(text):
        again = " each time" if "after" in text and "retries" in text else ""
        return Failure("refused", f"the server answers with status {found.group(1)}{again}")
    lower = text.lower()
    if "body error" in lower or "incompletebody" in lower or "unexpectedeof" in lower:
        return Failure("cut", "the connection was cut")
    if "timedout" in lower or "timed out" in lower or "timeout," in lower:
        return Failure("unavailable", "the server does not answer in time")
    if "connect" in lower or "dns" in lower or "error sending request" in lower:
        return Failure("unavailable", "the server cannot be reached")
    if "credential" in lower or "metadata" in lower or "account must be" in lower:
        return Failure("denied", "no credentials were found in the environment")
    return Failure("refused", "the request failed")


def _store(target: Target) -> ObjectStore:
    process = os.getpid(), environment()
    return _stores(target.root, target.userinfo, target.query, target.token, process)


def environment() -> tuple[tuple[str, str], ...]:
    """Return what the libraries take of the environment: credentials, endpoints."""
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(_PREFIXES)))


@cache
def _stores(root: str, userinfo: str, query: str, token: str, process: object) -> ObjectStore:
    """Make the client of a store: one for each process, since none survives a fork."""
    from obstore import store

    scheme, _, _ = root.partition("://")
    if scheme == "memory":
        return store.MemoryStore()
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=300),
        "connect_timeout": timedelta(seconds=10),
        "allow_http": scheme == "http" or _is_plain(scheme),
    }
    if scheme in ("http", "https"):
        if authorization := _authorization(userinfo, token):
            options["default_headers"] = {"Authorization": authorization}
        url = f"{root}?{query}" if query else root
        return store.HTTPStore.from_url(url, client_options=options, retry_config=_RETRIES)
    more: dict[str, Any] = {}
    if scheme == "s3" and os.environ.get("AWS_PROFILE"):
        more["credential_provider"] = _profile()
    return store.from_url(root, client_options=options, retry_config=_RETRIES, **more)


def _is_plain(scheme: str) -> bool:
    """Say whether the endpoint that the user has named for a kind of store is without TLS."""
    return any(
        name.startswith(_ENDPOINTS.get(scheme, "-"))
        and "ENDPOINT" in name
        and value.lower().startswith("http://")
        for name, value in os.environ.items()
    )


def _authorization(userinfo: str, token: str) -> str:
    if token:
        return f"Bearer {token}"
    if not userinfo:
        return ""
    from base64 import b64encode
    from urllib.parse import unquote

    return f"Basic {b64encode(unquote(userinfo).encode()).decode()}"


def _profile() -> Any:
    """Return what gives the credentials of AWS_PROFILE, which obstore leaves to boto3."""
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise Failure(
            "no library", "AWS_PROFILE is set, and boto3, which reads profiles, is not installed"
        ) from None
    return Boto3CredentialProvider()
