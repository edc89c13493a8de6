"""What a checkpoint's rows mean, where a tokenizer lies beside it, and how two differ in that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import SurgeonError, listed
from surgeon.base.indices import runs
from surgeon.base.tables import plural
from surgeon.formats import Checkpoint
from surgeon.tokens.folder import has_tokenizer, read_tokenizer
from surgeon.tokens.tokenizer import Tokenizer

_MOST_RUNS = 3


@dataclass(frozen=True)
class TokenChanges:
    """How the tokens of two folders differ: {token: its row, or its rows before and after}."""

    a: int
    b: int
    added: Mapping[str, int]
    removed: Mapping[str, int]
    moved: Mapping[str, tuple[int, int]]

    def as_json(self) -> dict[str, Any]:
        """Return the changes as a document."""
        moved = {token: {"a": was, "b": now} for token, (was, now) in self.moved.items()}
        return {"a": self.a, "b": self.b, "added": dict(self.added),
                "removed": dict(self.removed), "moved": moved}  # fmt: skip

    def lines(self) -> list[str]:
        """Return the changes as they are read: `rows 320:323 new: '<a>', '<b>', '<c>'`."""
        found = [f"tokens: {self.a:,} -> {self.b:,}"]
        for what, some in (("new", self.added), ("gone", self.removed)):
            tokens = {row: token for token, row in some.items()}
            spans = runs(sorted(tokens))
            for start, stop in spans[:_MOST_RUNS]:
                found.append(f"rows {start}:{stop} {what}: "
                             f"{listed([tokens[row] for row in range(start, stop)])}")  # fmt: skip
            if more := sum(stop - start for start, stop in spans[_MOST_RUNS:]):
                found.append(f"and {plural(more, 'row')} {what} besides")
        if self.moved:
            token, (was, now) = next(iter(self.moved.items()))
            others = f" and {len(self.moved) - 1:,} more" if len(self.moved) > 1 else ""
            found.append(f"in other rows: {token!r}, {was} -> {now}{others}")
        return found


def token_changes(first: Checkpoint, second: Checkpoint, notes: list[str]) -> TokenChanges | None:
    """Return how the tokens of two folders differ; None where they do not, or are not known."""
    before, after = (_tokenizer(one, notes) for one in (first, second))
    if before is None or after is None or before.ids == after.ids:
        return None
    old, new = before.ids, after.ids
    return TokenChanges(
        a=len(old),
        b=len(new),
        added={token: row for token, row in new.items() if token not in old},
        removed={token: row for token, row in old.items() if token not in new},
        moved={t: (row, new[t]) for t, row in old.items() if new.get(t, row) != row},
    )


def about_tokens(checkpoint: Checkpoint, notes: list[str]) -> str:
    """Return a line on a folder's tokenizer; nothing where there is none, or it is elsewhere.

    There it may take longer to fetch than all headers do.
    """
    if isinstance(checkpoint.folder, Elsewhere):
        return ""
    found = _tokenizer(checkpoint, notes)
    if found is None:
        return ""
    line = f"tokenizer: {found.kind}, {plural(len(found.ids), 'token')}"
    if found.specials:
        line += f", of which special: {listed(sorted(found.specials, key=found.ids.__getitem__))}"
    rows = _rows(checkpoint)
    if rows and max(rows) > found.size:
        line += f"; rows {found.size}:{max(rows)} have none"
    return line


def _rows(checkpoint: Checkpoint) -> Sequence[int]:
    """Return how many rows the tensors have that have one for each token."""
    # What knows configs computes too: it imports NumPy, which to list tensors takes none of.
    from surgeon.model_folder.files import config_of
    from surgeon.model_folder.vocabulary import vocabularies

    try:
        found = vocabularies(config_of(checkpoint), checkpoint.tensors)
    except SurgeonError:
        return ()
    return [checkpoint.tensors[name].spec.shape[dim]
            for places in found.values() for name, dim in places]  # fmt: skip


def _tokenizer(checkpoint: Checkpoint, notes: list[str]) -> Tokenizer | None:
    if checkpoint.folder is None or not has_tokenizer(checkpoint.folder):
        return None
    try:
        return read_tokenizer(checkpoint.folder)
    except SurgeonError as error:
        notes += error.problems
        return None
