"""Blocks of GGUF's quantised types to values: bytes in, float32 out, as ggml computes them.

A block is its scales and its codes, side by side:
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, block_q4_0 and those after it. Each
product and sum is a float32 rounding of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from surgeon.base.deferred import np
from surgeon.numeric.dtypes import Array

# Elements in a block, and in a block of the K types, which has parts with scales of their own.
_SHORT, _LONG = 32, 256
Decode = Callable[[Array], Array]


@dataclass(frozen=True)
class BlockType:
    """A type of blocks: how many elements and bytes each has, and the values of several.

    Called, it is a kernel of `Recoded`: it gets whole blocks as flat bytes.
    """

    elements: int
    bytes: int
    decode: Decode

    def __call__(self, block: Array, companions: Sequence[Array], first: int) -> Array:
        return self.decode(block.reshape(-1, self.bytes))


def _half(blocks: Array, at: int) -> Array:
    """Return the float16 at a byte of each block, as a column of float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(codes: Array, together: int) -> Array:
    """Return the low halves of so many bytes, then their high halves, and so on."""
    parts = codes.reshape(len(codes), -1, 1, together)
    return (parts >> np.array([0, 4], np.uint8)[:, None] & 15).reshape(len(codes), -1)


def _bits(codes: Array, together: int, width: int) -> Array:
    """Return numbers of some bits: the lowest ones of so many bytes, then the next of them."""
    parts = codes.reshape(len(codes), -1, 1, together)
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    return (parts >> shifts & (1 << width) - 1).reshape(len(codes), -1)


def _fifth_bits(blocks: Array, at: int) -> Array:
    """Return bit n of 32 for element n, as the fifth of its code."""
    packed = np.ascontiguousarray(blocks[:, at : at + 4])
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_0(blocks: Array) -> Array:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).astype(np.float32) - 8)


def _q4_1(blocks: Array) -> Array:
    scaled = _half(blocks, 0) * _nibbles(blocks[:, 4:], 16).astype(np.float32)
    return scaled + _half(blocks, 2)


def _q5_0(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks, 2)
    return _half(blocks, 0) * (codes.astype(np.float32) - 16)


def _q5_1(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * codes.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Array) -> Array:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _parts(codes: Array, scales: Array, minima: Array | None = None) -> Array:
    """Return codes times the scale of their part, less its minimum."""
    parts = codes.astype(np.float32).reshape(*scales.shape, -1) * scales[..., None]
    if minima is not None:
        parts -= minima[..., None]
    return parts.reshape(len(codes), -1)


def _q2_k(blocks: Array) -> Array:
    scales = blocks[:, :16]
    own = _half(blocks, 80) * (scales & 15).astype(np.float32)
    minima = _half(blocks, 82) * (scales >> 4).astype(np.float32)
    return _parts(_bits(blocks[:, 16:80], 32, 2), own, minima)


def _q3_k(blocks: Array) -> Array:
    high, codes, packed = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    # Sixteen scales of six bits: their low halves in eight bytes, then their high bits in four.
    scales = _nibbles(packed[:, :8], 8) | _bits(packed[:, 8:], 4, 2) << 4
    own = _half(blocks, 108) * (scales.astype(np.float32) - 32)
    # A bit that is not set stands for four less.
    missing = (1 - _bits(high, 32, 1)).astype(np.float32) * 4
    return _parts(_bits(codes, 32, 2).astype(np.float32) - missing, own)


def _six_bit_scales(packed: Array) -> tuple[Array, Array]:
    """Return the eight scales and eight minima that twelve bytes hold."""
    scales, minima, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        np.concatenate([scales & 63, both & 15 | scales >> 6 << 4], axis=1).astype(np.float32),
        np.concatenate([minima & 63, both >> 4 | minima >> 6 << 4], axis=1).astype(np.float32),
    )


def _q4_k(blocks: Array) -> Array:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 16:], 32)
    return _parts(codes, _half(blocks, 0) * scales, _half(blocks, 2) * minima)


def _q5_k(blocks: Array) -> Array:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    codes = _nibbles(blocks[:, 48:], 32) | _bits(blocks[:, 16:48], 32, 1) << 4
    return _parts(codes, _half(blocks, 0) * scales, _half(blocks, 2) * minima)


def _q6_k(blocks: Array) -> Array:
    codes = _nibbles(blocks[:, :128], 64) | _bits(blocks[:, 128:192], 32, 2) << 4
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _parts(codes.astype(np.float32) - 32, _half(blocks, 208) * scales)


BLOCK_TYPES = {
    "Q4_0": BlockType(_SHORT, 18, _q4_0),
    "Q4_1": BlockType(_SHORT, 20, _q4_1),
    "Q5_0": BlockType(_SHORT, 22, _q5_0),
    "Q5_1": BlockType(_SHORT, 24, _q5_1),
    "Q8_0": BlockType(_SHORT, 34, _q8_0),
    "Q2_K": BlockType(_LONG, 84, _q2_k),
    "Q3_K": BlockType(_LONG, 110, _q3_k),
    "Q4_K": BlockType(_LONG, 144, _q4_k),
    "Q5_K": BlockType(_LONG, 176, _q5_k),
    "Q6_K": BlockType(_LONG, 210, _q6_k),
}
