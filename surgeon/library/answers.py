"""What the functions return: the facts of `--json` as attributes, and the command's text."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.base.tables import shown_lines

if TYPE_CHECKING:
    from surgeon.pictures.figures import Figure

Json = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Answer:
    """An answer of surgeon; `str()` of it is what the command prints."""

    text: str = field(compare=False)

    def __str__(self) -> str:
        return shown_lines(self.text)

    __repr__ = __str__

    def as_json(self) -> Json:
        """Return what the command prints with `--json`."""
        known = {part.name: getattr(self, part.name) for part in fields(self)}
        del known["text"]
        return {k: str(v) if isinstance(v, Path) else v for k, v in known.items()}


@dataclass(frozen=True, repr=False)
class Planned(Answer):
    """What a recipe would make of an input.

    `before` is what the input's tensors were that are changed or dropped; `dropped` are names that
    nothing was made of.
    """

    recipe: Json
    inputs: dict[str, Json]
    steps: list[Json]
    tensors: dict[str, Json]
    ties: dict[str, str]
    before: dict[str, Json]
    dropped: list[str]
    files: list[Json]
    carried: list[str]
    checks: list[str]
    optimizer: Json | None
    optimizer_state: Json | None
    config: list[Json]
    teacher: Json | None
    stages: list[Json]
    notes: list[str]

    def _repr_html_(self) -> str:
        from surgeon.pictures.facts import of_plan  # where it is looked at, and nowhere else
        from surgeon.pictures.report import shown_in_notebook

        return shown_in_notebook(of_plan(self.as_json()))


@dataclass(frozen=True, repr=False)
class Applied(Answer):
    """What was written, and where; the same for the same recipe and inputs."""

    output: Path
    manifest: Path
    files: list[Json]
    tensors: int
    copied_bytes: int
    computed_bytes: int
    linked_bytes: int
    dropped: list[str]
    optimizer_state: Json | None
    config: list[Json]
    steps: list[Json]
    notes: list[str]

    def _repr_html_(self) -> str:
        from surgeon.pictures import notebook

        return notebook.applied(self.as_json())


@dataclass(frozen=True, repr=False)
class Inspected(Answer):
    """What is in a checkpoint; `tree` are its modules, where they were asked for.

    `location` is what was asked for, as `in.pt#model.ema`, and `file` where that lies.
    """

    location: str
    file: str
    bytes: int
    header_sha256: str
    metadata: dict[str, str]
    tensors: dict[str, Json]
    totals: dict[str, dict[str, int]]
    notes: list[str]
    tree: list[Json] | None = None

    def as_json(self) -> Json:
        document = super().as_json()
        del document["location"]
        if self.tree is None:
            del document["tree"]
        return document

    def plot(self, path: Path | None = None) -> Figure:
        """Return a picture of sizes and values by layer, for which the tensors are read now.

        It is saved too where there is a path. Raises CheckpointError where the checkpoint is
        another by now.
        """
        from surgeon.inspection.spread import of_location

        found = of_location(self.location, self.tensors, self.header_sha256)
        return found.plot(path)

    def _repr_html_(self) -> str:
        from surgeon.pictures import notebook

        return notebook.inspected(self.as_json())
