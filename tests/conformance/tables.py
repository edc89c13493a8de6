"""What `make conformance` prints: rows, and which of them are beyond the bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate

from tests.conformance import chances, sides
from tests.conformance.configurations import CONFIGURATIONS
from tests.conformance.deviations import DEVIATIONS
from tests.conformance.methods import BY_CHANCE, METHODS, Method
from tests.conformance.models import SPECIAL
from tests.conformance.sides import Job, Made, difference
from tests.network import correctly_rounded

# As a fraction of a tensor's largest magnitude.
BOUND = 1e-9


@dataclass(frozen=True)
class Table:
    """Rows under their headings, and a line for everything that is beyond the bounds."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    problems: list[str]

    def __str__(self) -> str:
        return f"{self.title}\n\n{tabulate(self.rows, self.headings, tablefmt='github')}\n"


def methods(made: Mapping[Any, Made]) -> Table:
    """Compare every deterministic method, with options that make both definitions the same."""
    rows, problems = [], []
    for name, found in made.items():
        ours = max(_to_oracle(METHODS[name], found).values())
        theirs = max(_to_mergekit(found).values(), default=float("nan"))
        rows.append([name, _number(ours), _number(theirs)])
        if found.refused or not max(ours, theirs) <= BOUND:
            problems.append(f"{name}: {ours} to the oracle, {theirs} to mergekit {found.refused}")
    return Table(
        "Deterministic methods, float64: surgeon's largest difference",
        ["method", "to the oracle", "to mergekit"],
        rows,
        problems,
    )


def degenerate(made: Mapping[Any, Made]) -> Table:
    """Compare the same methods on tensors that are special cases."""
    rows, problems = [], []
    for name, found in made.items():
        method = METHODS[name]
        oracle = max(_to_oracle(method, found).values())
        theirs = {SPECIAL.get(n, n): apart for n, apart in _to_mergekit(found).items()}
        differing = {kind for kind, apart in theirs.items() if not apart <= BOUND}
        others = max((theirs[kind] for kind in theirs.keys() - differing), default=float("nan"))
        said = [f"{kind} ({_number(theirs[kind])}): {method.differs.get(kind)}"
                for kind in sorted(differing)]  # fmt: skip
        said += [f"refused: {method.refuses}"] if found.refused else []
        rows.append([name, _number(oracle), _number(others), "; ".join(said)])
        if not oracle <= BOUND:
            problems.append(f"{name}: {oracle} to the oracle")
        certain = {kind for kind, why in method.differs.items() if why not in BY_CHANCE}
        expected = certain <= differing <= set(method.differs)
        if not expected or bool(found.refused) != bool(method.refuses):
            problems.append(
                f"{name}: differs for {sorted(differing)}, not for {sorted(method.differs)}; "
                f"refused: {found.refused}"
            )
    return Table(
        "The same for tensors that are special cases",
        ["method", "to the oracle", "to mergekit", "mergekit differs"],
        rows,
        problems,
    )


def deviations(made: Mapping[Any, Made]) -> Table:
    """Pin what is computed otherwise on purpose: surgeon follows the oracle, mergekit does not."""
    rows, problems = [], []
    for name, found in made.items():
        ours = max(_to_oracle(DEVIATIONS[name].method, found).values())
        theirs = max(_to_mergekit(found).values(), default=float("nan"))
        rows.append([name, _number(ours), _number(theirs), DEVIATIONS[name].why])
        if not ours <= BOUND or not theirs > BOUND:
            problems.append(f"{name}: {ours} to the oracle, {theirs} to mergekit {found.refused}")
    return Table(
        "Deliberate deviations",
        ["method", "to the oracle", "to mergekit", "why"],
        rows,
        problems,
    )


def rounding(made: Mapping[Any, Made]) -> Table:
    """Compare bfloat16 results with the oracle's, rounded once."""
    rows, problems = [], []
    for name, found in made.items():
        expected = {
            tensor: correctly_rounded(values, torch.bfloat16)
            for tensor, values in _oracle(METHODS[name], found).items()
        }
        ours, theirs = (_share(side, expected) for side in (found.ours, found.theirs))
        rows.append([name, f"{ours:.4%}", f"{theirs:.2%}" if found.theirs else "refused"])
        if ours < 1:
            problems.append(f"{name}: {ours:.4%} of surgeon's results are correctly rounded")
    return Table(
        "Correctly rounded bfloat16 results", ["method", "surgeon", "mergekit"], rows, problems
    )


def random(made: Mapping[Any, Made]) -> Table:
    """Compare what is kept at random: it differs, but not in distribution."""
    rows, problems = [], []
    for (name, rescale), drawn in chances.both(made).items():
        label = f"{name}, rescale" if rescale else name
        for who, side, bound in zip(
            ("surgeon", "mergekit"), drawn, (BOUND, chances.FLOAT32), strict=True
        ):
            l1 = _number(side.l1) if rescale else "-"
            kept, deviation = f"{side.kept:.4f}", f"{side.deviation:.2f}"
            rows.append([label, who, kept, deviation, l1, _number(side.value)])
            if (
                abs(side.kept - chances.DENSITY) > chances.allowed()
                or side.deviation > chances.CHANCE
                or (rescale and side.l1 > bound)
                or side.value > bound
            ):
                problems.append(f"{label}: {who} {side}")
    return Table(
        f"Random methods, density {chances.DENSITY}: distributions (each rank's fraction kept is "
        "that far from its probability, in standard deviations)",
        ["method", "by", "fraction kept", "by rank", "l1 norm", "values kept"],
        rows,
        problems,
    )


def configurations(made: Mapping[Any, Made]) -> Table:
    """Compare imported configurations of all kinds."""
    rows, problems = [], []
    for name, found in made.items():
        apart = max(_to_mergekit(found).values(), default=float("nan"))
        rows.append([name, str(found.recipe["about"].split(", ")[1].split(")")[0]), _number(apart)])
        dtypes = {n: tensor.dtype for n, tensor in found.ours.items()}
        if dtypes != {n: tensor.dtype for n, tensor in found.theirs.items()}:
            problems.append(f"{name}: other names or dtypes")
        elif not apart <= BOUND:
            problems.append(f"{name}: {apart} to mergekit {found.refused}")
    return Table(
        "Imported configurations", ["configuration", "method", "to mergekit"], rows, problems
    )


# What is run for each table, and what is made of it.
TABLES: Mapping[str, tuple[Callable[[Mapping[Any, Made]], Table], Mapping[Any, Job]]] = {
    "methods": (methods, {name: Job(m.config) for name, m in METHODS.items()}),
    "degenerate": (degenerate, {n: Job(m.config, "degenerate") for n, m in METHODS.items()}),
    "rounding": (
        rounding,
        {n: Job({**m.config, "dtype": "bfloat16"}, "bfloat16") for n, m in METHODS.items()},
    ),
    "random": (random, chances.JOBS),
    "configurations": (configurations, CONFIGURATIONS),
    "deviations": (deviations, {n: Job(d.method.config, d.family) for n, d in DEVIATIONS.items()}),
}


def tables(names: Iterable[str]) -> list[Table]:
    """Return tables; all that they need is run at once."""
    jobs = {(name, key): job for name in names for key, job in TABLES[name][1].items()}
    made = sides.both(jobs)
    return [
        TABLES[name][0]({key: found for (of, key), found in made.items() if of == name})
        for name in names
    ]


def _oracle(method: Method, found: Made) -> sides.Tensors:
    # The other layers are of the same kind, and the oracles take their time.
    return {
        name: method.oracle([operand[name] for operand in found.operands]).view(tensor.shape)
        for name, tensor in found.ours.items()
        if ".layers." not in name or ".layers.0." in name
    }


def _to_oracle(method: Method, found: Made) -> dict[str, float]:
    expected = _oracle(method, found)
    return {name: difference(found.ours[name], tensor) for name, tensor in expected.items()}


def _to_mergekit(found: Made) -> dict[str, float]:
    return {name: difference(found.ours[name], found.theirs[name]) for name in found.theirs}


def _share(made: sides.Tensors, expected: sides.Tensors) -> float:
    # What mergekit's ramplus_tl makes of bfloat16 is float32.
    equal = sum(
        int((made[name].to(tensor.dtype) == tensor).sum())
        for name, tensor in expected.items()
        if made
    )
    return equal / sum(tensor.numel() for tensor in expected.values())


def _number(value: float) -> str:
    return f"{value:.1e}" if value else "0"
