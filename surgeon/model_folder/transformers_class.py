"""A model folder held to the class of transformers that its config names, as it would be loaded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.base.errors import CheckFailedError, PlanError, UsageError
from surgeon.draft import Tensors, ties
from surgeon.draft.quantised import groups
from surgeon.model_folder.quantisation import KEY as QUANTISED
from surgeon.numeric.dtypes import DTYPES
from surgeon.ops.shared.codes import dequantised, usual_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]

_INSTALL = 'pip install "surgeon-checkpoints[transformers]"'
# The oldest transformers that loads from tensors without values.
_OLDEST = 5


def require_class(
    config: Json, tensors: Tensors, code: Path | None, *, allow_code: bool
) -> tuple[str, ...]:
    """Raise CheckFailedError unless a class loads the tensors as they are; return notes.

    The class is the one that the config names. transformers loads tensors without values into it,
    on the meta device, with its own conversions of names; nothing may be missing, unexpected or of
    another shape, and names that the class ties are one tensor. `code` is the folder that holds
    modelling code, which is run with `allow_code` alone. Quantised weights that transformers does
    not load without their values, or without another library, are compared as the numbers that they
    stand for.
    """
    transformers = _transformers()
    notes: tuple[str, ...] = ()
    with _quiet(transformers):
        class_ = _class_of(transformers, config, code, allow_code=allow_code)
        try:
            model, info = _loaded(class_, config, tensors)
        except PlanError as error:
            if not (numbers := _as_numbers(config, tensors)):
                raise
            tensors = numbers
            config = {key: value for key, value in config.items() if key != QUANTISED}
            model, info = _loaded(class_, config, tensors)
            notes = (f"quantised weights are compared as numbers, since {error.problems[0]}",)
    name = f"{class_.of_model.__name__} of transformers {transformers.__version__}"
    problems = [f"'{key}' is missing" for key in sorted(info["missing_keys"])]
    problems += [
        f"expected '{key}' to have shape {tuple(wanted)}, found {tuple(found)}"
        for key, found, wanted in sorted(info["mismatched_keys"])
    ]
    problems += [f"'{key}' is not expected" for key in sorted(info["unexpected_keys"])]
    problems += [" ".join(str(message).split()) for message in info["error_msgs"]]
    problems += _tied_otherwise(model, tensors)
    if problems:
        raise CheckFailedError(*(f"{name}: {problem}" for problem in problems))
    return (*notes, f"loads into {name}, with nothing missing and nothing left")


def _as_numbers(config: Json, tensors: Tensors) -> Tensors | None:
    """Return tensors with numbers in the place of codes; None where there are no such codes."""
    settings = config.get(QUANTISED)
    found = groups(tensors, settings) if isinstance(settings, dict) else []
    return dequantised(tensors, found, usual_dtype(config), settings or {}) if found else None


def _transformers() -> Any:
    """Return the installed transformers."""
    try:
        import_module("accelerate")  # with which transformers places tensors on a device
        import transformers
    except ImportError as error:
        raise UsageError(f"'transformers': {error}; install it: {_INSTALL}") from None
    if int(transformers.__version__.partition(".")[0]) < _OLDEST:
        raise UsageError(
            f"'transformers' needs transformers {_OLDEST}, found {transformers.__version__}; "
            f"install it: {_INSTALL}"
        )
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep what transformers reports from the answer that stdout carries."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class _Class:
    """A model's class, and that of its config."""

    def __init__(self, of_model: Any, of_config: Any) -> None:
        self.of_model = of_model
        self.of_config = of_config


def _class_of(transformers: Any, config: Json, code: Path | None, *, allow_code: bool) -> _Class:
    """Return the classes that a config names; raises where they are not there, or not allowed."""
    kind, named = config.get("model_type"), config.get("architectures")
    wanted = str(named[0]) if isinstance(named, list) and named else None
    remote = config.get("auto_map")
    if isinstance(remote, dict) and remote and allow_code:
        return _class_in(transformers, remote, wanted, code)
    known = transformers.CONFIG_MAPPING  # imports what it is asked for; its `get` does not
    of_config = known[kind] if kind in known else None  # noqa: SIM401
    of_model = getattr(transformers, wanted, None) if wanted else None
    if of_config is not None and wanted is None:
        of_model = _run(transformers.MODEL_MAPPING.__getitem__, of_config)
    if of_config is not None and of_model is not None:
        return _Class(of_model, of_config)
    if isinstance(remote, dict) and remote:
        raise UsageError(
            f"'{wanted or kind}' is code of the folder's own, which would be run; --allow-code "
            "allows that"
        )
    what = f"model_type '{kind}'" if of_config is None else f"class '{wanted}'"
    raise PlanError(
        f"config.json: transformers {transformers.__version__} has no {what}; state "
        f"{'model_type' if of_config is None else 'architectures'} in output.config"
    )


def _class_in(
    transformers: Any, remote: Mapping[str, Any], wanted: str | None, code: Path | None
) -> _Class:
    """Return the classes that a folder's own code has, as `auto_map` names them."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    places = {str(place).rpartition(".")[2]: str(place)
              for key, place in remote.items() if key.startswith("AutoModel")}  # fmt: skip
    model = places.get(wanted) if wanted else next(iter(places.values()), None)
    if model is None or "AutoConfig" not in remote or code is None:
        raise PlanError(f"config.json: auto_map names no class '{wanted}' and its config")
    named = [str(remote["AutoConfig"]), model]
    if far := [place for place in named if "--" in place]:
        raise PlanError(f"config.json: auto_map: {far[0]} is code of another repository; copy it "
                        "into the folder")  # fmt: skip
    found = [_run(get_class_from_dynamic_module, place, str(code)) for place in named]
    return _Class(found[1], found[0])


def _loaded(class_: _Class, config: Json, tensors: Tensors) -> tuple[Any, dict[str, Any]]:
    """Return the model without values, and what transformers says of loading it."""
    import torch

    aliases = ties(tensors)
    empty = {
        name: torch.empty(tensor.spec.shape, dtype=getattr(torch, _torch_name(name, tensor)),
                          device="meta")
        for name, tensor in tensors.items() if name not in aliases
    }  # fmt: skip
    made = _run(class_.of_config.from_dict, config)
    loaded: tuple[Any, dict[str, Any]] = _run(
        class_.of_model.from_pretrained, None, config=made, state_dict=empty,
        device_map={"": "meta"}, output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    return loaded


def _torch_name(name: str, tensor: Any) -> str:
    import torch

    found = DTYPES[tensor.spec.dtype].torch
    if found is None or not hasattr(torch, found):
        raise PlanError(f"torch {torch.__version__} has no dtype for '{name}', {tensor.spec.dtype}")
    return str(found)


def _run(function: Any, *args: Any, **options: Any) -> Any:
    """Return what a function of transformers returns; PlanError for whatever it raises."""
    try:
        return function(*args, **options)
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:400]
        raise PlanError(f"transformers raised {type(error).__name__}: {said}") from None


def _tied_otherwise(model: Any, tensors: Tensors) -> list[str]:
    """Return a line for each pair that the class makes one tensor, and that are two here."""
    prefix = f"{model.base_model_prefix}."

    def here(name: str) -> str | None:
        names = (name, name.removeprefix(prefix), prefix + name)
        return next((one for one in names if one in tensors), None)

    problems = []
    for target, source in (model.all_tied_weights_keys or {}).items():
        one, other = here(target), here(source)
        if one and other and one != other and tensors[one] is not tensors[other]:
            problems.append(
                f"'{one}' and '{other}' are one tensor in the class; tie them, or state "
                "tie_word_embeddings false in output.config"
            )
    return problems
