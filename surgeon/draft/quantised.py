"""Quantised weights: codes and their companions, which are one thing and no numbers.

A group is recognised by the names and dtypes of its tensors, or else by the folder's config, whose
`quantization_config` may name a format that is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from surgeon.lazy import LazyTensor, TensorSpec
from surgeon.numeric.dtypes import DTYPES
from surgeon.numeric.ggml import BLOCK_TYPES

Tensors = Mapping[str, LazyTensor]
Format = Literal[
    "scaled",
    "mxfp4",
    "gptq",
    "awq",
    "bitsandbytes-4",
    "bitsandbytes-8",
    "packed",
    "ggml",
    "unknown",
]

# What lies beside the codes of a scaled weight, after its name or its module's.
_BESIDE_SCALED = ("_scale_2", "_zero_point", "_g_idx", "_scale_ub", "_shape")
_BESIDE_MODULE = (
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "activation_scale",
    "input_scale_ub",
)  # fmt: skip
# quant_method of those that names and dtypes tell, as transformers spells them.
KNOWN_METHODS = {
    "fp8", "fbgemm_fp8", "compressed-tensors", "gptq", "awq", "bitsandbytes", "mxfp4", "int8",
    "modelopt",
}  # fmt: skip


@dataclass(frozen=True)
class QuantisedGroup:
    """One quantised weight: `weight` is its name as numbers, `parts` its tensors by their role.

    The part `codes` comes first.
    """

    format: Format
    weight: str
    parts: Mapping[str, str]
    method: str = ""

    @property
    def codes(self) -> str:
        """The name of the codes."""
        return self.parts["codes"]

    @property
    def companions(self) -> list[str]:
        """The names of everything else."""
        return [name for role, name in self.parts.items() if role != "codes"]

    def __str__(self) -> str:
        beside = ", ".join(f"'{name}'" for name in self.companions)
        return f"'{self.codes}' ({self.title} codes" + (f", with {beside})" if beside else ")")

    @property
    def title(self) -> str:
        """What the format is called."""
        titles = {"gptq": "GPTQ", "awq": "AWQ", "mxfp4": "MXFP4"}
        return self.method or titles.get(self.format, self.format)


def groups(tensors: Tensors, config: Mapping[str, Any] | None = None) -> list[QuantisedGroup]:
    """Return the quantised weights among tensors.

    `config` is the folder's quantization_config: of a format that is not known, every module with a
    tensor of codes (whole numbers, or less than a byte) is a group.
    """
    found: list[QuantisedGroup] = []
    for name in tensors if _may_tell(tensors) else ():
        if make := _TELLING.get(name[max(name.rfind("."), name.rfind("_")) :]):
            found += [group for group in make(name, tensors) if group]
        elif name.endswith("_scale_inv") or name.endswith(".SCB"):
            found += [group for group in _scaled(name, tensors) if group]
        elif name[-5:-4] == "." and (group := _blocks(name, tensors)):
            found.append(group)
    method = str((config or {}).get("quant_method", ""))
    if method and method not in KNOWN_METHODS and not found:
        found += _of_unknown(tensors, method)
    taken: set[str] = set()
    unique = []
    for group in found:
        if group.codes not in taken:
            taken.add(group.codes)
            unique.append(group)
    return unique


def by_name(found: Iterable[QuantisedGroup]) -> dict[str, QuantisedGroup]:
    """Return the group that each tensor is a part of."""
    return {name: group for group in found for name in group.parts.values()}


def _there(tensors: Tensors, parts: Mapping[str, str]) -> dict[str, str]:
    return {role: name for role, name in parts.items() if name in tensors}


def _dtype(tensors: Tensors, name: str) -> str:
    return tensors[name].spec.dtype if name in tensors else ""


def _is_codes(dtype: str) -> bool:
    return bool(dtype) and (dtype.startswith("F8") or dtype in ("I8", "U8", "F4"))


def _scaled(name: str, tensors: Tensors) -> Iterator[QuantisedGroup | None]:
    """Yield the group of a scale: `weight_scale_inv`, `weight_scale`, `scale` or `SCB`."""
    module, _, leaf = name.rpartition(".")
    prefix = f"{module}." if module else ""
    if leaf == "SCB":
        codes = f"{prefix}weight"
        if _dtype(tensors, codes) == "I8":
            parts = {"codes": codes, "scale": name, "format": f"{prefix}weight_format"}
            yield QuantisedGroup("bitsandbytes-8", codes, _there(tensors, parts))
        return
    for suffix in ("_scale_inv", "_scale"):
        codes = f"{prefix}weight" if leaf == "scale" else name.removesuffix(suffix)
        if codes == name:
            continue
        if f"{codes}_packed" in tensors:
            beside = ("zero_point", "g_idx", "shape", "global_scale")
            parts = {"codes": f"{codes}_packed", "scale": name}
            parts |= {word: f"{codes}_{word}" for word in beside}
            parts |= {word: f"{prefix}{word}" for word in _BESIDE_MODULE}
            yield QuantisedGroup("packed", codes, _there(tensors, parts))
        elif _is_codes(_dtype(tensors, codes)):
            parts = {"codes": codes, "scale": name}
            parts |= {word[1:]: f"{codes}{word}" for word in _BESIDE_SCALED}
            parts |= {word: f"{prefix}{word}" for word in _BESIDE_MODULE}
            title = "FP8" if _dtype(tensors, codes).startswith("F8") else "int8"
            yield QuantisedGroup("scaled", codes, _there(tensors, parts), title)
        return


def _integers(name: str, tensors: Tensors) -> Iterator[QuantisedGroup | None]:
    """Yield the group of a `qweight`: AWQ packs outputs, GPTQ inputs."""
    prefix = name.removesuffix("qweight")
    parts = {"codes": name, "scale": f"{prefix}scales", "zeros": f"{prefix}qzeros",
             "groups": f"{prefix}g_idx"}  # fmt: skip
    parts = _there(tensors, parts)
    if _dtype(tensors, name) == "I32" and "scale" in parts:
        codes, scales = tensors[name].spec.shape, tensors[parts["scale"]].spec.shape
        is_awq = "groups" not in parts and codes[-1:] != scales[-1:]
        yield QuantisedGroup("awq" if is_awq else "gptq", f"{prefix}weight", parts)


def _four_bits(name: str, tensors: Tensors) -> Iterator[QuantisedGroup | None]:
    """Yield the group of bitsandbytes' largest magnitudes."""
    weight = name.removesuffix(".absmax")
    if weight not in tensors:
        return
    words = ("quant_map", "nested_absmax", "nested_quant_map")
    parts = {"codes": weight, "absmax": name, **{word: f"{weight}.{word}" for word in words}}
    parts |= {"state": f"{weight}.quant_state.bitsandbytes__nf4"}
    if parts["state"] not in tensors:
        parts["state"] = f"{weight}.quant_state.bitsandbytes__fp4"
    yield QuantisedGroup("bitsandbytes-4", weight, _there(tensors, parts))


def _microscaled(name: str, tensors: Tensors) -> Iterator[QuantisedGroup | None]:
    """Yield the group of MXFP4 blocks."""
    weight = name.removesuffix("_blocks")
    parts = {"codes": name, "scale": f"{weight}_scales"}
    if _dtype(tensors, name) == "U8" and parts["scale"] in tensors:
        yield QuantisedGroup("mxfp4", weight, parts)


def _blocks(name: str, tensors: Tensors) -> QuantisedGroup | None:
    """Return the group of a tensor of GGUF's blocks, whose name ends with their type."""
    weight, _, kind = name.rpartition(".")
    is_known = kind in BLOCK_TYPES and weight and _dtype(tensors, name) == "U8"
    return QuantisedGroup("ggml", weight, {"codes": name}, kind) if is_known else None


# By the end of a name, from its last dot or underscore on.
_TELLING: Mapping[str, Callable[[str, Tensors], Iterator[QuantisedGroup | None]]] = {
    "_scale": _scaled,
    ".scale": _scaled,
    ".qweight": _integers,
    ".absmax": _four_bits,
    "_blocks": _microscaled,
}
# Ends of names that may tell of a quantised weight.
_ENDS = (*_TELLING, "_scale_inv", ".SCB", *(f".{kind}" for kind in BLOCK_TYPES))
_LONGEST_END = max(map(len, _ENDS))


def _may_tell(names: Iterable[str]) -> bool:
    """Say whether some name may tell of a quantised weight; of many names few ends differ."""
    ends = {name[-_LONGEST_END:] for name in names}
    return any(end.endswith(_ENDS) for end in ends)


def _of_unknown(tensors: Tensors, method: str) -> Iterator[QuantisedGroup]:
    modules: dict[str, list[str]] = {}
    for name in tensors:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    for module, names in modules.items():
        codes = [name for name in names if _holds_codes(tensors[name].spec)]
        if codes:
            others = [n for n in names if n not in codes and not n.endswith("bias")]
            parts = {"codes": codes[0]}
            parts |= {name: name for name in (*codes[1:], *others)}
            yield QuantisedGroup("unknown", f"{module}.weight", parts, method)


def _holds_codes(spec: TensorSpec) -> bool:
    dtype = DTYPES[spec.dtype]
    is_code = dtype.bits <= 8 and dtype.kind != "bool"
    return len(spec.shape) > 1 and (is_code or dtype.kind == "int")
