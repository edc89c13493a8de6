"""The page of an output, or of one that is planned: all that is known of it, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from surgeon.base.tables import plural
from surgeon.base.units import spoken_size
from surgeon.draft.registry import OPS
from surgeon.pictures.facts import Facts, Step
from surgeon.pictures.graph import lineage
from surgeon.pictures.markup import Markup, code, fragment, joined, page, section, table, tag
from surgeon.pictures.stages import stages
from surgeon.pictures.tensors import found_in, sizes, summary, tensors
from surgeon.recipe.fates import Fate, short_json

_MOST_NOTES = 200
_MOST_STEPS = 300


class Hashed(NamedTuple):
    """What hashing an output again found."""

    is_verified: bool
    said: str


def report(facts: Facts, hashed: Hashed | None = None) -> str:
    """Return the page, the same for the same facts: no time, no folder of this machine."""
    kind = "plan" if facts.is_planned else "report"
    return page(f"{facts.title}: {kind}", *_head(facts), *_parts(facts, hashed), _foot(facts))


def shown_in_notebook(facts: Facts) -> str:
    """Return the page's parts for a notebook."""
    return fragment(*_head(facts), *_parts(facts, None))


def _head(facts: Facts) -> list[Markup]:
    what = "What the recipe would make" if facts.is_planned else "What the recipe made"
    return [
        tag("h1", {}, facts.title),
        tag("p", {}, facts.about) if facts.about else Markup(),
        tag("p", {"class": "note"}, what, " of ", _made_of(facts)) if facts.inputs else Markup(),
    ]


def _made_of(facts: Facts) -> Markup:
    parts = [
        joined([code(file), f" ({name}, {spoken_size(size)})" if len(facts.inputs) > 1 else ""])
        for name, (file, size) in facts.inputs.items()
    ]
    return joined([part if index == 0 else joined([", ", part])
                   for index, part in enumerate(parts)])  # fmt: skip


def _parts(facts: Facts, hashed: Hashed | None) -> Sequence[str]:
    found: list[Fate] = found_in(facts)
    return [
        summary(found),
        _steps(facts),
        lineage(facts),
        tensors(facts, found),
        stages(facts),
        sizes(facts, found),
        _config(facts),
        _checks(facts, hashed),
        _notes(facts),
    ]


def _steps(facts: Facts) -> Markup:
    rows = [
        (str(index), joined([code(step.op), *_named(step, index)]), _counts(step, facts),
         step.about,
         joined(tag("div", {}, note) for note in step.notes))
        for index, step in enumerate(facts.steps[:_MOST_STEPS])
    ]  # fmt: skip
    more = len(facts.steps) - _MOST_STEPS
    rest = tag("p", {"class": "note"}, f"and {more:,} more steps") if more > 0 else Markup()
    given = [(code(name), code(short_json(value))) for name, value in facts.variables.items()]
    variables = table(("variable", "value"), given) if given else Markup()
    title = "What would be done" if facts.is_planned else "What was done"
    return section(title, table(("", "step", "tensors", "about", "notes"), rows), rest, variables)


def _named(step: Step, index: int) -> list[str]:
    parts = [] if step.step == str(index) or step.step == "output" else [f" {step.step}"]
    return [*parts, f", kept as model '{step.into}'"] if step.into else parts


def _counts(step: Step, facts: Facts) -> str:
    if step.op in OPS and OPS[step.op].group == "check":
        return ""
    said = [f"{count:,}{'' if word == 'tensors' else f' {word}'}"
            for word, count in step.counts.items()]  # fmt: skip
    # What a step dropped is in no lineage.
    return ", ".join(said) or ("" if step.into or not facts.is_planned else "none")


def _config(facts: Facts) -> Markup:
    """Return what becomes of a model folder's config, and which files go along."""
    rows = [(code(key), code(before) if before else "", code(after))
            for key, before, after in facts.config]  # fmt: skip
    return section(
        "Model folder",
        table(("config.json", "before", "after"), rows) if rows else "",
        tag("p", {}, "Besides the weights: ", code(", ".join(facts.carried)))
        if facts.carried
        else "",
    )


def _checks(facts: Facts, hashed: Hashed | None) -> Markup:
    """Return which checks passed: those of the recipe, and what was hashed again."""
    checks = [step for step in facts.steps if step.op in OPS and OPS[step.op].group == "check"]
    lines: list[tuple[str, str, str]] = []
    for step in checks:
        held = "holds for names and shapes" if facts.is_planned else "passed"
        lines.append((_MARK, f"{step.op} ({step.step})", held))
    for place in dict.fromkeys(facts.checks):
        count = facts.checks.count(place)
        lines.append((_OPEN, place, f"{plural(count, 'check')} of values, made by apply"))
    if not facts.is_planned:
        lines.append((_MARK, "every step", "had passed before anything was published"))
        if hashed is None:
            lines.append((_OPEN, "the file's bytes", "not hashed for this page: --verify does"))
        else:
            lines.append((_MARK if hashed.is_verified else _CROSS, "the file's bytes", hashed.said))
    return section("Checks", table((" ", "check", "result"), lines)) if lines else Markup()


_MARK, _OPEN, _CROSS = "✓", "·", "✗"


def _notes(facts: Facts) -> Markup:
    more = len(facts.notes) - _MOST_NOTES
    said = [*facts.notes[:_MOST_NOTES], *([f"and {more:,} more"] if more > 0 else [])]
    return section("Notes", tag("ul", {}, *(tag("li", {}, note) for note in said)) if said else "")


def _foot(facts: Facts) -> Markup:
    by = f"surgeon {facts.surgeon}, " if facts.surgeon else ""
    return tag("footer", {}, f"{by}recipe ", code(facts.recipe_sha256))
