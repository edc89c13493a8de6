"""The stages of a training run: which group learns how fast when, and what is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10

from surgeon.base.folding import folded
from surgeon.base.regions import count, parsed, split_block
from surgeon.base.tables import number, plural
from surgeon.lazy import TensorSpec
from surgeon.manifest.model import Group, OptimizerClass, Stage, TorchClass
from surgeon.pictures.facts import Facts
from surgeon.pictures.markup import (
    Markup,
    code,
    joined,
    section,
    shortened,
    svg,
    table,
    tag,
    words,
)
from surgeon.pictures.palette import series
from surgeon.pictures.schedules import rates

_WIDTH, _HEIGHT = 960.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 12.0, 40.0, 34.0
# Of the width, what a stage gets at least.
_NARROWEST = 0.06
_MOST_NAMED = 200
# Where rates differ by more, the axis is logarithmic.
_NEAR = 5.0
# A stage that does not say how long it lasts is drawn as one of so many.
_UNSAID = 1


@dataclass(frozen=True)
class _Span:
    """A stage on the axis of time, from `start` to `end` of the drawing's width."""

    stage: Stage
    length: int
    start: float
    end: float


def stages(facts: Facts) -> Markup:
    """Return stages × groups, and the learning rates over time."""
    if not facts.stages:
        return Markup()
    names = list(dict.fromkeys(group.name for stage in facts.stages for group in stage.groups))
    about = []
    if facts.optimizer:
        about.append(tag("p", {}, "Optimizer ", code(_called(facts.optimizer))))
    if facts.teacher:
        about.append(tag("p", {}, "Teacher ", code(facts.teacher)))
    if facts.state:
        about.append(tag("p", {}, "Optimizer state of ", code(facts.state)))
    return section(
        "Training", *about, _course(facts, names),
        tag("div", {"class": "wide-part"}, _matrix(facts, names)),
        *(_frozen(stage) for stage in facts.stages),
    )  # fmt: skip


def _called(wanted: TorchClass) -> str:
    given = ", ".join(f"{key}={value!r}" for key, value in wanted.args.items())
    return f"{wanted.path}({given})"


def _duration(stage: Stage) -> str:
    return ", ".join(f"{length:,} {unit}" for unit, length in stage.duration.items())


def _rate(group: Group, optimizer: OptimizerClass | None) -> float | None:
    """Return the learning rate that a group begins with, None where nobody says."""
    rate = group.settings.get("lr", optimizer.args.get("lr") if optimizer else None)
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    return float(rate) if is_number and isfinite(rate) else None


# The matrix


def _matrix(facts: Facts, names: Sequence[str]) -> Markup:
    headers = ["group", *(_heading(stage) for stage in facts.stages)]
    rows: list[list[str]] = []
    for index, name in enumerate(names):
        cells = [_cell(stage, name, facts) for stage in facts.stages]
        rows.append([joined([_swatch(index), " ", tag("span", {"class": "name"}, name)]), *cells])
    frozen = [_amount(stage.frozen, facts.told.tensors) for stage in facts.stages]
    if any(stage.frozen for stage in facts.stages):
        rows.append([tag("span", {"class": "quiet"}, "frozen"), *frozen])
    rest = [_besides(stage) for stage in facts.stages]
    if any(rest):
        rows.append([tag("span", {"class": "quiet"}, "besides"), *rest])
    return table(headers, rows)


def _heading(stage: Stage) -> str:
    lasting = _duration(stage) or "no duration"
    return joined([stage.name, tag("span", {"class": "quiet"}, f" · {lasting}")])


def _cell(stage: Stage, name: str, facts: Facts) -> str:
    parts: list[str] = []
    for group in stage.groups:
        if group.name != name:
            continue
        rate = _rate(group, facts.optimizer)
        parts.append(tag("div", {}, "the optimizer's rate" if rate is None else
                         tag("b", {}, f"{number(rate)}")))  # fmt: skip
        others = [f"{k}={v!r}" for k, v in group.settings.items() if k != "lr"]
        parts += [tag("div", {"class": "quiet"}, other) for other in others]
        parts.append(tag("div", {"class": "quiet"}, _amount(group.params, facts.told.tensors)))
    return joined(parts)


def _amount(blocks: Sequence[str], specs: Mapping[str, TensorSpec]) -> str:
    if not blocks:
        return ""
    elements = sum(_elements(block, specs) for block in blocks)
    parts = sum(block not in specs for block in blocks)
    what = plural(len(blocks), "block" if parts else "tensor")
    return f"{what}, {plural(elements, 'element')}"


def _elements(block: str, specs: Mapping[str, TensorSpec]) -> int:
    if block in specs:
        return specs[block].count
    name, slices = split_block(block)
    if name not in specs:
        raise ValueError(f"'{block}': there is no tensor '{name}'")
    return count(parsed(slices, specs[name].shape))


def _besides(stage: Stage) -> str:
    lines = []
    if stage.scheduler:
        lines.append(_called(stage.scheduler))
    if stage.optimizer_state == "carry":
        lines.append("carries the optimizer's state")
    if stage.eval_modules:
        lines.append(f"{plural(len(stage.eval_modules), 'module')} in evaluation mode")
    lines += [f"in the end aligns {block}" for after in stage.after for block in after.align_rows]
    return joined(tag("div", {}, line) for line in lines)


def _frozen(stage: Stage) -> str:
    """Return what a stage trains and freezes by name, folded away."""
    rows = [(group.name, *_folded(group.params)) for group in stage.groups]
    rows.append(("(frozen)", *_folded(stage.frozen)))
    body = [
        tag("p", {}, tag("b", {}, name), ": ", tag("span", {"class": "name"}, ", ".join(blocks)))
        for name, *blocks in rows
        if blocks
    ]
    return tag("details", {}, tag("summary", {}, f"Parameters of {stage.name}"), *body)


def _folded(blocks: Iterable[str]) -> list[str]:
    split = [split_block(block) for block in blocks]
    rows = folded((name, f"[{slices}]" if slices else "") for name, slices in split)
    found = [name + slices for name, slices in rows]
    more = len(found) - _MOST_NAMED
    return [*found[:_MOST_NAMED], f"and {more:,} more"] if more > 0 else found


def _swatch(index: int) -> Markup:
    colour, dash = series(index)
    line = tag("line", {"x1": 0, "y1": 6, "x2": 28, "y2": 6, "stroke": colour, "stroke-width": 3,
                        "stroke-dasharray": dash})  # fmt: skip
    style = "width:28px;height:12px"
    return tag("svg", {"viewBox": "0 0 28 12", "style": style, "aria-hidden": "true"}, line)


# The learning rates over time


def _course(facts: Facts, names: Sequence[str]) -> Markup:
    spans = _spans(facts.stages)
    lines: list[tuple[int, list[tuple[float, float]]]] = []
    unknown: list[str] = []
    for span in spans:
        for group in span.stage.groups:
            rate = _rate(group, facts.optimizer)
            if rate is None:
                continue
            found = _rates(span, rate)
            if found is None:
                unknown.append(span.stage.name)
                found = [(0, rate), (span.length, rate)]
            width = (span.end - span.start) / max(span.length, 1)
            points = [(span.start + time * width, value) for time, value in found]
            lines.append((names.index(group.name), points))
    if not lines:
        return Markup()
    axis = _Axis([rate for _, points in lines for _, rate in points])
    parts = [*_bands(spans), *axis.grid()]
    parts += [_line(index, points, axis) for index, points in lines]
    drawing = svg(_WIDTH, _HEIGHT, "learning rates of the groups over time", *parts)
    notes = [tag("p", {"class": "note"}, _unknown(facts, name)) for name in dict.fromkeys(unknown)]
    return joined([drawing, *notes])


def _unknown(facts: Facts, name: str) -> str:
    schedulers = [s.scheduler.path for s in facts.stages if s.name == name and s.scheduler]
    return (
        f"{name}: the course under {', '.join(schedulers)} is not known here; drawn is the rate "
        "that it begins with."
    )


def _rates(span: _Span, rate: float) -> list[tuple[int, float]] | None:
    scheduler = span.stage.scheduler
    if scheduler and not span.stage.duration:
        return None
    path, given = (scheduler.path, scheduler.args) if scheduler else ("", {})
    return rates(path, given, rate, span.length)


def _spans(found: Sequence[Stage]) -> list[_Span]:
    """Place stages beside each other, as wide as they are long where that can be compared."""
    lengths = [next(iter(stage.duration.values()), _UNSAID) for stage in found]
    units = {next(iter(stage.duration), "") for stage in found}
    total = sum(lengths)
    shares = [max(length / total, _NARROWEST) if len(units) == 1 else 1.0 for length in lengths]
    room, x = (_WIDTH - _LEFT - _RIGHT) / sum(shares), _LEFT
    spans = []
    for stage, length, share in zip(found, lengths, shares, strict=True):
        spans.append(_Span(stage, length, x, x + share * room))
        x += share * room
    return spans


def _bands(spans: Sequence[_Span]) -> Iterable[Markup]:
    for index, span in enumerate(spans):
        width, height = span.end - span.start, _HEIGHT - _TOP - _BOTTOM
        if index % 2:
            yield tag("rect", {"x": span.start, "y": _TOP, "width": width, "height": height,
                               "class": "band"})  # fmt: skip
        room = int(width / 7)
        name = shortened(span.stage.name, max(room, 3))
        yield words(span.start + 4, _TOP - 8, name, kind="strong")
        lasting = _duration(span.stage)
        if lasting and len(lasting) <= room:
            yield words(span.end - 4, _HEIGHT - _BOTTOM + 16, lasting, kind="small", anchor="end")


def _line(index: int, points: Sequence[tuple[float, float]], axis: _Axis) -> Markup:
    colour, dash = series(index)
    path, before = "", ""
    for x, rate in points:  # a rate holds until the scheduler is stepped again
        y = f"{axis.place(rate):.1f}"
        path += f"H{x:.1f}" if path else f"M{x:.1f} {y}"
        path += f"V{y}" if before not in ("", y) else ""
        before = y
    return tag("path", {"d": path, "fill": "none", "stroke": colour, "stroke-width": 2.4,
                        "stroke-dasharray": dash, "data-group": str(index)})  # fmt: skip


class _Axis:
    """The axis of learning rates: from zero, or logarithmic where they are far apart."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 0]
        self._high = max(positive, default=1.0)
        lowest = min(positive, default=1.0)
        # A course that ends at zero has no place on a logarithmic axis: it is drawn at the bottom.
        self._is_log = self._high / lowest > _NEAR
        self._low = max(lowest, self._high * 1e-6)
        if self._is_log:
            self._low, self._high = 10 ** floor(log10(self._low)), self._high * 1.3

    def place(self, value: float) -> float:
        """Return where a rate is, counted from the top."""
        if self._is_log:
            span = log10(self._high) - log10(self._low)
            share = (log10(max(value, self._low)) - log10(self._low)) / span
        else:
            share = max(value, 0.0) / (self._high * 1.1)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> Iterable[Markup]:
        for value in self._ticks():
            y = self.place(value)
            yield tag("line", {"x1": _LEFT, "x2": _WIDTH - _RIGHT, "y1": y, "y2": y,
                               "class": "grid"})  # fmt: skip
            yield words(_LEFT - 8, y + 4, f"{value:g}", kind="small", anchor="end")
        yield words(8, _TOP - 8, "rate", kind="small")

    def _ticks(self) -> list[float]:
        if self._is_log:
            first, last = floor(log10(self._low)), floor(log10(self._high))
            return [10.0**power for power in range(first, last + 1)]
        step = 10 ** floor(log10(self._high))
        step = next(s for s in (step / 5, step / 2, step) if self._high / s <= 5.5)
        return [step * index for index in range(int(self._high * 1.1 / step) + 1)]
