"""Architectures on the meta device: their tensors as they would be on disk."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch._dynamo  # a build that is ended while it imports this would leave half of it behind
import transformers
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.architectures.configs import Json

Shapes = dict[str, tuple[int, ...]]

# One build on the meta device takes some hundredths of a second.
_SECONDS_PER_BUILD = 60

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class NoBuildError(Exception):
    """A class could not be built from a config."""


@dataclass
class Built:
    """A model on the meta device and its tensors' shapes by their names on disk."""

    model: Any
    shapes: Shapes
    as_in_memory: bool


def classes_of_types() -> dict[str, list[str]]:
    """Return {model type: its classes}, in the order of transformers' own tables."""
    found: dict[str, dict[str, None]] = {name: {} for name in CONFIG_MAPPING}
    for table in dir(modeling_auto):
        if not table.endswith("_MAPPING_NAMES") or table == "CONFIG_MAPPING_NAMES":
            continue
        for model_type, names in getattr(modeling_auto, table).items():
            for name in names if isinstance(names, tuple | list) else (names,):
                found.setdefault(model_type, {})[name] = None
    return {model_type: list(names) for model_type, names in found.items()}


def tables_of(suffix: str) -> dict[str, Any]:
    """Return one of transformers' tables, such as `CAUSAL_LM`."""
    table: dict[str, Any] = getattr(modeling_auto, f"MODEL_FOR_{suffix}_MAPPING_NAMES")
    return table


@contextlib.contextmanager
def time_limited(seconds: int = _SECONDS_PER_BUILD) -> Iterator[None]:
    """Raise NoBuildError where the block takes longer."""

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise NoBuildError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def config_class(model_type: str) -> Any:
    """Return the config class of a model type."""
    return CONFIG_MAPPING[model_type]


def config_of(model_type: str, values: Json) -> Any:
    """Return the config that transformers makes of config.json's values."""
    try:
        with time_limited():
            return CONFIG_MAPPING[model_type].from_dict(values)
    except NoBuildError:
        raise
    except Exception as error:  # whatever a config class finds wrong
        raise NoBuildError(f"config: {_short(error)}") from None


def build(class_name: str, model_type: str, values: Json, *, on_disk: bool = True) -> Built:
    """Build a class from a config's values, without memory for its tensors."""
    config = config_of(model_type, values)
    try:
        with time_limited(), torch.device("meta"), no_init_weights():
            model = getattr(transformers, class_name)(config)
    except NoBuildError:
        raise
    except Exception as error:  # whatever a model class finds wrong
        raise NoBuildError(_short(error)) from None
    state = saved_in_memory(model)
    as_in_memory = False
    if on_disk:
        try:
            with time_limited():
                state = revert_weight_conversion(model, dict(state))
        except Exception:
            as_in_memory = True
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return Built(model, shapes, as_in_memory)


def asked_of(class_name: str, model_type: str, values: Json) -> set[str]:
    """Return the paths of what a class asks a config for that has no such entry."""
    config = config_of(model_type, values)
    places: dict[type, list[str]] = {}
    for path, part in _parts_of(config):
        places.setdefault(type(part), []).append(path)
    asked: set[tuple[type, str]] = set()

    def note(self: Any, name: str) -> Any:
        asked.add((type(self), name))
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    base = transformers.PreTrainedConfig
    assert "__getattr__" not in vars(base)
    base.__getattr__ = note
    try:
        with time_limited(), torch.device("meta"), no_init_weights():
            getattr(transformers, class_name)(config)
    except NoBuildError:
        raise
    except Exception as error:  # whatever a model class finds wrong
        raise NoBuildError(_short(error)) from None
    finally:
        del base.__getattr__
    return {path + name for kind, name in asked for path in places.get(kind, ())}


def _parts_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    yield prefix, config
    for name, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            yield from _parts_of(value, f"{prefix}{name}.")


def saved_in_memory(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that save_pretrained would write, by their names in memory."""
    state = model.state_dict()
    for ignored in model._keys_to_ignore_on_save or ():
        state.pop(ignored, None)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(lines)[:160]}"
