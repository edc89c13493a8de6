"""The names of classes in a config, which stay with the rows that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.lazy import LazyTensor
from surgeon.model_folder.case import LABELS, Case, Json
from surgeon.model_folder.rows import COPY, UNKNOWN, row_numbers
from surgeon.model_folder.said import Meaning

# Where a config names neither labels nor their number, transformers takes this for granted.
_DEFAULT_LABELS = 2


def follow_labels(case: Case, meaning: Meaning) -> None:
    """Follow how many rows the classifier has: id2label, label2id, num_labels."""
    labels = _labels(case.old)
    before = [(name, dims.index(LABELS)) for name, dims in meaning.before.items() if LABELS in dims]
    after = {
        name: case.after[name].spec.shape[0]
        for name, dims in sorted(meaning.after.items())
        if dims[:1] == (LABELS,)
    }
    sizes = {case.before[name].spec.shape[dim] for name, dim in before}
    if labels is None or not after or sizes != {len(labels)}:
        return
    case.explained |= set(before)
    if len(set(after.values())) > 1:
        sizes_by = " and ".join(f"{size} by '{name}'" for name, size in after.items())
        case.contradiction(f"num_labels is {sizes_by}; change them alike")
        return
    name, count = next(iter(after.items()))
    made = _followed(labels, _rows(case, name, len(labels)))
    if made != labels or "id2label" in case.stated:
        _name_labels(case, made)
    for key in ("id2label", "num_labels"):
        stated = case.new.get(key)
        found = len(stated) if isinstance(stated, dict) else stated
        if found is not None and found != count:
            case.contradiction(
                f"{key} has {found} labels, but '{name}' has {count} rows; state it in "
                "output.config"
            )


def _labels(config: Json) -> list[str] | None:
    """Return the labels in order; None where they are not numbered from 0 on."""
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", _DEFAULT_LABELS)
        return [f"LABEL_{index}" for index in range(count)] if type(count) is int else None
    if not isinstance(named, dict) or named.keys() != {str(i) for i in range(len(named))}:
        return None
    return [str(named[str(index)]) for index in range(len(named))]


def _rows(case: Case, name: str, old_count: int) -> list[int | None]:
    """Return which old row each row of the classifier is; by position where that is not known."""
    tensor, old = case.after[name], case.before.get(name)
    count = tensor.spec.shape[0]
    rows = _old_rows(tensor, old) if old is not None else None
    # A new layer of the old size is for the old classes.
    if rows is None or len(rows) != count or rows == [None] * old_count:
        return [index if index < old_count else None for index in range(count)]
    return rows


def _old_rows(tensor: LazyTensor, old: LazyTensor) -> list[int | None] | None:
    """Return which row of `old` each row is, None for new rows; None where that is not known.

    That is what the moves that the tensor went through do to the numbers of the rows. A copy is a
    new row among old ones; of copies alone it is not known what they are.
    """
    if not tensor.spec.count:
        return None
    number_of = row_numbers(tensor, old)
    origins = [number_of(number) for number in range(tensor.spec.shape[0])]
    if UNKNOWN in origins or (COPY in origins and max(origins) < 0):
        return None
    return [None if origin < 0 else origin for origin in origins]


def _followed(labels: Sequence[str], rows: Sequence[int | None]) -> list[str]:
    """Return a label for each row: that of the old row that it is, else a new one."""
    made = [None if row is None else labels[row] for row in rows]
    taken = set(made)
    for index, label in enumerate(made):
        number = index
        while label is None:
            label = f"LABEL_{number}" if f"LABEL_{number}" not in taken else None
            number += len(rows)
        taken.add(label)
        made[index] = label
    return [label for label in made if label is not None]


def _name_labels(case: Case, made: Sequence[str]) -> None:
    named: Json = {str(index): label for index, label in enumerate(made)}
    # What the recipe states may name some of them only.
    stated = case.stated.get("id2label")
    named |= stated if isinstance(stated, dict) else {}
    case.new["id2label"] = named
    numbers: Json = {str(label): int(n) for n, label in named.items() if n.isdigit()}
    case.follow("label2id", numbers)
    if case.new["label2id"] != numbers or len(numbers) != len(named):
        case.contradiction(
            "id2label and label2id do not name the same rows; state id2label alone, with a label "
            "of its own for each"
        )
    if "num_labels" in case.old:
        case.follow("num_labels", len(made))
