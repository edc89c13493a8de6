"""A run in tasks: an output shard each, several small ones, or a part of one that is large.

What the tasks are depends on the plan alone, not on the workers: so a run can be resumed on others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from surgeon.lazy import walk
from surgeon.lazy.apart import learners
from surgeon.output.checksums import Algorithm
from surgeon.output.layout import OutputFile, Placed
from surgeon.output.units import Unit, units_of_tensor

# Of an output, about: workers are done together where tasks are many, and each has to be sent.
TASK_BYTES = 1 << 30
# Of an output, so that what is known of its tensors stays small.
_MOST_TENSORS = 20_000


@dataclass(frozen=True)
class Part:
    """Units of one file that one task writes; all of the file where there is one part of it."""

    file: OutputFile
    units: tuple[Unit, ...]
    number: int
    of: int

    @property
    def is_whole(self) -> bool:
        return self.of == 1

    @property
    def size_bytes(self) -> int:
        return sum(unit.size_bytes for unit in self.units)


@dataclass(frozen=True)
class Task:
    """What one worker does at a time: it makes whole files, or writes a part of one."""

    parts: tuple[Part, ...]
    makes_files: bool = True

    @property
    def name(self) -> str:
        """What it is called where somebody watches."""
        first = self.parts[0]
        if not first.is_whole:
            return f"{first.file.name} part {first.number} of {first.of}"
        others = len(self.parts) - 1
        return f"{first.file.name} and {others} more" if others else first.file.name

    @property
    def is_linked(self) -> bool:
        """Whether it only reads a file that is there."""
        return self.parts[0].file.source is not None

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)

    @property
    def read_bytes(self) -> int:
        """What it reads of the inputs, twice where something has to be known of a tensor first."""
        return sum(_read_bytes(unit) for part in self.parts for unit in part.units)


def tasks_of(
    files: Iterable[OutputFile], algorithm: Algorithm, *, in_place: bool = False
) -> Iterator[Task]:
    """Yield the tasks of files, in their order; those of one that is `in_place` are parts of it."""
    small: list[Part] = []
    room, tensors = TASK_BYTES, 0
    for file in files:
        parts = list(_parts(file, algorithm))
        if len(parts) > 1 or in_place or file.source is not None:
            yield from (Task((part,), makes_files=False) for part in parts)
            continue
        (part,) = parts
        if small and (part.size_bytes > room or tensors + len(part.units) > _MOST_TENSORS):
            yield Task(tuple(small))
            small, room, tensors = [], TASK_BYTES, 0
        small.append(part)
        room, tensors = room - part.size_bytes, tensors + len(part.units)
    if small:
        yield Task(tuple(small))


def is_told(placed: Placed, algorithm: Algorithm) -> bool:
    """Say whether what has to be known of a tensor is a task of its own: several write it."""
    is_large = placed.tensor.spec.size_bytes > TASK_BYTES
    return is_large and algorithm != "sha256" and bool(learners(placed.tensor))


def _parts(file: OutputFile, algorithm: Algorithm) -> Iterator[Part]:
    found: list[list[Unit]] = [[]]
    size_bytes = 0
    for placed in file.tensors:
        is_known = not file.is_hashed and is_told(placed, algorithm)
        for unit in units_of_tensor(placed, len(file.header), algorithm, is_known=is_known):
            is_full = size_bytes >= TASK_BYTES or len(found[-1]) >= _MOST_TENSORS
            if is_full and not file.is_hashed:
                found.append([])
                size_bytes = 0
            found[-1].append(unit)
            size_bytes += unit.size_bytes
    for number, units in enumerate(found, 1):
        yield Part(file, tuple(units), number, len(found))


def _read_bytes(unit: Unit) -> int:
    whole = unit.tensor.spec.count or 1
    forms = list(walk(unit.tensor))
    stored = sum(form.spec.size_bytes for form in forms if not form.operands)
    passes = 2 if any(form.is_computed_at_once for form in forms) else 1
    return stored * (unit.stop - unit.start) // whole * passes
