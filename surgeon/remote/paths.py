"""Paths that are URLs, asked as files and folders are: each asks once, until it is forgotten."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import CheckpointError, UsageError
from surgeon.remote import calls, client, hub, wire
from surgeon.remote.client import Entry, Failure, Got, Identity, Target
from surgeon.remote.locations import hidden_of, is_given, is_given_as_folder, is_url, taken

# The first bytes of a file, which hold most headers whole.
START_BYTES = 64 << 10
_STREAMED = 8 << 20
# Files that are read whole, at once.
_WHOLE = (".json", ".jinja", ".txt", ".md")
_FILE_LIKE = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|json|jsonl|txt|model|jinja)$")
# A web server lists nothing: what of a model folder is looked for there, by name.
_LOOKED_FOR = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json", "adapter_model.safetensors", "adapter_model.bin",
    "config.json", "adapter_config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "vocab.json",
    "merges.txt", "vocab.txt", "added_tokens.json", "chat_template.jinja",
    "preprocessor_config.json", "processor_config.json", "surgeon.manifest.json",
)  # fmt: skip


class _Seen(NamedTuple):
    """What is known of places that were asked about."""

    listings: dict[str, dict[str, Entry]]
    starts: dict[str, Got | None]
    repositories: dict[tuple[str, str], hub.Repository]
    # What may not be read, or is not there: who may not list is not told which.
    denied: dict[str, bool]


_seen = _Seen({}, {}, {}, {})


def path_of(location: str | os.PathLike[str]) -> Path:
    """Return a location as a path: of a URL one that is fetched, and shown without secrets."""
    if isinstance(location, RemotePath):
        return location
    text = os.fspath(location)
    return RemotePath(taken(text)) if is_url(text) else Path(text)


def forget(path: Path) -> None:
    """Ask again about a place, and all below it and beside it."""
    if not isinstance(path, RemotePath):
        return
    place, above = str(path), str(path.parent)
    for seen in (_seen.listings, _seen.starts, _seen.denied):
        near = [
            one
            for one in seen
            if one == above or one.rpartition("/")[0] == above or one.startswith(f"{place}/")
        ]
        for one in near:
            del seen[one]
    if path.scheme == "hf":
        _seen.repositories.pop(hub.split(place)[:2], None)


def require_writable(path: Path) -> None:
    """Raise UsageError for an output that lies where nothing can be written."""
    if isinstance(path, RemotePath) and path.scheme in ("http", "https", "hf"):
        raise UsageError(
            f"{path}: {path.scheme}:// takes no output; write to s3://, gs://, az://, or to a disk"
        )


def fetch_starts(paths: Sequence[Path]) -> None:
    """Fetch the first bytes of several files at the same time, to be read one by one."""
    remote = [p for p in paths if isinstance(p, RemotePath) and str(p) not in _seen.starts]
    if not remote:
        return
    wanted = [(p.target, 0, *p.start_of) for p in remote]
    for path, got in zip(remote, calls.run(client.fetch_several, wanted), strict=True):
        if isinstance(got, Got):
            wire.count(len(got.data))
            _seen.starts[str(path)] = got
        elif got.kind in ("missing", "denied") and not is_given(str(path)):
            _seen.starts[str(path)] = None
            _seen.denied[str(path)] = got.kind == "denied"


class _Streamed(io.RawIOBase):
    """A file that is fetched from its beginning to its end, some megabytes at a time."""

    def __init__(self, path: RemotePath, identity: Identity) -> None:
        self._path = path
        self._identity = identity
        self._place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        stop = min(self._place + len(buffer), self._identity.size_bytes)
        if stop == self._place:
            return 0
        wanted = self._path.target, self._place, stop, self._identity
        try:
            got = calls.run(client.fetch, *wanted)
        except Failure as failure:
            raise self._path.error(failure) from None
        wire.count(len(got.data))
        buffer[: len(got.data)] = got.data
        self._place = stop
        return len(got.data)


class RemotePath(Elsewhere):
    """A URL as a path: `s3://bucket/model/config.json`. Nothing of it is secret."""

    def __str__(self) -> str:
        text = super().__str__()
        scheme, mark, rest = text.partition(":/")
        return f"{scheme}://{rest.lstrip('/')}" if mark and scheme.isalnum() else text

    def __fspath__(self) -> str:
        raise CheckpointError(f"{self}: is elsewhere, and here a file of this machine is needed")

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    @property
    def scheme(self) -> str:
        return str(self).partition("://")[0]

    @property
    def is_web(self) -> bool:
        """Whether a web server has it, which lists no folders and takes no files."""
        return self.scheme in ("http", "https")

    @property
    def target(self) -> Target:
        """Where its bytes are fetched. Raises CheckpointError where a hub does not know it."""
        place = str(self)
        if self.scheme == "hf":
            repository = self._repository()
            inside = hub.split(place)[2]
            return Target(repository.root, inside, token=repository.token, is_pinned=True)
        scheme, _, rest = place.partition("://")
        host, _, key = rest.partition("/")
        hidden = hidden_of(place)
        if scheme == "memory":  # which is this process's
            calls.require_here()
        if self.is_web:  # percent-encoded already, which a key would be again
            return Target(place, "", hidden.userinfo, hidden.query)
        return Target(f"{scheme}://{host}", key)

    @property
    def start_of(self) -> tuple[int | None, Identity | None]:
        """How much of it is fetched at first, and what a listing says of it."""
        entry = _seen.listings.get(str(self.parent), {}).get(self.name)
        known = entry.identity if entry else None
        if self.suffix in _WHOLE:
            return None, known
        if known and known.size_bytes == 0:
            return None, known  # no range lies in it
        return START_BYTES, known

    def start(self) -> Got | None:
        """Return its first bytes, None where there is no such file. Raises CheckpointError."""
        place = str(self)
        if place not in _seen.starts:
            try:
                _seen.starts[place] = got = calls.run(client.fetch, self.target, 0, *self.start_of)
                wire.count(len(got.data))
            except Failure as failure:
                # Who may not list is told so of what is not there; and a signature is for one file.
                is_looked_for = failure.kind == "denied" and not is_given(place)
                if failure.kind != "missing" and not is_looked_for:
                    raise self.error(failure) from None
                _seen.starts[place] = None
                _seen.denied[place] = is_looked_for
        return _seen.starts[place]

    def listed(self) -> dict[str, Entry]:
        """Return what it holds as a folder; nothing where it is none. Raises CheckpointError."""
        place = str(self)
        if place not in _seen.listings:
            try:
                _seen.listings[place] = self._listed()
            except Failure as failure:
                raise self.error(failure, "cannot be listed") from None
        return _seen.listings[place]

    def _listed(self) -> dict[str, Entry]:
        if self.scheme == "hf":
            return hub.entries(self._repository(), hub.split(str(self))[2])
        if not self.is_web:
            return calls.run(client.listing, self.target)
        fetch_starts([self / name for name in _LOOKED_FOR])
        starts = {name: _seen.starts.get(str(self / name)) for name in _LOOKED_FOR}
        return {name: Entry(False, got.identity) for name, got in starts.items() if got}

    def _repository(self) -> hub.Repository:
        name, revision, _ = hub.split(str(self))
        if (name, revision) not in _seen.repositories:
            try:
                found = calls.run(hub.describe, name, revision)
            except Failure as failure:
                raise self.error(failure) from None
            _seen.repositories[name, revision] = found
        return _seen.repositories[name, revision]

    def error(self, failure: Failure, what: str = "cannot be read") -> CheckpointError:
        """Return what is said where a request came to nothing."""
        if failure.kind == "missing":
            return CheckpointError(f"{self}: {failure.said}")
        if failure.kind == "changed":
            return CheckpointError(
                f"{self}: was changed while it was read: {failure.said}; run again once nothing "
                "writes to it"
            )
        return CheckpointError(f"{self}: {what}: {failure.said}")

    def absent(self) -> CheckpointError:
        """Return what is said of a file that has no start."""
        more = ", or access to it is denied" if _seen.denied.get(str(self)) else ""
        return CheckpointError(f"{self}: no such file{more}")

    # What pathlib answers of files

    def names(self) -> list[str]:
        return sorted(self.listed())

    def iterdir(self) -> Generator[RemotePath, None, None]:
        yield from [self / name for name in self.names()]

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        listing = _seen.listings.get(str(self.parent))
        if listing is not None and self.name in listing:
            return listing[self.name].is_folder
        if self.scheme != "hf" and _FILE_LIKE.search(self.name):
            if not is_given_as_folder(str(self)) and self.start() is not None:
                return False
        elif self.is_web and not is_given_as_folder(str(self)) and self.start() is not None:
            return False
        return bool(self.listed())

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self.exists() and not self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        listing = _seen.listings.get(str(self.parent))
        if listing is None and self.scheme == "hf" and hub.split(str(self))[2]:
            listing = self.parent.listed()
        if listing is not None and (self.name in listing or not self.is_web):
            return self.name in listing
        if _FILE_LIKE.search(self.name):
            return self.start() is not None
        return self.is_dir() or self.start() is not None

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        listing = _seen.listings.get(str(self.parent), {}).get(self.name)
        if listing and listing.is_folder:
            return os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        identity = listing.identity if listing else None
        if identity is None and self.is_dir():
            return os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        if identity is None:
            identity = self._required().identity
        return os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, identity.size_bytes, 0, 0, 0))

    def lstat(self) -> os.stat_result:
        return self.stat()

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def samefile(self, other: str | os.PathLike[str]) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def read_regular(self, most_bytes: int) -> bytes:
        got = self._required()
        if got.identity.size_bytes > most_bytes:
            raise ValueError(f"longer than {most_bytes:,} bytes")
        if len(got.data) == got.identity.size_bytes:
            return got.data
        try:
            rest = calls.run(client.fetch, self.target, len(got.data), None, got.identity)
        except Failure as failure:
            raise self.error(failure) from None
        wire.count(len(rest.data))
        whole = Got(got.data + rest.data, got.identity)
        _seen.starts[str(self)] = whole
        return whole.data

    def read_bytes(self) -> bytes:
        return self.read_regular(1 << 62)

    def reading(self) -> BinaryIO:
        got = self._required()
        if len(got.data) == got.identity.size_bytes:
            return io.BytesIO(got.data)
        return io.BufferedReader(_Streamed(self, got.identity), _STREAMED)

    def _required(self) -> Got:
        got = self.start()
        if got is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self))
        return got
