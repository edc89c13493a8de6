"""A config's quantization_config, which follows what the tensors are: codes, or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from surgeon.base.errors import listed
from surgeon.draft import Tensors
from surgeon.draft.quantised import QuantisedGroup, by_name, groups
from surgeon.model_folder.case import Case, Json

KEY = "quantization_config"
# Where each method lists the modules whose weights are numbers.
_EXCEPTIONS = {
    "fp8": "modules_to_not_convert",
    "fbgemm_fp8": "modules_to_not_convert",
    "awq": "modules_to_not_convert",
    "mxfp4": "modules_to_not_convert",
    "bitsandbytes": "llm_int8_skip_modules",
    "compressed-tensors": "ignore",
}
# Files that say the same beside the config, as other tools write them.
STALE = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def follow_quantisation(case: Case) -> None:
    """Follow which weights are quantised: the entry comes, goes, or lists what is excepted."""
    old = case.old.get(KEY)
    settings = old if isinstance(old, dict) else None
    before = {group.weight: group for group in groups(case.before, settings)}
    after = {group.weight: group for group in groups(case.after, settings)}
    if KEY in case.stated or before.keys() == after.keys():
        return
    for group in before.values():
        case.explained |= {(group.weight, dim) for dim in range(4)}
    # What went with its module, or came from another model, changes nothing for the others.
    now_numbers = [name for name in before if name not in after and name in case.after]
    now_codes = [name for name in after if name not in before and name in case.before]
    if not after:
        if settings is not None and now_numbers:
            case.new.pop(KEY, None)
    elif settings is None:
        case.new[KEY] = _entry(case.after, after.values())
    elif now_numbers or now_codes:
        _except(case, settings, now_numbers, now_codes, after)


def numbers_only(tensors: Tensors) -> Tensors:
    """Return the tensors that are parts of no quantised weight."""
    parts = by_name(groups(tensors))
    return {name: tensor for name, tensor in tensors.items() if name not in parts}


def _except(
    case: Case,
    settings: Json,
    numbers: list[str],
    codes: list[str],
    after: Mapping[str, QuantisedGroup],
) -> None:
    """List what became numbers among the exceptions, and take out what became codes."""
    method = str(settings.get("quant_method"))
    word = _EXCEPTIONS.get(method)
    if word is None:
        case.problems.append(
            f"{KEY}: {listed(numbers or codes)} would be quantised otherwise than the rest, which "
            f"{method} cannot say; dequantize all, or state {KEY} in output.config"
        )
        return
    made = _entry(case.after, [after[name] for name in codes]) if codes else None
    if made and (made["quant_method"] != method or _sizes(made) != _sizes(settings)):
        case.problems.append(
            f"{KEY}: {listed(codes)} would be quantised as {made['quant_method']}, beside weights "
            f"of {method} in other blocks; quantize all alike"
        )
        return
    gone = {_module(name) for name in codes}
    kept = [name for name in settings.get(word) or [] if name not in gone]
    added = [module for module in map(_module, numbers) if module not in kept]
    case.new[KEY] = {**settings, word: [*kept, *added]}
    if added:
        case.notes.append(
            f"{KEY}: {word} lists {listed(added)}; loaders that fuse layers (q, k, v) need all of "
            "one alike"
        )


def _sizes(settings: Json) -> Any:
    return settings.get("weight_block_size")


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _entry(tensors: Tensors, made: Iterable[QuantisedGroup]) -> Json:
    """Return the entry for FP8 codes, as transformers and vLLM read it."""
    groups_made = list(made)
    codes = {group.codes for group in groups_made}
    excepted = sorted(
        {
            _module(name)
            for name, tensor in tensors.items()
            if name.endswith(".weight") and len(tensor.spec.shape) == 2 and name not in codes
        }
    )
    if all(group.parts.get("scale", "").endswith("_scale_inv") for group in groups_made):
        return {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": excepted,
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
        }
    weights = {"dynamic": False, "num_bits": 8, "strategy": "channel", "symmetric": True,
               "type": "float"}  # fmt: skip
    activations = {**weights, "dynamic": True, "strategy": "token"}
    group = {"input_activations": activations, "targets": ["Linear"], "weights": weights}
    return {
        "config_groups": {"group_0": group},
        "format": "float-quantized",
        "ignore": excepted,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
