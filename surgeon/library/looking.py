"""Look at checkpoints: `surgeon.inspect`, `diff`, `compare` and `verify`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from surgeon.base.errors import UsageError
from surgeon.base.lists import as_list
from surgeon.formats import open_checkpoint
from surgeon.inspection import compare as comparison
from surgeon.inspection import diff as differences
from surgeon.inspection import inspect as inspection
from surgeon.inspection import verify as verification
from surgeon.inspection.compare import Comparison
from surgeon.inspection.diff import Difference
from surgeon.inspection.verify import Verified
from surgeon.library.answers import Inspected
from surgeon.output.workers import default_workers
from surgeon.remote.paths import path_of

Location = str | os.PathLike[str]


def inspect(
    checkpoint: Location, patterns: Sequence[str] | str = (), *, tree: bool = False,
    stats: bool = False,
) -> Inspected:  # fmt: skip
    """List the tensors of a checkpoint that patterns select, all where there are none.

    `stats` reads the values, for their range, mean, norm, zeros and NaN; `tree` shows modules.
    """
    if tree and stats:
        raise UsageError("tree and stats exclude each other")
    wanted = inspection.wanted_by(as_list(patterns))
    location = os.fspath(checkpoint)
    opened = open_checkpoint(location, wanted)
    try:
        found = inspection.inspected(opened.tensors, as_list(patterns), stats=stats)
        document = inspection.as_json(opened, found, as_tree=tree)
        text = inspection.as_text(opened, found, as_tree=tree)
        return Inspected(text, location, **document)
    finally:
        opened.close()


def diff(a: Location, b: Location, patterns: Sequence[str] | str = ()) -> Difference:
    """Compare the tensors of two checkpoints; `equal` says whether they are the same."""
    return differences.compare(os.fspath(a), os.fspath(b), as_list(patterns))


def compare(base: Location, *others: Location, workers: int | None = None) -> Comparison:
    """Say how alike models are, per layer: how far the others moved from `base`, and whereto."""
    if not others:
        raise UsageError("compare takes two models or more")
    models = [os.fspath(model) for model in (base, *others)]
    return comparison.compare(models, workers or default_workers())


def verify(output: Location, *, workers: int | None = None) -> Verified:
    """Hash an output again and compare with its manifest; `verified` says whether they agree."""
    return verification.verify(path_of(output), workers or default_workers())
