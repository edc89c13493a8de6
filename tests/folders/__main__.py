"""Operate on tiny models of many types, load what is written, and print what came of it."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import click
import transformers

from surgeon.base.tables import table
from tests.folders.jobs import DONE, JOBS, REFUSED, SKIPPED, WRONG, outcomes
from tests.folders.models import TYPES


@click.command()
@click.argument("types", nargs=-1)
def main(types: tuple[str, ...]) -> None:
    """Print the table, the reasons, and the share that is done; exit with 1 where one is wrong."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows, reasons, counts = [], [], Counter[str]()
    for model_type in types or TYPES:
        with tempfile.TemporaryDirectory() as folder:
            found = {job: (what, why) for job, what, why in outcomes(model_type, Path(folder))}
        reasons += [f"{model_type} {job}: {why}" for job, (what, why) in found.items() if why]
        for job, (what, why) in found.items():
            if why:
                print(f"{model_type} {job}: {what}: {why}", file=sys.stderr, flush=True)
        if "model" in found:
            continue
        counts.update(what for what, _ in found.values())
        rows.append([model_type, *(found.get(job, (SKIPPED, ""))[0] for job in JOBS)])
        print(*rows[-1], file=sys.stderr, flush=True)
    print(table(["model type", *JOBS], rows))
    print("\n".join(reasons))
    total = sum(counts.values()) or 1
    share = f"{100 * counts[DONE] / total:.1f} %"
    print(
        f"{len(rows)} types: {counts[DONE]} of {total} jobs done ({share}), {counts[REFUSED]} "
        f"refused, {counts[WRONG]} wrong"
    )
    sys.exit(1 if counts[WRONG] else 0)


if __name__ == "__main__":
    main()
