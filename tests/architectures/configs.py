"""Configs as plain objects: numbers by path, changed one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

Json = dict[str, Any]

# What no size follows from, or what would only name other things.
_NO_SIZES = re.compile(
    r".*(_token_id|_token_ids|_token_index|seed|_tokens_id|transformers_version|id2label|label2id"
    r"|rope_theta|architectures|_name_or_path|suppress_tokens|task_specific_params|use_bfloat16"
    r"|chunk_size_feed_forward|pretraining_tp|_id)"
)
_RUNTIME = (
    "transformers_version", "architectures", "id2label", "label2id", "_name_or_path", "dtype",
    "_attn_implementation", "output_attentions", "output_hidden_states", "return_dict",
    "problem_type", "torch_dtype",
)  # fmt: skip
_COUNT = re.compile(
    r"(.*_)?(layers?|depth|n_layer|blocks|num_hidden_layers|encoder_layers|decoder_layers)"
)
# Of how many layers something holds, rather than how many there are.
_SOME_LAYERS = re.compile(r"window|shared|nextn|dense|sparse|skip|mlp_only|moe_layers|first|last")
_EXPERTS = re.compile(
    r"(num_local_experts|n_routed_experts|num_experts|moe_num_experts|.*_experts)"
)
MOST_LAYERS = 8
MOST_EXPERTS = 8
# In the place of a value: the entry is not there.
ABSENT = object()


def without_runtime(config: Json) -> Json:
    """Return a config without what says nothing of tensors, in nested ones too."""
    made: Json = {}
    for key, value in config.items():
        if key not in _RUNTIME:
            made[key] = without_runtime(value) if isinstance(value, dict) else deepcopy(value)
    return made


def numbers(config: Json, prefix: str = "") -> dict[str, int]:
    """Return {path: number} of every integer that a size might follow from."""
    found: dict[str, int] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if not isinstance(key, str) or _NO_SIZES.fullmatch(key):
            continue
        if isinstance(value, dict):
            if key not in ("rope_parameters", "rope_scaling", "quantization_config"):
                found |= numbers(value, f"{path}.")
        elif isinstance(value, list | tuple):
            if len(value) <= 16 and all(type(item) is int for item in value):
                found |= {f"{path}.{index}": item for index, item in enumerate(value)}
        elif type(value) is int:
            found[path] = value
    return found


def switches(config: Json, prefix: str = "") -> dict[str, bool]:
    """Return {path: value} of every boolean."""
    found: dict[str, bool] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= switches(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            found[f"{prefix}{key}"] = value
    return found


def lists(config: Json, prefix: str = "") -> dict[str, list[Any]]:
    """Return {path: list} of every list."""
    found: dict[str, list[Any]] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= lists(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            found[f"{prefix}{key}"] = list(value)
    return found


def get(config: Any, path: str) -> Any:
    """Return what is at a path; None where there is nothing."""
    for part in path.split("."):
        if isinstance(config, list | tuple):
            config = config[int(part)] if int(part) < len(config) else None
        else:
            config = config.get(part) if isinstance(config, dict) else None
    return config


def put(config: Json, path: str, value: Any) -> None:
    """Put a value at a path, in place."""
    *outer, last = path.split(".")
    inside: Any = config
    for part in outer:
        inside = inside[int(part)] if isinstance(inside, list | tuple) else inside[part]
    if isinstance(inside, list):
        inside[int(last)] = value
    else:
        inside[last] = value


def remove(config: Json, path: str) -> Json:
    """Return a config without the entry at a path."""
    made = deepcopy(config)
    outer, _, last = path.rpartition(".")
    inside = get(made, outer) if outer else made
    if isinstance(inside, dict):
        inside.pop(last, None)
    return made


def changed(config: Json, changes: Mapping[str, Any], links: Mapping[str, str]) -> Json:
    """Return a config with other values, or without; lists with an entry per layer go along."""
    made = deepcopy(config)
    for path, value in changes.items():
        if value is ABSENT:
            made = remove(made, path)
        else:
            put(made, path, value)
    for path, count in links.items():
        entries = get(made, path)
        if count in changes and path not in changes and isinstance(entries, list) and entries:
            wanted = changes[count]
            if isinstance(wanted, int):
                put(made, path, [entries[i % len(entries)] for i in range(wanted)])
    return made


def shrunk(config: Json) -> Iterator[Json]:
    """Yield the config with fewer layers and experts, then with fewer changes, then as it is."""
    counts = {path: n for path, n in numbers(config).items() if is_count(path) and n > MOST_LAYERS}
    experts = {path: n for path, n in numbers(config).items() if is_experts(path)
               and n > MOST_EXPERTS}  # fmt: skip
    everything = dict.fromkeys(counts, MOST_LAYERS) | dict.fromkeys(experts, MOST_EXPERTS)
    six = dict.fromkeys(counts, 6)
    shared = {path: 2 for path, n in numbers(config).items() if "shared_layers" in path and n > 2}
    if shared:
        yield _cut(config, everything | shared)
    for chosen in (everything, everything | six, dict.fromkeys(counts, MOST_LAYERS),
                   dict.fromkeys(experts, MOST_EXPERTS)):  # fmt: skip
        if chosen:
            yield _cut(config, chosen)
    yield config


def is_count(path: str) -> bool:
    """Return whether a number's name is that of a number of layers."""
    name = path.rsplit(".", 1)[-1]
    return _COUNT.fullmatch(name) is not None and not _SOME_LAYERS.search(name)


def is_experts(path: str) -> bool:
    """Return whether a number's name is that of a number of experts."""
    return _EXPERTS.fullmatch(path.rsplit(".", 1)[-1]) is not None


def _cut(config: Json, chosen: Mapping[str, int]) -> Json:
    made = deepcopy(config)
    for path, count in chosen.items():
        old = get(config, path)
        outer = path.rpartition(".")[0]
        inside = get(made, outer) if outer else made
        for key, value in list(inside.items()):
            if isinstance(value, list) and is_count(path):
                if len(value) == old:
                    inside[key] = value[:count]
                elif value and all(type(i) is int and i < old for i in value) and "layer" in key:
                    inside[key] = [i for i in value if i < count]
        put(made, path, count)
    return made
