"""Where an output comes from, as a graph: inputs and models, and the steps that they go through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from surgeon.base.tables import plural
from surgeon.pictures.facts import Facts, Step
from surgeon.pictures.markup import Markup, section, shortened, svg, tag, words
from surgeon.pictures.palette import FATES
from surgeon.recipe.fates import CHANGED, short_json

_BOX, _TALL, _GAP, _BETWEEN, _MARGIN = 240.0, 44.0, 26.0, 90.0, 4.0
_MOST_STEPS, _MOST_MODELS = 40, 24
_LETTERS = 32


@dataclass
class _Node:
    """A box: where its left upper corner is, and what it says in two lines."""

    title: str
    about: str
    x: float = 0.0
    y: float = 0.0
    colour: str = ""


@dataclass
class _Used:
    """What the lineage tells of a step: models that it read, and how often; its parameters."""

    models: Counter[str] = field(default_factory=Counter)
    parameters: set[str] = field(default_factory=set)


def lineage(facts: Facts) -> Markup:
    """Return the graph; nothing for a recipe of one checkpoint in which nothing goes together."""
    used = _used(facts)
    if not any(found.models for found in used.values()):
        return Markup()
    steps = _shortened([*_grouped(facts.steps, used)])
    made = {step.into for step in facts.steps}
    more = len({m for found in used.values() for m in found.models} - made) - _MOST_MODELS
    note = f"{plural(more, 'more model')} of this recipe would have no room." if more > 0 else ""
    drawing = tag("div", {"class": "wide-part"}, _drawn(facts, steps, used))
    return section("Lineage", drawing, note=note)


def _used(facts: Facts) -> dict[str, _Used]:
    models = set(facts.inputs) | {step.into for step in facts.steps if step.into}
    found: dict[str, _Used] = {}
    for changes in facts.told.lineage.values():
        for change in changes:
            used = found.setdefault(change.step, _Used())
            parted = (source.partition(":") for source in change.from_)
            named = dict.fromkeys(name for name, colon, _ in parted if colon)
            used.models.update(name for name in named if name in models or not models)
            # Two that differ tell as much as all of them: that there is no one of them to show.
            if change.parameters and len(used.parameters) < 2:
                given = ", ".join(f"{k} {short_json(v)}" for k, v in change.parameters.items())
                used.parameters.add(given)
    return found


def _grouped(steps: Sequence[Step], used: Mapping[str, _Used]) -> Iterator[tuple[Step, int]]:
    """Yield steps, those that follow each other with one op and no model once with their number."""
    last: tuple[Step, int] | None = None
    for step in steps:
        plain = not step.into and not (step.step in used and used[step.step].models)
        if last and plain and last[1] and last[0].op == step.op:
            counts = {**last[0].counts}
            for word, count in step.counts.items():
                counts[word] = counts.get(word, 0) + count
            last = (replace(last[0], counts=counts), last[1] + 1)
            continue
        if last:
            yield (last[0], max(last[1], 1))
        last = (step, 1 if plain else 0)
    if last:
        yield (last[0], max(last[1], 1))


def _shortened(steps: list[tuple[Step, int]]) -> list[tuple[Step, int]]:
    more = len(steps) - _MOST_STEPS
    if more <= 0:
        return steps
    half = _MOST_STEPS // 2
    left_out = Step("", f"{more:,} more steps", {})
    return [*steps[:half], (left_out, 1), *steps[-half:]]


def _drawn(facts: Facts, steps: Sequence[tuple[Step, int]], used: Mapping[str, _Used]) -> Markup:
    rows = [_node(step, count, used.get(step.step, _Used())) for step, count in steps]
    sources = dict.fromkeys(m for step, _ in steps for m in used.get(step.step, _Used()).models)
    made = [step.into for step, _ in steps if step.into]
    outer = [model for model in sources if model not in made][:_MOST_MODELS]
    kept = [index for index, (step, _) in enumerate(steps) if step.into]
    right = (_BOX + _BETWEEN) * (2 if kept else 1) + _MARGIN
    first = _Node("input", _file(facts, "input"), right, _MARGIN)
    last = _Node("output", "planned" if facts.is_planned else facts.title, right)
    for index, node in enumerate(rows):
        node.x = _BOX + _BETWEEN + _MARGIN if index in kept else right
        node.y = _MARGIN + (index + 1) * (_TALL + _GAP)
    models = _placed(outer, facts, steps, used, rows)
    bottom = max([node.y for node in rows] + [node.y + 0 for node in models.values()])
    last.y = max(rows[-1].y if rows else _MARGIN, 0) + _TALL + _GAP
    spine = [first, *(node for index, node in enumerate(rows) if index not in kept), last]
    edges = [_down(a, b) for a, b in pairwise(spine)]
    for index, (step, _) in enumerate(steps):
        for model in used.get(step.step, _Used()).models:
            if model in models:
                edges.append(_across(models[model], rows[index]))
        if index in kept:
            before = [
                node for place, node in enumerate(rows) if place < index and place not in kept
            ]
            edges.append(_back(before[-1] if before else first, rows[index]))
            models[step.into] = rows[index]
    height = max(bottom, last.y) + _TALL + _MARGIN
    boxes = [_box(node) for node in {id(n): n for n in (*models.values(), *spine)}.values()]
    return svg(right + _BOX + _MARGIN, height, "what the output was made of", *edges, *boxes)


def _node(step: Step, count: int, used: _Used) -> _Node:
    title = f"{count:,} x {step.op}" if count > 1 else step.op
    if step.step and not step.step.isdecimal() and step.step != "output" and count == 1:
        title = f"{step.op} ({step.step})"
    if step.into:
        title = f"{step.op}, kept as '{step.into}'"
    counts = ", ".join(
        plural(number, "tensor") if word == "tensors" else f"{number:,} {word}"
        for word, number in step.counts.items()
    )
    given = next(iter(used.parameters)) if len(used.parameters) == 1 else ""
    about = "; ".join(part for part in (counts, given) if part)
    return _Node(title, about, colour=FATES[CHANGED] if step.step else "")


def _file(facts: Facts, name: str) -> str:
    return facts.inputs[name][0] if name in facts.inputs else ""


def _placed(
    outer: Sequence[str],
    facts: Facts,
    steps: Sequence[tuple[Step, int]],
    used: Mapping[str, _Used],
    rows: Sequence[_Node],
) -> dict[str, _Node]:
    """Place models at the left, each as near as there is room to the steps that read it."""
    placed: dict[str, _Node] = {}
    free = _MARGIN
    wanted = []
    for model in outer:
        users = [
            rows[index].y
            for index, (step, _) in enumerate(steps)
            if model in used.get(step.step, _Used()).models
        ]
        wanted.append((sum(users) / len(users), model))
    together = Counter(y for y, _ in wanted)
    for y, model in sorted(wanted, key=lambda item: item[0]):
        # Several of one step stand around it.
        above = (together[y] - 1) / 2 * (_TALL + _GAP / 2)
        free = max(free, min(y, max(y - above, _MARGIN)))
        placed[model] = _Node(model, _file(facts, model), _MARGIN, free)
        free += _TALL + _GAP / 2
    return placed


def _box(node: _Node) -> Markup:
    fill = {"fill": node.colour, "fill-opacity": 0.18} if node.colour else {}
    frame = tag("rect", {"x": node.x, "y": node.y, "width": _BOX, "height": _TALL, "rx": 5,
                         "class": "box", **({"style": f"fill:{node.colour};fill-opacity:.16"}
                                            if fill else {})})  # fmt: skip
    x, parts = node.x + 12, [frame, tag("title", {}, f"{node.title}: {node.about}")]
    if node.about:
        parts.append(words(x, node.y + 18, shortened(node.title, _LETTERS), kind="strong"))
        parts.append(words(x, node.y + 34, _cut(node.about, _LETTERS + 4), kind="small"))
    else:
        parts.append(words(x, node.y + 26, shortened(node.title, _LETTERS), kind="strong"))
    return tag("g", {}, *parts)


def _cut(about: str, most: int) -> str:
    return about if len(about) <= most else f"{about[: most - 1]}…"


def _arrow(x: float, y: float, *, down: bool) -> Markup:
    tip = (
        f"M{x - 4} {y - 7}L{x} {y}L{x + 4} {y - 7}"
        if down
        else (f"M{x - 7} {y - 4}L{x} {y}L{x - 7} {y + 4}")
    )
    return tag("path", {"d": tip, "class": "edge"})


def _down(a: _Node, b: _Node) -> Markup:
    x = a.x + _BOX / 2
    line = tag("path", {"d": f"M{x} {a.y + _TALL}V{b.y}", "class": "edge"})
    return tag("g", {}, line, _arrow(x, b.y, down=True))


def _across(a: _Node, b: _Node) -> Markup:
    """Draw from the right of a model to the left of a step."""
    x1, y1, x2, y2 = a.x + _BOX, a.y + _TALL / 2, b.x, b.y + _TALL / 2
    if x1 > x2:  # both are models: one was made of the other
        x = a.x + _BOX / 2
        line = tag("path", {"d": f"M{x} {a.y + _TALL}V{b.y}", "class": "edge"})
        return tag("g", {}, line, _arrow(x, b.y, down=True))
    middle = (x1 + x2) / 2
    curve = f"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"
    return tag("g", {}, tag("path", {"d": curve, "class": "edge"}), _arrow(x2, y2, down=False))


def _back(a: _Node, b: _Node) -> Markup:
    """Draw from the state to a step whose result is kept as a model, at the left of it."""
    x, y = b.x + _BOX / 2, a.y + _TALL / 2
    curve = f"M{a.x} {y}C{x} {y} {x} {y} {x} {b.y}"
    line = tag("path", {"d": curve, "class": "edge"})
    return tag("g", {}, line, _arrow(x, b.y, down=True))
