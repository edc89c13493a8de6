"""What options of the command line mean, and those that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surgeon.base.errors import UsageError
from surgeon.cli import completion

if TYPE_CHECKING:
    from surgeon.model_folder.carried import Carry


class _Location(click.Path):
    """A path, or a URL, of which from here on nothing is shown that is secret."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from surgeon.remote.paths import path_of

        return path_of(value)


LOCATION = _Location()


def pairs(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, str]:
    """Split each NAME=VALUE."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"'{text}' is not {parameter.metavar}")
        if name in found:
            raise click.BadParameter(f"'{name}' is given twice")
        found[name] = value
    return found


def _json_pairs(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, Any]:
    """Split each NAME=JSON; what is not JSON is a string."""
    return {n: _json_or_text(n, text) for n, text in pairs(context, parameter, values).items()}


def _json_or_text(name: str, text: str) -> Any:
    from surgeon.base.strict_json import parse_json
    from surgeon.recipe.variables import TypedNumber

    try:
        value = parse_json(text.encode(errors="surrogateescape"))
    except ValueError as error:
        # No name starts so, and a shell takes away quotes that are not inside of others.
        if text.startswith(("[", '"')) or (text.startswith("{") and ":" in text):
            raise click.BadParameter(
                f"'{name}={text}' begins like JSON, and is none ({error}); in a shell, quotes go "
                f'around it: --set \'{name}=["a", "b"]\''
            ) from None
        return text
    return TypedNumber(text) if isinstance(value, float) else value


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    from surgeon.base.units import parse_size

    try:
        return None if value is None else parse_size(value)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


set_option = click.option(
    "--set", "variables", metavar="VAR=JSON", multiple=True, callback=_json_pairs,
    shell_complete=completion.variable,
    help="Give a variable of the recipe a value; what is not JSON is a string. A number may stand "
    "for a name, and one item for a list of one.",
)  # fmt: skip
model_option = click.option(
    "--model", "named", metavar="NAME=PATH", multiple=True, callback=pairs,
    shell_complete=completion.model,
    help="Say where a model of the recipe is.",
)  # fmt: skip
optimizer_option = click.option(
    "--optimizer", metavar="FILE[#NAME]", shell_complete=completion.file,
    help="Where the optimizer's state is that is to go through the same surgery; 'none' leaves "
    "behind the one in INPUT, which is taken where a stage carries it.",
)  # fmt: skip
output_option = click.option(
    "-o", "--output", metavar="OUTPUT", type=LOCATION,
    help="Where the result goes: a .safetensors file, or a model folder.",
)  # fmt: skip
force_option = click.option(
    "--force", is_flag=True,
    help="Replace an output that surgeon wrote, or INPUT where it is OUTPUT too.",
)  # fmt: skip
force_any_option = click.option(
    "--force-any", is_flag=True, help="Replace any file or model folder that nothing here reads."
)
carry_option = click.option(
    "--carry", type=click.Choice(["none", "small", "all"]), default="small", show_default=True,
    help="Which of INPUT's other files a folder gets: 'small' are those up to 100 MB, 1 GB in all.",
)  # fmt: skip
optimizer_order_option = click.option(
    "--optimizer-order", metavar="strict|FILE", shell_complete=completion.file,
    help="How a state without names is told: 'strict' refuses to go by the order of the model's "
    "parameters alone, FILE is a JSON list of names in the optimizer's order.",
)  # fmt: skip
allow_code_option = click.option(
    "--allow-code", is_flag=True,
    help="Let `match` import and run the module that the recipe names, or modelling code that the "
    "input's folder holds.",
)  # fmt: skip


def _use_cache(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        from surgeon.remote import cache

        cache.use(value)


cache_option = click.option(
    "--cache", metavar="DIR", expose_value=False, callback=_use_cache,
    help="Keep what is fetched from URLs in this folder, and take it from there.",
)  # fmt: skip
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document, on failure too."
)


def picture_option(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Take the file that a picture of something goes to."""
    return click.option(
        "--picture", metavar="FILE", type=click.Path(path_type=Path),
        help=f"{what} into a .png or .svg file (needs matplotlib).",
    )  # fmt: skip


def job_options(function: Callable[..., None]) -> Callable[..., None]:
    """Take RECIPE, INPUT and all that says how they are read, as one `job`."""

    @wraps(function)
    def with_job(
        recipe: str, source: str, named: Mapping[str, str], variables: Mapping[str, Any],
        optimizer: str | None, optimizer_order: str | None, allow_code: bool, carry: Carry,
        **others: Any,
    ) -> None:  # fmt: skip
        from surgeon.library.running import Job
        from surgeon.remote.locations import taken

        named = {name: taken(place, is_first=True) for name, place in named.items()}
        if optimizer is not None:
            optimizer = taken(optimizer, is_first=True)
        recipe, source = (taken(place, is_first=True) for place in (recipe, source))
        job = Job(recipe, source, (), named, variables, optimizer, optimizer_order,
                  allow_code=allow_code, carry=carry)  # fmt: skip
        function(job=job, **others)

    return _with(
        with_job,
        click.argument("recipe", shell_complete=completion.recipe),
        click.argument("source", metavar="INPUT", shell_complete=completion.file),
        model_option,
        set_option,
        optimizer_option,
        optimizer_order_option,
        allow_code_option,
        carry_option,
        cache_option,
    )


def output_options(function: Callable[..., None]) -> Callable[..., None]:
    """Take where the output goes, and what it may replace."""
    return _with(function, output_option, force_option, force_any_option)


def _with(function: Callable[..., None], *options: Callable[..., Any]) -> Callable[..., None]:
    for option in reversed(options):
        function = option(function)
    return function
