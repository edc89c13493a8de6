"""Every form of lazy tensor against the NumPy expression that it stands for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgeon.base.errors import PlanError
from surgeon.lazy import (
    Blockwise,
    ByteRange,
    Copied,
    Fresh,
    Joined,
    LazyTensor,
    Operands,
    Rearranged,
    Scaled,
    Scratch,
    Selected,
    Stored,
    Stream,
    Strided,
    TensorSpec,
    is_computed_at_once,
    walk,
)
from surgeon.numeric.dtypes import DTYPES

STREAM = Stream(0, "0", "x")


@dataclass(frozen=True, eq=False)
class Memory:
    """A file that is bytes in memory, and how many of them were read."""

    content: bytes
    path: Path = Path("memory")
    reads: list[int] = field(default_factory=list)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        taken = self.content[offset : offset + buffer.nbytes]
        assert len(taken) == buffer.nbytes
        self.reads.append(buffer.nbytes)
        buffer.cast("B")[:] = taken

    def check_unchanged(self) -> None:
        pass

    def fileno(self) -> None:
        return None

    def whole(self, offset: int, size_bytes: int) -> None:
        return None


@dataclass(frozen=True)
class Counting:
    """An initialiser whose values are their own positions."""

    name: str = "counting"
    operands: tuple[LazyTensor, ...] = ()

    def values(self, spec: Any, start: int, stop: int, stream: Any, scratch: Scratch) -> np.ndarray:
        values = scratch.take(np.float64, stop - start)
        values[:] = np.arange(start, stop)
        return values


def stored(array: np.ndarray, dtype: str = "I32") -> Stored:
    return Stored(Memory(b"pad" + array.tobytes()), 3, TensorSpec(dtype, array.shape))


def numbered(shape: tuple[int, ...], first: int = 0, dtype: str = "I32") -> np.ndarray:
    return np.arange(first, first + prod(shape)).reshape(shape).astype(DTYPES[dtype].storage)


def use_blocks_of(size: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("surgeon.lazy.joined.BLOCK", size)
    patch.setattr("surgeon.lazy.blockwise.BLOCK", size)
    patch.setattr("surgeon.lazy.rearranged.BLOCK", size)
    patch.setattr("surgeon.lazy.rearranged.STRIP", 5 * size)


def from_pieces(tensor: LazyTensor, start: int, stop: int) -> np.ndarray:
    parts = []
    for piece in tensor.pieces(start, stop):
        if isinstance(piece, ByteRange):
            parts.append(piece.file.content[piece.offset : piece.offset + piece.size_bytes])
        else:
            parts.append(piece.tensor.elements(piece.start, piece.stop, Scratch()).tobytes())
    return np.frombuffer(b"".join(parts), DTYPES[tensor.spec.dtype].storage)


def assert_is(tensor: LazyTensor, expected: np.ndarray, start: int, stop: int) -> None:
    assert tensor.spec.shape == expected.shape
    window = expected.reshape(-1)[start:stop]
    np.testing.assert_array_equal(tensor.elements(start, stop, Scratch()), window)
    np.testing.assert_array_equal(from_pieces(tensor, start, stop), window)


Pair = tuple[LazyTensor, np.ndarray]
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@st.composite
def sources(draw: st.DrawFn, shape: tuple[int, ...]) -> Pair:
    """A tensor of this shape in one of the forms that have no parts, and its values."""
    array = numbered(shape, draw(st.integers(0, 1000)))
    match draw(st.sampled_from(["stored", "fresh", "copied", "strided"])):
        case "fresh":
            return Fresh(TensorSpec("I32", shape), Counting(), STREAM), numbered(shape)
        case "copied":
            return Copied(stored(array)), array
        case "strided":
            flat = stored(array.reshape(-1))
            strides = tuple(step // 4 for step in array.T.strides)
            return Strided(flat, strides[::-1], shape), array
    return stored(array), array


def with_size(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


@st.composite
def joined(draw: st.DrawFn, shape: tuple[int, ...], depth: int) -> Pair:
    dim = draw(st.integers(0, len(shape) - 1))
    ends = [0, *sorted(draw(st.lists(st.integers(0, shape[dim]), max_size=2))), shape[dim]]
    sizes = [stop - start for start, stop in itertools.pairwise(ends)]
    parts = [draw(tensors(with_size(shape, dim, size), depth - 1)) for size in sizes]
    tensor = Joined(tuple(part for part, _ in parts), dim)
    return tensor, np.concatenate([array for _, array in parts], dim)


@st.composite
def selected(draw: st.DrawFn, shape: tuple[int, ...], depth: int) -> Pair:
    dim = draw(st.integers(0, len(shape) - 1))
    size, middle = shape[dim], draw(st.integers(0, shape[dim]))
    first, second = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    source, array = draw(tensors(with_size(shape, dim, size + 2), depth - 1))
    ranges = ((first, first + middle), (second, second + size - middle))
    index = np.concatenate([np.arange(start, stop) for start, stop in ranges])
    return Selected(source, dim, ranges), np.take(array, index, dim)


@st.composite
def rearranged(draw: st.DrawFn, shape: tuple[int, ...], depth: int) -> Pair:
    """Dimensions merged or cut, then in another order."""
    sizes = list(shape)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(sizes) - 1))
        if draw(st.booleans()) and at + 1 < len(sizes):
            sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
        else:
            part = draw(st.sampled_from([n for n in range(1, 6) if sizes[at] % n == 0]))
            sizes[at : at + 1] = [part, sizes[at] // part]
    order = draw(st.permutations(range(len(sizes))))
    source, array = draw(
        tensors(tuple(sizes[order.index(axis)] for axis in range(len(sizes))), depth - 1)
    )
    return Rearranged(source, tuple(order), shape), array.transpose(order).reshape(shape)


@st.composite
def doubled(draw: st.DrawFn, shape: tuple[int, ...], depth: int) -> Pair:
    source, array = draw(tensors(shape, depth - 1))

    def double(blocks: Any, statistics: Any, out: np.ndarray) -> np.ndarray:
        return np.multiply(blocks[0], 2, out=out)

    return Blockwise(source.spec, double, (source,)), array * 2


@st.composite
def scaled(draw: st.DrawFn, shape: tuple[int, ...], depth: int) -> Pair:
    dim = draw(st.integers(0, len(shape) - 1))
    source, array = draw(tensors(shape, depth - 1))
    signs = draw(st.lists(st.sampled_from([0, 1, -1]), min_size=shape[dim], max_size=shape[dim]))
    factors = np.array(signs).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return Scaled(source, dim, np.array(signs, np.float64)), array * factors.astype(array.dtype)


def tensors(shape: tuple[int, ...], depth: int) -> st.SearchStrategy[Pair]:
    """Forms nested up to a depth, of this shape, with the values that they stand for."""
    leaves = sources(shape)
    if depth == 0:
        return leaves
    kinds = (joined, selected, rearranged, doubled, scaled)
    return st.one_of(*(kind(shape, depth) for kind in kinds), leaves)


TREES = SHAPES.flatmap(lambda shape: tensors(shape, 3))


def window(draw: st.DataObject, count: int) -> tuple[int, int]:
    start, stop = sorted(draw.draw(st.tuples(*[st.integers(0, count)] * 2)))
    return start, stop


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data(), TREES)
def test_any_window_of_nested_forms_is_numpys(data: st.DataObject, pair: Pair) -> None:
    tensor, array = pair
    assert_is(tensor, array, *window(data, array.size))


@settings(max_examples=150, deadline=None)
@given(st.data(), TREES, st.integers(1, 7))
def test_tiny_blocks_change_nothing(data: st.DataObject, pair: Pair, block: int) -> None:
    tensor, array = pair
    with pytest.MonkeyPatch.context() as patch:
        use_blocks_of(block, patch)
        assert_is(tensor, array, *window(data, array.size))


@settings(max_examples=150, deadline=None)
@given(st.data(), TREES)
def test_scratch_is_used_again_without_harm(data: st.DataObject, pair: Pair) -> None:
    tensor, array = pair
    scratch, flat = Scratch(), array.reshape(-1)
    for _ in range(3):
        start, stop = window(data, array.size)
        with scratch.scope():
            first = tensor.elements(start, stop, scratch)
            second = tensor.elements(0, array.size, scratch)
            np.testing.assert_array_equal(first, flat[start:stop])
            np.testing.assert_array_equal(second, flat)


def new_mask(tensor: LazyTensor) -> np.ndarray:
    """How often each element is in a new region."""
    mask = np.zeros(tensor.spec.shape, int)
    for region in tensor.new_regions():
        mask[tuple(slice(*side) for side in region)] += 1
    return mask


def naive_new(tensor: LazyTensor) -> np.ndarray:
    match tensor:
        case Fresh() | Copied():
            return np.ones(tensor.spec.shape, int)
        case Joined(parts, dim):
            return np.concatenate([naive_new(part) for part in parts], dim)
        case Selected(source, dim, ranges):
            index = np.concatenate([np.arange(start, stop) for start, stop in ranges])
            return np.take(naive_new(source), index, dim)
        case Rearranged(source, order, shape):
            return naive_new(source).transpose(order).reshape(shape)
        case Blockwise() | Scaled():
            return naive_new(tensor.operands[0])
    return np.zeros(tensor.spec.shape, int)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_new_regions_follow_what_is_new(pair: Pair) -> None:
    np.testing.assert_array_equal(new_mask(pair[0]), naive_new(pair[0]))


def test_a_result_of_several_operands_has_no_new_regions() -> None:
    fresh = Fresh(TensorSpec("F32", (2, 2)), Counting(), STREAM)
    assert Blockwise(fresh.spec, add, (fresh, fresh)).new_regions() == ()


def add(blocks: Any, statistics: Any, out: np.ndarray) -> np.ndarray:
    return np.add(blocks[0], blocks[1], out=out)


def test_joined_and_selected_rows_are_byte_ranges() -> None:
    array = numbered((10, 3))
    tensor = Joined((Selected(stored(array), 0, ((7, 9), (2, 3))), stored(array)), 0)
    pieces = list(tensor.pieces(0, 39))
    assert [type(piece) for piece in pieces] == [ByteRange] * 3
    assert [piece.size_bytes for piece in pieces] == [24, 12, 120]


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)], ids=str)
def test_strided_views_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    array = numbered(shape)
    for view in [array.T, array[::2], np.broadcast_to(array[:, :1], shape), array[..., 1:3]]:
        first = (view.ctypes.data - array.ctypes.data) // 4
        strides = tuple(step // 4 for step in view.strides)
        reach = 1 + sum((size - 1) * step for size, step in zip(view.shape, strides, strict=True))
        run = Stored(Memory(array.tobytes()), first * 4, TensorSpec("I32", (reach,)))
        assert_is(Strided(run, strides, view.shape), view, 0, view.size)
        assert_is(Strided(run, strides, view.shape), view, 1, view.size - 1)


@pytest.mark.parametrize("dtype", ["F64", "I64", "BF16", "F16", "F8_E4M3", "BOOL", "C64"])
def test_stored_bytes_are_given_as_they_are(dtype: str) -> None:
    array = numbered((4, 6), 0, dtype)
    assert_is(stored(array, dtype), array, 0, 24)
    assert_is(stored(array, dtype), array, 5, 17)


def less_mean(blocks: Any, statistics: Any, out: np.ndarray) -> np.ndarray:
    return np.subtract(blocks[0], statistics, out=out)


@pytest.mark.parametrize("window", [(0, 300), (7, 250), (299, 300), (5, 5)])
def test_statistics_are_known_before_the_first_block(
    window: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_blocks_of(64, monkeypatch)
    array = numbered((20, 15), 3, "F32")
    asked: list[int] = []

    def mean(operands: Operands) -> float:
        asked.append(1)
        return sum(float(blocks[0].sum()) for blocks in operands.blocks()) / 300

    tensor = Blockwise(TensorSpec("F32", (20, 15)), less_mean, (stored(array, "F32"),), mean)
    assert_is(tensor, array - np.float32(array.mean()), *window)
    assert asked == [1, 1]  # by each of the two who ask there


def test_mixed_floats_are_combined_in_float32_and_rounded_once() -> None:
    one = stored(np.array([1.0, 257.0], np.float32), "F32")
    other = stored(np.array([0x3F80, 0x3F80], np.uint16), "BF16")  # 1 and 1
    total = Blockwise(TensorSpec("BF16", (2,)), add, (one, other))
    np.testing.assert_array_equal(total.elements(0, 2, Scratch()), [0x4000, 0x4381])  # 2 and 258


EMPTY = [(0,), (0, 3), (3, 0), (2, 0, 3)]


@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_empty_tensors_have_no_elements(shape: tuple[int, ...]) -> None:
    empty = stored(numbered(shape))
    fresh = Fresh(TensorSpec("F32", shape), Counting(), STREAM)
    strided = Strided(Stored(Memory(b""), 0, TensorSpec("I32", (0,))), (1,) * len(shape), shape)
    whole = tuple((0, size) for size in shape)
    forms = [empty, fresh, strided, Copied(empty), Blockwise(fresh.spec, add, (fresh, fresh))]
    for dim in range(len(shape)):
        forms += [Joined((empty, empty), dim), Selected(empty, dim, (whole[dim], (0, 0)))]
        forms += [Rearranged(fresh, tuple(range(len(shape)))[::-1], shape[::-1])]
    for tensor in forms:
        assert tensor.elements(0, 0, Scratch()).size == 0
        assert from_pieces(tensor, 0, 0).size == 0
        assert new_mask(tensor).size == 0


def test_one_selected_row_reads_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    use_blocks_of(64, monkeypatch)
    source = stored(numbered((500, 8)))
    tensor = Selected(source, 0, ((499, 500), (3, 4)))
    assert_is(tensor, numbered((500, 8))[[499, 3]], 0, 16)
    assert max(source.file.reads) == 8 * 4


def test_selected_columns_read_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    use_blocks_of(64, monkeypatch)
    source = stored(numbered((500, 8)))
    assert_is(Selected(source, 1, ((6, 8), (0, 1))), numbered((500, 8))[:, [6, 7, 0]], 0, 1500)
    assert max(source.file.reads) == 64 * 4


def opened(shape: tuple[int, ...], order: tuple[int, ...], *new: int) -> Rearranged:
    return Rearranged(stored(numbered(shape)), order, new)


@pytest.mark.parametrize(
    "tensor",
    [
        opened((6, 4), (0, 1), 2, 12),
        opened((1, 6, 1, 4), (1, 2, 0, 3), 6, 4),
        opened((6, 1), (1, 0), 6),
        opened((6, 4), (0, 1), 1, 24, 1),
    ],
)
def test_what_moves_nothing_is_byte_ranges(tensor: Rearranged) -> None:
    assert [type(piece) for piece in tensor.pieces(0, tensor.spec.count)] == [ByteRange]
    assert tensor.scratch_bytes == (0, 0, 0)
    np.testing.assert_array_equal(
        tensor.elements(0, tensor.spec.count, Scratch()), range(tensor.spec.count)
    )


def transposed_in_blocks(source: LazyTensor, expected: np.ndarray) -> Rearranged:
    """Compare every block of a transposed matrix; the worker keeps what it knows."""
    tensor, scratch = Rearranged(source, (1, 0), source.spec.shape[::-1]), Scratch()
    for start in range(0, expected.size, 64):
        with scratch.scope():
            block = tensor.elements(start, min(start + 64, expected.size), scratch)
            np.testing.assert_array_equal(block, expected.T.reshape(-1)[start : start + 64])
    return tensor


def test_a_transposed_computed_matrix_is_computed_eight_times_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_blocks_of(64, monkeypatch)
    seen: list[int] = []

    def negative(blocks: Any, statistics: Any, out: np.ndarray) -> np.ndarray:
        seen.append(len(out))
        return np.negative(blocks[0], out=out)

    array = numbered((100, 40))
    source = Blockwise(TensorSpec("I32", (100, 40)), negative, (stored(array),))
    tensor = transposed_in_blocks(source, -array)
    assert sum(seen) <= 8 * 4000
    assert max(seen) <= 64
    assert is_computed_at_once(tensor)
    assert tensor.scratch_bytes.held == (500 + 3 * 64) * 4


def test_a_transposed_matrix_put_together_of_stored_ones_is_made_by_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_blocks_of(64, monkeypatch)
    array = numbered((100, 40))
    base = stored(array)
    turned = Rearranged(base, (1, 0), (40, 100))
    parts = (Selected(base, 1, ((30, 40), (5, 9))), Copied(Rearranged(turned, (1, 0), (100, 40))))
    tensor = transposed_in_blocks(
        Joined(parts, 1), np.concatenate([array[:, 30:], array[:, 5:9], array], 1)
    )
    assert not is_computed_at_once(tensor)


def test_new_parts_in_thousands_of_pieces_are_refused() -> None:
    fresh = Fresh(TensorSpec("I32", (5000, 1)), Counting(), STREAM)
    joined = Joined((stored(numbered((5000, 2))), fresh), 1)
    assert len(Rearranged(joined, (1, 0), (3, 5000)).new_regions()) == 1
    with pytest.raises(PlanError, match=r"over 4096 pieces in shape \(15000,\); reshape it before"):
        Rearranged(joined, (0, 1), (15000,)).new_regions()


def test_many_columns_of_part_of_a_row_are_read_together() -> None:
    source = stored(numbered((3, 40)))
    tensor = Selected(source, 1, tuple((i, i + 1) for i in range(0, 40, 2)))
    assert_is(tensor, numbered((3, 40))[:, ::2], 3, 17)
    assert source.file.reads == [40 * 4]


@pytest.mark.parametrize(("dtype", "numpy"), [("F32", "f4"), ("F64", "f8"), ("F16", "f2")])
def test_scaled_products_are_rounded_once(dtype: str, numpy: str) -> None:
    array = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(numpy)
    factors = np.array([1.0, 1 / 3, 0.7, -0.1])
    expected = (array.astype("f8") * factors[None, :, None]).astype(numpy)
    assert_is(Scaled(stored(array, dtype), 1, factors), expected, 0, array.size)


def test_scratch_gives_back_what_a_scope_took() -> None:
    scratch = Scratch()
    kept = scratch.take(np.float32, 8)
    with scratch.scope():
        first = scratch.take(np.float64, 100)
    with scratch.scope():
        second = scratch.take(np.uint8, 800)
    assert np.shares_memory(first, second)
    assert not np.shares_memory(kept, second)


def test_scalars_are_tensors_of_one_element() -> None:
    assert_is(stored(np.array(7, "<i4")), np.array(7), 0, 1)
    assert_is(Copied(stored(np.array(7, "<i4"))), np.array(7), 0, 1)
    fresh = Fresh(TensorSpec("F32", ()), Counting(), STREAM)
    assert fresh.new_regions() == ((),)
    assert_is(fresh, np.array(0, np.float32), 0, 1)


def test_forms_are_listed_once_each() -> None:
    base = stored(numbered((2, 2)))
    twice = Joined((base, Copied(base)), 0)
    assert list(walk(twice)) == [twice, base, twice.parts[1]]


def test_forms_are_equal_by_identity() -> None:
    array = numbered((2, 2))
    file = Memory(array.tobytes())
    one, other = (Stored(file, 0, TensorSpec("I32", (2, 2))) for _ in range(2))
    assert one != other
    assert len({one, other, one}) == 2


def test_what_is_known_of_a_tensor_is_computed_once_until_it_is_forgotten() -> None:
    computed: list[int] = []
    one, other = (Stored(Memory(b"0123"), 0, TensorSpec("U8", (4,))) for _ in range(2))
    scratch = Scratch()

    def ask() -> int:
        return scratch.known(one, lambda _: computed.append(1) or len(computed))

    assert [ask(), ask()] == [1, 1]
    scratch.forget(walk(Joined((other, one), 0)))
    assert ask() == 1
    scratch.forget(walk(other))
    assert ask() == 2


def test_streams_are_keyed_by_seed_step_name_and_chunk() -> None:
    keys = [
        (0, "0", "x"),
        (1, "0", "x"),
        (0, "1", "x"),
        (0, "0", "y"),
        (0, "0\0x", ""),
        (10, "", "x"),
    ]
    streams = [Stream(*key) for key in keys]
    first = {stream.generator(chunk).random() for stream in streams for chunk in (0, 1, 2**40)}
    assert len(first) == 3 * len(keys)
    assert STREAM.generator(3).random() == Stream(0, "0", "x").generator(3).random()


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (TensorSpec("F32", (4, 3)), "F32 (4, 3)"),
        (TensorSpec("BF16", (4,)), "BF16 (4,)"),
        (TensorSpec("I64", ()), "I64 ()"),
    ],
)
def test_specs_are_written_as_shapes_are(spec: TensorSpec, text: str) -> None:
    assert str(spec) == text
