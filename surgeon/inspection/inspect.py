"""What is in a checkpoint: its tensors, statistics of their values, and its modules as a tree."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from surgeon.base import patterns
from surgeon.base.deferred import np
from surgeon.base.errors import PlanError, SurgeonError, UsageError
from surgeon.base.folding import folded, ranges
from surgeon.base.screen import screen
from surgeon.base.strict_json import parse_json
from surgeon.base.tables import number, shape_text, shown, table
from surgeon.base.units import spoken_size
from surgeon.draft import ties, vectors
from surgeon.formats import Checkpoint
from surgeon.inspection.tokens import about_tokens
from surgeon.lazy import BLOCK, LazyTensor, Scratch, upcast_blocks
from surgeon.numeric.dtypes import DTYPES

# Deeper than any network; a name may have thousands of dots.
_DEEPEST = 64
_LONGEST_NUMBER = 10
_LONGEST_VALUE = 200


@dataclass(frozen=True)
class Statistics:
    """Of the finite values of a tensor; None where there are none. Norm is the Euclidean one."""

    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    norm: float | None
    zeros: float
    nan: int
    inf: int


class Entry(NamedTuple):
    """One name of a checkpoint."""

    name: str
    tensor: LazyTensor
    owner: str | None
    statistics: Statistics | None = None


def selected(pattern: Sequence[str], tensors: dict[str, LazyTensor] | Iterable[str]) -> list[str]:
    """Return the names that patterns of the command line select; none select everything.

    Raises UsageError where a pattern matches nothing.
    """
    names = list(tensors)
    if not pattern:
        return names
    if all(word.startswith("!") for word in pattern):
        pattern = ["**", *pattern]
    special = {"@vectors": vectors(tensors) if isinstance(tensors, dict) else ()}
    try:
        return patterns.select(list(pattern), names, special=special)
    except PlanError as error:
        raise UsageError(*error.problems) from None


def wanted_by(pattern: Sequence[str]) -> Callable[[Collection[str]], Collection[str]] | None:
    """Return what tells which names of an index patterns select; None where they select all."""
    if not pattern:
        return None

    def wanted(names: Collection[str]) -> Collection[str]:
        try:
            return selected(pattern, list(names))
        except SurgeonError:
            return names  # a tied name may be in a header alone; that there is none is said later

    return wanted


def inspected(
    tensors: dict[str, LazyTensor], pattern: Sequence[str], *, stats: bool
) -> list[Entry]:
    """Return what patterns select of a checkpoint, in its order."""
    aliases = ties(tensors)
    known: dict[int, Statistics | None] = {}
    scratch = Scratch()
    entries = []
    for name in selected(pattern, tensors):
        tensor = tensors[name]
        if stats and id(tensor) not in known:
            known[id(tensor)] = statistics(tensor, scratch)
        found = known[id(tensor)] if stats else None
        entries.append(Entry(name, tensor, aliases.get(name), found))
    return entries


def statistics(tensor: LazyTensor, scratch: Scratch) -> Statistics | None:
    """Read a tensor block by block; None for dtypes that cannot be computed with.

    Sums are float64, added in block order. The spread is put together from that of the blocks:
    Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm, equation 2.1.
    """
    if DTYPES[tensor.spec.dtype].kind not in ("float", "int", "bool"):
        return None
    count = nan = inf = zeros = 0
    lowest: list[float] = []
    highest: list[float] = []
    mean = spread = squares = 0.0
    for start in range(0, tensor.spec.count, BLOCK):
        stop = min(start + BLOCK, tensor.spec.count)
        with scratch.scope(), np.errstate(over="ignore", invalid="ignore"):
            (block,) = upcast_blocks([tensor], start, stop, scratch)
            zeros += block.size - int(np.count_nonzero(block))
            values = block
            if block.dtype.kind == "f" and not (finite := np.isfinite(block)).all():
                nan += int(np.count_nonzero(np.isnan(block)))
                inf += int(np.count_nonzero(np.isinf(block)))
                values = block[finite]
            if not values.size:
                continue
            lowest.append(values.min().item())
            highest.append(values.max().item())
            wide = scratch.take(np.float64, values.size)
            np.copyto(wide, values, casting="unsafe")
            block_mean = float(np.add.reduce(wide)) / values.size
            square = scratch.take(np.float64, values.size)
            squares += float(np.add.reduce(np.multiply(wide, wide, out=square)))
            wide -= block_mean
            block_spread = float(np.add.reduce(np.multiply(wide, wide, out=square)))
        step, both = block_mean - mean, count + values.size
        spread += block_spread + step * step * (count * values.size / both)
        mean += step * values.size / both
        count = both
    if not count:
        share = zeros / tensor.spec.count if tensor.spec.count else 0.0
        return Statistics(None, None, None, None, None, share, nan, inf)
    return Statistics(
        min(lowest),
        max(highest),
        _finite(mean),
        _finite(math.sqrt(spread / count) if spread >= 0 else math.nan),
        _finite(math.sqrt(squares) if squares >= 0 else math.nan),
        zeros / tensor.spec.count,
        nan,
        inf,
    )


def _finite(value: float) -> float | None:
    """Return a number, None where it overflowed."""
    return value if math.isfinite(value) else None


def totals(entries: Iterable[Entry]) -> dict[str, dict[str, int]]:
    """Return tensors, elements and bytes by dtype; a tied tensor counts once."""
    found: dict[str, dict[str, int]] = {}
    specs = {id(entry.tensor): entry.tensor.spec for entry in entries}
    # Many tensors share one spec.
    distinct = {id(spec): spec for spec in specs.values()}
    counts = Counter(map(id, specs.values()))
    for key, spec in distinct.items():
        row = found.setdefault(spec.dtype, {"tensors": 0, "elements": 0})
        row["tensors"] += counts[key]
        row["elements"] += spec.count * counts[key]
    for dtype, row in found.items():
        row["bytes"] = row["elements"] * DTYPES[dtype].bits // 8
    return found


@dataclass
class Node:
    """A module or a tensor, or several numbered modules that are alike; figures are of one."""

    name: str
    entry: Entry | None = None
    children: list[Node] = field(default_factory=list)
    copies: int = 1
    elements: int = 0
    size_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the node as a document."""
        document: dict[str, Any] = {"name": self.name, "copies": self.copies}
        document |= {"elements": self.elements, "bytes": self.size_bytes}
        if self.entry:
            spec = self.entry.tensor.spec
            document |= {"dtype": spec.dtype, "shape": list(spec.shape)}
        if self.children:
            document["children"] = [child.as_json() for child in self.children]
        return document


_Branch = dict[str, Any]


def tree(entries: Iterable[Entry]) -> list[Node]:
    """Return the modules that entries lie in; numbered siblings that are alike become one node.

    Tied names count where they are, but their elements only with their owner.
    """
    root: _Branch = {}
    for entry in entries:
        *modules, leaf = entry.name.split(".", _DEEPEST)
        branch = root
        for module in modules:
            branch = branch.setdefault(f"{module}.", {})  # a tensor may be called like a module
        branch[leaf] = entry
    shapes: dict[Any, int] = {}
    return [node for node, _ in _nodes(root, shapes)]


def _nodes(branch: _Branch, shapes: dict[Any, int]) -> list[tuple[Node, int]]:
    """Return the nodes under a branch, each with a number that is equal for equal structure."""
    made: list[tuple[Node, int]] = []
    for name, content in branch.items():
        if isinstance(content, Entry):
            node = Node(name, content)
            if content.owner is None:
                node.elements = content.tensor.spec.count
                node.size_bytes = content.tensor.spec.size_bytes
            spec = content.tensor.spec
            structure: Any = (spec.dtype, spec.shape, content.owner)
        else:
            under = _nodes(content, shapes)
            node = Node(name.removesuffix("."), children=[child for child, _ in under])
            node.elements = sum(child.elements * child.copies for child in node.children)
            node.size_bytes = sum(child.size_bytes * child.copies for child in node.children)
            structure = tuple((child.name, shape) for child, shape in under)
        made.append((node, shapes.setdefault(structure, len(shapes))))
    return _collapse(made)


def _collapse(made: list[tuple[Node, int]]) -> list[tuple[Node, int]]:
    groups: dict[Any, list[tuple[Node, int]]] = {}
    for index, (node, shape) in enumerate(made):
        numbered = node.name.isdecimal() and len(node.name) < _LONGEST_NUMBER
        groups.setdefault(("alike", shape) if numbered else index, []).append((node, shape))
    collapsed = []
    for group in groups.values():
        node, shape = group[0]
        if len(group) > 1:
            numbers = sorted(int(member.name) for member, _ in group)
            name = f"{{{ranges(numbers)}}}"
            node = Node(
                name, node.entry, node.children, len(group), node.elements,
                node.size_bytes,
            )  # fmt: skip
        collapsed.append((node, shape))
    return collapsed


def as_json(checkpoint: Checkpoint, entries: Sequence[Entry], *, as_tree: bool) -> dict[str, Any]:
    """Return what was found as a document."""
    tensors: dict[str, Any] = {}
    shards = checkpoint.shards
    for entry in entries:
        spec = entry.tensor.spec
        row: dict[str, Any] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "bytes": spec.size_bytes,
        }
        if entry.owner:
            row["tied_to"] = entry.owner
        if shard := shards.get(entry.name):
            row["file"] = shard
        if entry.statistics:
            row["stats"] = asdict(entry.statistics)
        tensors[entry.name] = row
    document = {
        "file": str(checkpoint.path),
        "bytes": checkpoint.size_bytes,
        "header_sha256": checkpoint.header_sha256,
        "metadata": checkpoint.metadata,
        "tensors": tensors,
        "totals": totals(entries),
        "notes": list(checkpoint.notes),
    }
    return document | ({"tree": [node.as_json() for node in tree(entries)]} if as_tree else {})


def as_text(checkpoint: Checkpoint, entries: Sequence[Entry], *, as_tree: bool) -> str:
    """Return a table or a tree of what was found, totals, and the metadata.

    On a terminal, layers that are alike are one row of the table: lowest and highest figures.
    """
    parts = [_tree_text(tree(entries)) if as_tree else _table_text(entries)]
    rows = [
        (dtype, f"{row['tensors']:,}", f"{row['elements']:,}", spoken_size(row["bytes"]))
        for dtype, row in totals(entries).items()
    ]
    if len(rows) > 1:
        figures = [*totals(entries).values()]
        tensors, elements, size = (sum(r[key] for r in figures) for key in figures[0])
        rows.append(("total", f"{tensors:,}", f"{elements:,}", spoken_size(size)))
    headers = ("dtype", "tensors", "elements", "size")
    parts.append(table(headers, rows, right=headers[1:]))
    if checkpoint.metadata:
        lines = [f"  {shown(key)}: {_meant(key, text)}" for key, text in
                 sorted(checkpoint.metadata.items())]  # fmt: skip
        parts.append("\n".join(["metadata", *lines]))
    said: list[str] = []
    if line := about_tokens(checkpoint, said):
        parts.append(line)
    parts += [f"note: {note}" for note in said]
    return "\n\n".join(parts)


def _meant(key: str, text: str) -> str:
    """Return a metadata entry for people; our own one without its braces."""
    if key == "surgeon":
        try:
            ours = parse_json(text.encode())
            return shown(f"version {ours['version']}, recipe {ours['recipe_sha256']}")
        except (ValueError, KeyError, TypeError):
            pass  # somebody else's entry of this name
    return shown(text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}...")


def _table_text(entries: Iterable[Entry]) -> str:
    rows: list[tuple[str, ...]] = []
    for name, tensor, owner, found in entries:
        spec = tensor.spec
        row = (name, spec.dtype, shape_text(spec.shape), spoken_size(spec.size_bytes), owner or "")
        rows.append((*row, *_numbers(found)) if found else row)
    headers: tuple[str, ...] = ("name", "dtype", "shape", "size", "tied to")
    with_numbers = any(len(row) > len(headers) for row in rows)
    if with_numbers:
        headers += _NUMBERS
        rows = [(*row, *[""] * (len(headers) - len(row))) for row in rows]
    if screen().is_terminal:
        rows = folded(rows, between=range(_FIGURES_FROM, len(headers)))
    return table(headers, rows, right=("size", *_NUMBERS))


def _numbers(found: Statistics) -> tuple[str, ...]:
    return (
        *map(number, (found.minimum, found.maximum, found.mean, found.std, found.norm)),
        f"{found.zeros:.1%}",
        f"{found.nan:,}" if found.nan else "",
        f"{found.inf:,}" if found.inf else "",
    )


# After name, dtype, shape, size and what it is tied to.
_FIGURES_FROM = 5
_NUMBERS = ("min", "max", "mean", "std", "norm", "zeros", "nan", "inf")


def _tree_text(nodes: Iterable[Node]) -> str:
    rows: list[tuple[str, str, str, str, str]] = []
    pending = [(node, 0) for node in reversed(list(nodes))]
    while pending:
        node, depth = pending.pop()
        name, copies = node.name, node.copies
        while len(node.children) == 1 and (copies == 1 or node.children[0].copies == 1):
            node = node.children[0]
            name, copies = f"{name}.{node.name}", copies * node.copies
        times = f"{copies} x " if copies > 1 else ""
        spec = node.entry.tensor.spec if node.entry else None
        tied = node.entry.owner if node.entry and node.entry.owner else ""
        rows.append(
            (
                f"{'  ' * depth}{name}",
                f"{spec.dtype} {shape_text(spec.shape)}" if spec else "",
                f"{times}{node.elements:,}",
                f"{times}{spoken_size(node.size_bytes)}",
                tied,
            )
        )
        pending += [(child, depth + 1) for child in reversed(node.children)]
    headers = ("name", "tensor", "elements", "size", "tied to")
    return table(headers, rows, right=headers[2:4])
