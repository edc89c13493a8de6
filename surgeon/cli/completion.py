"""What may stand at a place of the command line: recipes, ops, tensors of the checkpoint before.

A shell asks while somebody types. So what is heavy is imported when it is asked for, only headers
are read, and whatever is wrong with what was typed completes to nothing: its command will say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from surgeon.base.errors import SurgeonError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem[str]]"]
# Of more names, the next segments are shown first.
_AT_ONCE = 12


def _items(
    found: Callable[[click.Context, str], Iterable[CompletionItem[str]]],
) -> Complete:
    """Return a callback for click of what gives items; a mistake in what is typed gives none."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        try:
            return list(found(context, incomplete))
        except (SurgeonError, OSError, ValueError, RecursionError):
            return []

    return complete


def _item(value: str, about: str = "", kind: str = "plain") -> CompletionItem[str]:
    from click.shell_completion import CompletionItem

    return CompletionItem(value, help=about, type=kind)


def _starting(
    names: Mapping[str, str] | Iterable[str], incomplete: str
) -> Iterator[CompletionItem[str]]:
    about = names if isinstance(names, Mapping) else dict.fromkeys(names, "")
    return (_item(name, text) for name, text in about.items() if name.startswith(incomplete))


def _given(context: click.Context, name: str) -> Any:
    """Return an argument that stands on the line already, also where an option lacks its value."""
    if context.params.get(name):
        return context.params[name]
    words = context.find_root().obj or []
    # The command comes first, and at the end the option whose value is typed.
    typed = [w for w in words[1:-1] if words[0] == context.info_name]
    again = context.command.make_context("again", typed, resilient_parsing=True)
    return again.params.get(name)


def _file(context: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    yield _item(incomplete, kind="file")


def _recipe(context: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    yield from _recipe_name(context, incomplete)
    yield _item(incomplete, kind="file")


def _recipe_name(context: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    from surgeon.base.ready_made import read_json, ready_made

    for name, path in ready_made().items():
        if name.startswith(incomplete):
            yield _item(name, read_json(path, name).get("about", ""))


def _op(context: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    from surgeon.cli.word_pages import names

    return _starting(names(), incomplete)


def _schema(context: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    from surgeon.cli.json_schemas import KINDS

    return _starting(KINDS, incomplete)


def _tensor(context: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    """Complete a pattern: the names of the first checkpoint on the line, segment by segment."""
    start = incomplete[: incomplete.startswith("!")]
    checkpoint = _given(context, "checkpoint") or _given(context, "a") or _given(context, "source")
    for name in _segments(_names_in(checkpoint), incomplete[len(start) :]):
        yield _item(start + name)


def _names_in(checkpoint: str | None) -> list[str]:
    if not checkpoint or "://" in checkpoint:  # nobody waits for a network at every key
        return []
    from surgeon.formats import open_checkpoint

    opened = open_checkpoint(checkpoint)
    try:
        return list(opened.tensors)
    finally:
        opened.close()


def _segments(names: Iterable[str], incomplete: str) -> list[str]:
    """Return names that start so, or where there are many, what they have in their next segment."""
    found = [name for name in names if name.startswith(incomplete)]
    done = len(incomplete)
    while len(found) > _AT_ONCE:
        cuts = [name.find(".", done) + 1 or len(name) for name in found]
        steps = dict.fromkeys(name[:cut] for name, cut in zip(found, cuts, strict=True))
        if len(steps) > 1 or not (only := next(iter(steps))).endswith("."):
            return list(steps)
        done = len(only)  # a segment that all share is no choice
    return found


def _variable(context: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    """Complete VAR=VALUE: the recipe's variables, then what suits the place where it is used."""
    from surgeon.base.ready_made import find, read_json

    text = read_json(find(_given(context, "recipe") or ""), "")
    name, equals, value = incomplete.partition("=")
    if not equals:
        for variable, default in text.get("vars", {}).items():
            if variable.startswith(incomplete):
                about = "must be set" if default is None else f"default {default!r}"
                yield _item(f"{variable}=", about)
        return
    for word in _values(context, set(_keys_with(text, f"${{{name}}}")), value):
        yield _item(f"{name}={word}")


def _keys_with(value: Any, text: str, key: str = "") -> Iterator[str]:
    """Yield the keys whose values are a text, anywhere in a recipe."""
    match value:
        case dict():
            for inner, item in value.items():
                yield from _keys_with(item, text, inner)
        case list():
            for item in value:
                yield from _keys_with(item, text, key)
        case str() if text in value:
            yield key


_INITS = {"init", "bias_init"}
_DTYPES = {"dtype"}
_NAMES = {"target", "from", "to", "consumers", "container", "params", "train", "freeze", "order"}


def _values(context: click.Context, keys: set[str], value: str) -> Iterator[str]:
    if keys & _INITS:
        from surgeon.initialisers.parts import INITIALISERS

        yield from (name for name in _initialisers(INITIALISERS) if name.startswith(value))
    elif keys & _DTYPES:
        from surgeon.numeric.dtypes import DTYPES

        yield from (name for name in DTYPES if name.startswith(value))
    elif keys & _NAMES:
        names = _names_in(_given(context, "source"))
        modules = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
        yield from _segments(modules, value)


def _initialisers(declared: Mapping[str, Any]) -> Iterable[str]:
    import surgeon.initialisers.values  # noqa: F401  (declares them)

    return declared


def _model(context: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    from surgeon.base.ready_made import find, read_json

    if "=" in incomplete:
        yield _item(incomplete, kind="file")
        return
    models = read_json(find(_given(context, "recipe") or ""), "").get("models", {})
    yield from (_item(f"{name}=") for name in models if name.startswith(incomplete))


file, recipe, recipe_name, op = map(_items, (_file, _recipe, _recipe_name, _op))
tensor, variable, model, schema = map(_items, (_tensor, _variable, _model, _schema))
