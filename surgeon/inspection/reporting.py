"""The page of an output, or of a plan: what it is read from, and where it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from surgeon.base.errors import CheckpointError, UsageError
from surgeon.base.files import read_regular, require_mine
from surgeon.base.strict_json import parse_object
from surgeon.inspection.verify import Verified, find_manifest, read_manifest, verify
from surgeon.inspection.watching import Watch, unwatched
from surgeon.manifest.model import MOST_BYTES, Manifest, of_document
from surgeon.manifest.names import is_file, manifest_of
from surgeon.output.publish import publication, writing
from surgeon.pictures.facts import PLAN_SCHEMA, of_manifest, of_plan
from surgeon.pictures.markup import PAGE_MARK
from surgeon.pictures.report import Hashed, report

SUFFIXES = (".html", ".htm")


def require_page(path: Path) -> None:
    """Raise UsageError, before any work is done, where no page would be expected."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a report is a {' or '.join(SUFFIXES)} file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.absolute().parent}")
    require_mine(path, PAGE_MARK.encode(), "wrote")


def page_of(source: Path, *, workers: int, hashing: bool = False, watch: Watch = unwatched) -> str:
    """Return the page of an output, of its manifest, or of what `plan --json` printed.

    `hashing` reads all of the output and compares with its manifest. Raises CheckpointError where
    there is no manifest, UsageError for a recipe by itself.
    """
    document = _document(source) if source.suffix == ".json" and source.is_file() else {}
    if document.get("$schema") == PLAN_SCHEMA:
        if hashing:
            raise UsageError(f"{source}: is a plan, of which nothing was written to verify")
        return page_of_plan(document, str(source))
    if "surgeon" in document and "surgeon_manifest" not in document:
        raise UsageError(f"{source}: is a recipe; its input goes beside it: surgeon report RECIPE "
                         "INPUT")  # fmt: skip
    path = find_manifest(source)
    manifest = _manifest(document, path) if document else read_manifest(path)
    if path == manifest_of(source) and is_file(source):  # both may have been renamed
        manifest = replace(manifest, checkpoint=replace(manifest.checkpoint, file=source.name))
    hashed = _hashed(verify(source, workers, watch=watch)) if hashing else None
    try:
        return report(of_manifest(manifest), hashed)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def page_of_plan(document: dict[str, Any], label: str) -> str:
    """Return the page of what `plan --json` prints; UsageError where it is none."""
    try:
        return report(of_plan(document))
    except ValueError as error:
        raise UsageError(f"{label}: {error}") from None


def write_page(text: str, path: Path) -> None:
    """Write a page, as a whole or not at all, in place of an earlier one."""
    require_mine(path, PAGE_MARK.encode(), "wrote")
    with writing(path), publication(path, is_folder=False) as files:
        files.put(path.name, text)
        files.publish(None)


def _document(path: Path) -> dict[str, Any]:
    try:
        return parse_object(read_regular(path, MOST_BYTES), most_bytes=MOST_BYTES, deepest=200,
                            allow_surrogates=True)  # fmt: skip
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _manifest(document: dict[str, Any], path: Path) -> Manifest:
    try:
        return of_document(Manifest, document, path)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _hashed(found: Verified) -> Hashed:
    if not found.mismatches:
        what = "hashed again, and as the manifest says"
        return Hashed(True, what if found.hashed else "the header is as the manifest says")
    first, more = found.mismatches[0], len(found.mismatches) - 1
    return Hashed(False, first + (f"; and {more:,} more" if more else ""))
