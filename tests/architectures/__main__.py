"""Probe all model types of the installed transformers, and write what was found.

`python -m tests.architectures [TYPE...] [--keep FOLDER] [--merge]`: without types, all of them,
written into the package; with --merge, those given are written among the others. One process at a
time does the work, so that a type that hangs can be ended.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from tests.architectures.worker import Worker


@click.command()
@click.argument("types", nargs=-1)
@click.option("--keep", type=click.Path(path_type=Path), help="A folder for one file per type.")
@click.option("--again", is_flag=True, help="Probe types that have a file there already too.")
@click.option("--merge", is_flag=True, help="Write what is probed among the package's records.")
def main(types: tuple[str, ...], keep: Path | None, again: bool, merge: bool) -> None:
    """Probe model types; write the package's data where all are probed, or with --merge."""
    from tests.architectures.build import classes_of_types
    from tests.architectures.report import coverage, in_order
    from tests.architectures.store import stored, write

    classes = classes_of_types()
    found: dict[str, Any] = {}
    worker = Worker()
    for model_type in types or in_order(classes):
        if not classes[model_type]:
            continue
        path = keep / f"{model_type}.json" if keep else None
        if path is not None and path.exists() and not again:
            found[model_type] = json.loads(path.read_text("utf-8"))
            continue
        started = time.monotonic()
        found[model_type] = worker.probe(model_type)
        seconds = time.monotonic() - started
        what = found[model_type] if isinstance(found[model_type], str) else "probed"
        print(f"{model_type}: {what} ({seconds:.1f} s)", file=sys.stderr, flush=True)
        if path is not None:
            path.write_text(json.dumps(found[model_type]), "utf-8")
    worker.close()
    probed = {name: one for name, one in found.items() if isinstance(one, dict)}
    if merge:
        write(stored() | probed)
    elif not types:
        write(probed)
    print(coverage(found))


if __name__ == "__main__":
    main()
