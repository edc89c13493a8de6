"""What a repository of a model hub holds, told by `huggingface_hub`; its files are then fetched."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from surgeon.remote.client import Entry, Failure, Identity

# `org/name@revision`; a revision with a '/' in it is a pull request's, or is written with %2F.
_REPOSITORY = re.compile(
    r"hf://(?P<name>[^/@]+/[^/@]+)(@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?$"
)
_EXTRA = "pip install 'surgeon-checkpoints[hub]'"


class Repository(NamedTuple):
    """A repository at one commit: where its files are, and how large each is."""

    root: str
    token: str
    files: dict[str, int]


def split(place: str) -> tuple[str, str, str]:
    """Return the repository, the revision (or nothing) and the path in it of an hf:// URL."""
    found = _REPOSITORY.match(place)
    if not found:
        return place.removeprefix("hf://"), "", ""
    return found["name"], found["revision"] or "", (found["path"] or "").strip("/")


def describe(name: str, revision: str) -> Repository:
    """Ask the hub for a repository's commit and files: one request. Raises Failure."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise Failure("no library", f"huggingface_hub is not installed: {_EXTRA}") from None
    from urllib.parse import unquote

    endpoint = os.environ.get("HF_ENDPOINT") or None
    token = huggingface_hub.get_token() or ""
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token or None)
    try:
        info = api.model_info(name, revision=unquote(revision) or None, files_metadata=True)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        what = f"no such model, or no revision '{revision}'" if revision else "no such model"
        raise Failure("missing", f"{what}, or it is private and no token is set") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "?")
        raise Failure("refused", f"the hub answers with status {status}") from None
    except (OSError, ValueError, errors.HFValidationError):
        raise Failure("unavailable", "the hub cannot be reached") from None
    except Exception as error:  # httpx's own, which is not to be imported for this
        raise Failure(
            "unavailable", f"the hub cannot be reached ({type(error).__name__})"
        ) from None
    files = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    root = f"{(endpoint or huggingface_hub.constants.ENDPOINT).rstrip('/')}/{name}"
    return Repository(f"{root}/resolve/{info.sha}", token, files)


def entries(repository: Repository, folder: str) -> dict[str, Entry]:
    """Return what a folder of a repository holds."""
    before = f"{folder}/" if folder else ""
    found: dict[str, Entry] = {}
    for path, size_bytes in sorted(repository.files.items()):
        if path.startswith(before):
            name, _, below = path.removeprefix(before).partition("/")
            found[name] = Entry(True) if below else Entry(False, Identity(size_bytes, "", ""))
    return found
