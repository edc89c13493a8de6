"""make conformance: print the tables, and end with status 1 where something is beyond the bounds.

Arguments are the names of tables; MERGEKIT_ENVIRONMENT names an environment that has mergekit.
"""

from __future__ import annotations

import sys

from tests.conformance.environment import NotInstalledError
from tests.conformance.tables import TABLES, tables


def main(names: list[str]) -> int:
    problems: list[str] = []
    for table in tables(names or TABLES):
        print(table, flush=True)
        problems += table.problems
    for problem in problems:
        print(f"beyond the bounds: {problem}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NotInstalledError as error:
        sys.exit(str(error))
