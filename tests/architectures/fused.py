"""How heads lie in a projection of queries, keys and values, as a tiny model shows it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.architectures.arguments import NEEDED
from tests.architectures.build import (
    NoBuildError,
    build,
    classes_of_types,
    config_of,
    saved_in_memory,
)  # fmt: skip
from tests.architectures.collapse import pattern_of
from tests.architectures.configs import Json

_FUSED = re.compile(r".*(qkv|query_key_value|c_attn|att_proj|kv)(_proj)?", re.IGNORECASE)
_TOKENS = 5
_PLACE = 2
_APART = re.compile(r".*\.(q|k|v|g)\w*(?:proj|uery|ey|alue)\.weight")
# Over so many devices CodeGen's layers were split, and its file is.
_MESH = 4
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_MOST_PARAMETERS = 50_000_000
_SIZE = re.compile(r".*(head_dim|channels)")

# With more heads of keys than one.
_SETTINGS: dict[str, tuple[Json, ...]] = {
    "falcon": ({"multi_query": False}, {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_bigcode": ({"multi_query": False},),
    "jetmoe": ({"num_key_value_heads": 2, "num_experts_per_tok": 4, "kv_channels": 12},),
}

# What one channel of the projection is: of queries, keys or values (or a gate), for which heads.
Channel = tuple[str, tuple[int, ...]]


def fused_layouts(model_type: str) -> Json:
    """Return how heads lie in the fused projections of a type, where a tiny model of it runs."""
    from tests.folders.models import class_of, tiny

    if class_of(model_type) is None:
        return _layouts_on_disk(model_type)
    values = CONFIG_MAPPING[model_type]().to_dict()
    if isinstance(values.get("text_config"), dict) or not _is_small(model_type):
        return _layouts_on_disk(model_type)
    found: Json = {}
    for setting in ({}, *_SETTINGS.get(model_type, ())):
        try:
            made = fused_of(tiny(model_type, 0, _with_heads(values) | setting))
        except Exception:  # no tiny model of this type
            continue
        for name, lies in made.items():
            # With one head of keys, one group for each is one group.
            if name not in found or found[name]["groups"] == 1:
                found[name] = lies
    return found


def _is_small(model_type: str) -> bool:
    """Return whether a model with small numbers takes no memory that is worth a word."""
    from tests.folders.models import class_of, tiny_config

    try:
        config = tiny_config(model_type).to_dict()
        built = build(str(class_of(model_type)), model_type, config, on_disk=False)
    except Exception:  # no tiny model of this type
        return False
    return sum(p.numel() for p in built.model.parameters()) <= _MOST_PARAMETERS


def _with_heads(values: Json) -> Json:
    # More heads than CodeGen's groups, and heads smaller than their number.
    wide = {key: 64 for key in ("hidden_size", "n_embd", "d_model") if key in values}
    return wide | {key: 8 for key in _HEADS if key in values}


def _layouts_on_disk(model_type: str) -> Json:
    """Return how heads lie on disk in a model without a forward pass from tokens alone."""
    from tests.folders.models import small

    values = config_of(model_type, NEEDED.get(model_type, {})).to_dict()
    text = values["text_config"] if isinstance(values.get("text_config"), dict) else values
    text |= small(text) | _with_heads(text)
    for name in classes_of_types()[model_type] if "vocab_size" in text else ():
        try:
            return fused_of(build(name, model_type, values, on_disk=False).model)
        except NoBuildError:
            continue
    return {}


def fused_of(model: Any) -> Json:
    """Return {projection: how queries, keys and values lie in it}; {} where nothing was found.

    `order` is that of the parts within a group of heads; `groups` how many groups there are: one, a
    number, or `kv`, as many as heads of keys. `size` is the number that is the size of a head,
    where that is neither head_dim nor follows from `heads`.
    """
    config = model.config.get_text_config()
    numbers = {key for key, value in config.to_dict().items() if type(value) is int and value}
    count = next((key for key in _HEADS if key in numbers), None)
    if count is None:
        return {}
    heads = getattr(config, count)
    prefix = next((f"{key}." for key, one in vars(model.config).items() if one is config), "")
    found: Json = {}
    runs = not any(parameter.is_meta for parameter in model.parameters())
    in_memory = _fused_in_memory(model, heads) if runs else ()
    for name, channels, dim in (*in_memory, *_fused_on_disk(model, heads)):
        lies = _layout(channels, heads)
        size = _size_of(config, heads, sum(channel == channels[0] for channel in channels))
        if lies is not None and size is not None:
            named = {"size": f"{prefix}{size}"} if size else {}
            lies |= {"heads": f"{prefix}{count}", "dim": dim, **named}
            found.setdefault(pattern_of(name), lies)
    return found


def _size_of(config: Any, heads: int, size: int) -> str | None:
    """Return the number that is the size of a head; `` for the usual ones, None for none."""
    values = config.to_dict()
    if (values.get("head_dim") or getattr(config, "hidden_size", 0) // heads) == size:
        return ""
    named = [key for key, value in values.items() if _SIZE.fullmatch(key) and value == size]
    return named[0] if len(named) == 1 else None


def _is_own(model: Any, config: Any) -> Callable[[str], bool]:
    """Return what tells the modules of the part that a config is of."""
    if config is model.config:
        return lambda name: True
    parts = tuple(f"{name}." for name, module in model.named_modules()
                  if getattr(module, "config", None) is config)  # fmt: skip
    return lambda name: name.startswith(parts)


def _fused_in_memory(model: Any, heads: int) -> Iterator[tuple[str, list[Channel], int]]:
    seen = set()
    is_own = _is_own(model, model.config.get_text_config())
    for name, module in model.named_modules():
        is_conv1d = type(module).__name__ == "Conv1D"
        is_fused = _FUSED.fullmatch(name.rpartition(".")[2]) is not None
        if not (is_fused and is_own(name)) or not (is_conv1d or isinstance(module, nn.Linear)):
            continue
        if pattern_of(name) not in seen:
            seen.add(pattern_of(name))
            channels = _channels(model, name, module.weight.shape[int(is_conv1d)], heads)
            yield name, channels, int(is_conv1d)


def _channels(model: Any, name: str, rows: int, heads: int) -> list[Channel]:
    """Return what each channel of a projection's output is, by what changes where it changes.

    Each of a batch of equal texts has another channel changed, at one token.
    """
    parent, fused = model.get_submodule(name.rpartition(".")[0]), model.get_submodule(name)
    inputs: list[torch.Tensor] = []

    def changed(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        inputs.clear()
        output = output.clone()
        for row in range(rows):
            output[row + 1, _PLACE, row] += 0.5
        return output

    def keep(_module: Any, given: Sequence[Any]) -> None:
        if given and isinstance(given[0], torch.Tensor):
            inputs.append(given[0].detach().clone())

    source = sys.modules[type(parent).__module__]
    attend = getattr(source, "eager_attention_forward", None)

    def attended(*given: Any, **named: Any) -> Any:
        found = attend(*given, **named)
        inputs.append(found[0].detach().flatten(2))
        return found

    hooks = [fused.register_forward_hook(changed)]
    hooks += [child.register_forward_pre_hook(keep) for child in parent.modules()
              if child is not fused and child is not parent]  # fmt: skip
    ids = torch.arange(3, 3 + _TOKENS).repeat(rows + 1, 1)
    try:
        # What goes into no module of its own is seen as attention gives it.
        if attend is not None:
            source.eager_attention_forward = attended  # type: ignore[attr-defined]
        with torch.no_grad():
            model(input_ids=ids)
    finally:
        if attend is not None:
            source.eager_attention_forward = attend  # type: ignore[attr-defined]
        for hook in hooks:
            hook.remove()
    wide = [one for one in inputs if one.dim() == 3 and one.shape[:2] == (rows + 1, _TOKENS)
            and one.shape[2] % heads == 0 and one.shape[2] != rows]  # fmt: skip
    if not wide:
        return []
    outputs = wide[0].view(rows + 1, _TOKENS, heads, -1)
    moved = (outputs[1:] - outputs[:1]).abs() > 1e-6
    return [_channel(one) for one in moved]


def _channel(moved: torch.Tensor) -> Channel:
    own = tuple(moved.any(dim=2).any(dim=0).nonzero().flatten().tolist())
    tokens = moved.any(dim=2).any(dim=1).nonzero().flatten().tolist()
    is_narrow = bool(moved.sum(dim=2).max() <= 1)
    if not own:
        return "?", ()
    if tokens == [_PLACE]:
        return "g" if is_narrow else "q", own
    return "v" if is_narrow else "k", own


def _fused_on_disk(model: Any, heads: int) -> Iterator[tuple[str, list[Channel], int]]:
    """Yield projections that are apart in memory and one on disk, by numbers in their rows."""
    state = saved_in_memory(model)
    config = model.config.get_text_config()
    is_own = _is_own(model, config)
    keys = getattr(config, "num_key_value_heads", None) or heads
    each = heads // keys
    kinds: list[Channel] = [("?", ())]
    numbered = {}
    for name, tensor in state.items():
        part = _APART.fullmatch(name) if is_own(name) else None
        count = (heads if part and part[1] in "qg" else keys) if part else 0
        if not part or tensor.dim() != 2 or tensor.shape[0] % count:
            like = tensor.device if not is_own(name) else "cpu"
            numbered[name] = torch.zeros(tensor.shape, device=like)
            continue
        codes = []
        for head in range(count):
            own = (head,) if part[1] in "qg" else tuple(range(head * each, (head + 1) * each))
            if (part[1], own) not in kinds:
                kinds.append((part[1], own))
            codes += [kinds.index((part[1], own))] * (tensor.shape[0] // count)
        numbered[name] = torch.tensor(codes, dtype=torch.float32)[:, None].repeat(
            1, tensor.shape[1]
        )
    try:
        stored = revert_weight_conversion(model, numbered)
    except Exception:  # what cannot be saved has no layout
        return
    for name, tensor in stored.items():
        is_new = name not in state and not tensor.is_meta
        if is_new and tensor.dim() == 2 and name.endswith(".weight"):
            codes = tensor[:, 0].tolist()
            if len(parts := {kinds[int(c)][0] for c in codes}) > 1 and "?" not in parts:
                yield name.removesuffix(".weight"), [kinds[int(code)] for code in codes], 0


def _layout(channels: list[Channel], heads: int) -> Json | None:
    size = sum(channel == channels[0] for channel in channels)
    if not channels or len(channels) % size:
        return None
    blocks = channels[::size]
    if any(channel != blocks[place // size] for place, channel in enumerate(channels)):
        return None
    keys = len({own for part, own in blocks if part in "kv"})
    order = "".join(dict.fromkeys(part for part, _ in blocks))
    if "?" in order or not keys:
        return None
    for groups in dict.fromkeys((1, keys, _MESH)):
        # Keys that every so many heads share are keys in their order all the same.
        ways = (False,) if "q" in order else (False, True)
        if any(blocks == list(_blocks(order, groups, heads, keys, way)) for way in ways):
            return {"order": order, "groups": "kv" if groups == keys != 1 else groups}
    return None


def _blocks(order: str, groups: int, heads: int, keys: int, is_tiled: bool) -> Iterator[Channel]:
    each = heads // keys

    def readers(index: int) -> tuple[int, ...]:
        if is_tiled:
            return tuple(range(index, heads, keys))
        return tuple(range(index * each, (index + 1) * each))

    for group in range(groups):
        for part in order:
            count = heads if part in "qg" else keys
            for index in range(group * count // groups, (group + 1) * count // groups):
                yield part, (index,) if part in "qg" else readers(index)
