"""What every attack has: a seed, a time limit, and counts that are printed at the end."""

from __future__ import annotations

import os
import random
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

SEED = int(os.environ.get("SURGEON_ATTACK_SEED", "0"))
# How long all attacks take together where every loop uses up its share, with two workers.
PLANNED_SECONDS = 420
SECONDS = float(os.environ.get("SURGEON_ATTACK_SECONDS", PLANNED_SECONDS))
_COUNTS = "attack counts"

Item = TypeVar("Item")


class Attack:
    """The random numbers of one test, its share of the time, and what it counts."""

    def __init__(self, name: str) -> None:
        self.seed = zlib.crc32(f"{SEED} {name}".encode())
        self.random = random.Random(self.seed)
        self.counts: Counter[str] = Counter()

    def count(self, what: str, times: int = 1) -> None:
        """Add to a line of the summary, such as 'kills at random moments'."""
        self.counts[what] += times

    def within(self, items: Iterable[Item], seconds: float) -> Iterator[Item]:
        """Yield items until this share of the planned seconds is used up; always the first."""
        end = time.monotonic() + seconds * SECONDS / PLANNED_SECONDS
        for item in items:
            yield item
            if time.monotonic() > end:
                self.count("loops that ended by the time limit")
                return


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> Iterator[Attack]:
    """Give a test its seed, its time and its counts."""
    made = Attack(request.node.nodeid)
    yield made
    # They travel with the test's report, from a worker of xdist too.
    request.node.user_properties.append((_COUNTS, dict(made.counts)))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in this folder, before `-m` selects."""
    here = f"{Path(__file__).parent}{os.sep}"
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.attack)
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many of what were tried."""
    total: Counter[str] = Counter()
    for report in (one for kind in terminalreporter.stats.values() for one in kind):
        if getattr(report, "when", "") == "teardown":
            for name, counts in report.user_properties:
                total.update(counts if name == _COUNTS else {})
    if total:
        terminalreporter.section(f"attacks, seed {SEED}")
        for what, times in sorted(total.items()):
            terminalreporter.line(f"{times:8d}  {what}")
