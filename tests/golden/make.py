"""Record what surgeon writes now: `python -m tests.golden.make [recipes] [chains] [--check]`.

Groups that are not named keep their records. `chains` are recipes that compute in several steps,
recorded while each step rounded its result: `--rounds-once` records that they no longer do.
`--check` records nothing and lists, bit for bit, which entries differ from their records.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.golden.cases import CHAINS, CLOSE, CLOSE_CHAINS, EXACT, Case, Json
from tests.golden.outputs import apply, described, ops

RECORDS = Path(__file__).with_name("hashes.json")
GROUPS: dict[str, dict[str, Case]] = {
    "recipes": {f"exact/{n}": c for n, c in EXACT.items()}
    | {f"close/{n}": c for n, c in CLOSE.items()},
    "chains": {f"exact_chain/{n}": c for n, c in CHAINS.items()}
    | {f"close_chain/{n}": c for n, c in CLOSE_CHAINS.items()},
}


def results(folder: Path, groups: list[str]) -> dict[str, Json]:
    """Apply all recipes of groups in an empty folder: what each wrote, by group and name."""
    cases = {n.replace("/", "_", 1): c for group in groups for n, c in GROUPS[group].items()}
    outputs = apply(folder, cases)
    return {
        group: {
            name: described(outputs[name.replace("/", "_", 1)], whole=name.startswith("close"))
            for name in GROUPS[group]
        }
        for group in groups
    }


def main() -> None:
    """Record groups anew, or compare them with their records."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.make")
    parser.add_argument("groups", nargs="*", help="recipes, chains; default both")
    parser.add_argument("--rounds-once", action="store_true", help="chains round their result only")
    parser.add_argument("--check", action="store_true", help="compare, record nothing")
    given = parser.parse_args()
    if unknown := set(given.groups) - GROUPS.keys():
        parser.error(f"no group is called {', '.join(sorted(unknown))}; there are {list(GROUPS)}")
    with tempfile.TemporaryDirectory() as folder:
        made = results(Path(folder), given.groups or list(GROUPS))
    failed = {n: r["failed"] for found in made.values() for n, r in found.items() if "failed" in r}
    if failed:
        sys.exit(json.dumps(failed, indent=1))
    records: Json = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    if given.check:
        found = [n for g, r in made.items() for n in r if records[g][n]["files"] != r[n]]
        sys.exit("\n".join(found) or 0)
    _record(records, made, rounds_once=given.rounds_once)
    RECORDS.write_text(json.dumps(records, indent=1) + "\n")


def _record(records: Json, made: dict[str, dict[str, Json]], *, rounds_once: bool) -> None:
    for group, found in made.items():
        records[group] = {name: {"files": files} for name, files in found.items()}
        if group == "chains":
            for record in records[group].values():
                record["rounds_once"] = rounds_once
        else:
            records["ops"] = ops()


if __name__ == "__main__":
    main()
