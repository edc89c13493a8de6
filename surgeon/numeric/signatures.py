"""What the functions of the compiled loops take and return, as kernels.h has it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Structure,
    c_double,
    c_int,
    c_int64,
    c_size_t,
    c_uint,
    c_uint32,
    c_void_p,
)
from typing import Any


class Operand(Structure):
    _fields_ = (("data", c_void_p), ("dtype", c_int64))


class ChangeFields(Structure):
    _fields_ = (
        ("x", Operand), ("mask", c_void_p), ("words", c_void_p), ("chances", c_void_p),
        ("has_cut", c_int64), ("least", c_double), ("end", c_int64), ("dropped", c_double),
        ("dropped_end", c_int64), ("divide", c_double), ("multiply", c_double),
        ("weight", c_double), ("share", c_double),
    )  # fmt: skip


class WeightsFields(Structure):
    _fields_ = (
        ("source", Operand), ("by_vector", c_int64), ("by_place", c_int64), ("factor", c_double),
    )  # fmt: skip


class EndingFields(Structure):
    _fields_ = (
        ("divide", c_double), ("multiply", c_double), ("from_zero", c_int64),
    )  # fmt: skip


_POINTER, _COUNT, _FLAG, _UINT64 = c_void_p, c_size_t, c_int, ctypes.c_uint64
# What each function takes and returns.
SIGNATURES: dict[str, tuple[Any, Sequence[Any]]] = {
    "interface": (c_int, ()),
    "processor": (ctypes.c_char_p, ()),
    "upcast32": (None, (c_int64, _POINTER, _COUNT, _COUNT, _POINTER)),
    "upcast64": (None, (c_int64, _POINTER, _COUNT, _COUNT, _POINTER)),
    "downcast32": (_FLAG, (c_int64, _POINTER, _COUNT, _COUNT, _POINTER, _FLAG)),
    "downcast64": (_FLAG, (c_int64, _POINTER, _COUNT, _COUNT, _POINTER, _FLAG)),
    **{
        f"linear{bits}": (
            _FLAG,
            (_COUNT, POINTER(Operand), _COUNT, _POINTER, c_double, c_double, c_int64, _POINTER,
             _FLAG, _FLAG),
        )
        for bits in (32, 64)
    },
    "products": (
        None,
        (_COUNT, _COUNT, POINTER(Operand), _COUNT, _FLAG, *[_POINTER] * 4),
    ),
    "within": (_COUNT, (_COUNT, Operand, Operand, _UINT64, _UINT64, c_int64, *[_POINTER] * 3)),
    "nth": (_COUNT, (_COUNT, _POINTER, _COUNT, _POINTER, _POINTER)),
    "bins": (
        None,
        (_COUNT, Operand, Operand, _UINT64, _UINT64, _FLAG, _POINTER, _POINTER),
    ),
    "sum": (
        _FLAG,
        (_COUNT, Operand, POINTER(ChangeFields), _COUNT, EndingFields, c_int64, _POINTER),
    ),
    "elect": (
        _FLAG,
        (_COUNT, Operand, POINTER(ChangeFields), _COUNT, _FLAG, _POINTER, c_double, _POINTER,
         c_int64, _POINTER),
    ),
    "consensus": (
        _FLAG,
        (_COUNT, Operand, POINTER(ChangeFields), _COUNT, _POINTER, _POINTER, _COUNT, c_double,
         _POINTER, c_int64, _POINTER),
    ),
    "act": (
        _FLAG,
        (_COUNT, POINTER(Operand), _COUNT, _POINTER, _POINTER, c_int64, _POINTER),
    ),
    "near": (_FLAG, (_COUNT, POINTER(Operand), c_double, c_int64, _POINTER)),
    "clamp": (_FLAG, (_COUNT, Operand, c_double, c_double, c_int64, _POINTER)),
    "variance": (None, (_COUNT, POINTER(Operand), _COUNT, _POINTER)),
    "weighed": (
        _FLAG,
        (_COUNT, _COUNT, POINTER(Operand), _COUNT, POINTER(WeightsFields), _FLAG, c_double, c_int64,
         _POINTER),
    ),
    "magnitudes": (None, (_COUNT, Operand, Operand, _POINTER, _POINTER)),
    "by_rank": (
        None,
        (_COUNT, _COUNT, Operand, Operand, *[_POINTER] * 5),
    ),
    "extremes": (_FLAG, (_COUNT, Operand, _POINTER)),
    "philox": (None, (_POINTER, _UINT64, _UINT64, _COUNT, _POINTER)),
    "bernoulli": (None, (_COUNT, _POINTER, _UINT64, c_uint, c_double, _POINTER)),
    "crc32_begin": (None, ()),
    "crc32": (c_uint32, (c_uint32, _POINTER, _COUNT)),
    "crc32_joined": (c_uint32, (c_uint32, c_uint32, _UINT64)),
    "read_runs": (_FLAG, (c_int, c_int64, c_int64, _COUNT, _COUNT, _POINTER)),
}  # fmt: skip
