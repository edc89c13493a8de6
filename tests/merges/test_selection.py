"""Selection by magnitude, against sorting; with limits so small that every way is taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from surgeon.lazy import Operands, Scratch, Stored, TensorSpec
from surgeon.merges.shared import sampling, selection
from surgeon.merges.shared.selection import cuts

STORAGE = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
SIZE = 20_000


class InMemory:
    path = Path("memory")

    def __init__(self, values):
        self.bytes = values.tobytes()

    def read_into(self, offset, buffer):
        buffer[:] = self.bytes[offset : offset + len(buffer)]


def operands(dtype, *arrays):
    arrays = [array.astype(STORAGE[dtype]) for array in arrays]
    stored = [Stored(InMemory(a), 0, TensorSpec(dtype, a.shape)) for a in arrays]
    return Operands(tuple(stored), Scratch(), 700)


def change(blocks):
    return blocks[1] - blocks[0]


def sorted_mask(base, model, wanted):
    magnitudes = np.abs(model.astype(np.float64) - base.astype(np.float64))
    mask = np.zeros(len(magnitudes), bool)
    mask[np.lexsort((np.arange(len(mask)), -magnitudes))[:wanted]] = True
    return mask


def found_mask(cut, base, model):
    magnitudes = np.abs(model.astype(np.float64) - base.astype(np.float64))
    steps = range(0, len(magnitudes), 999)
    return np.concatenate([cut.kept(magnitudes[s : s + 999], s) for s in steps])


def example(kind):
    generator = np.random.default_rng(0)
    base = generator.standard_normal(SIZE)
    match kind:
        case "normal":
            return base, base + 0.01 * generator.standard_normal(SIZE)
        case "few levels":
            return np.zeros(SIZE), generator.integers(-2, 3, SIZE).astype(float)
        case "half equal":
            return base, np.where(np.arange(SIZE) % 2, base, base + generator.random(SIZE))
        case "all equal":
            return base, base
        case "equal in float32":
            return np.zeros(SIZE), 1 + 1e-12 * generator.integers(0, 1000, SIZE)
        case "misleading sample":  # which is of runs at the same distance
            step = sampling.run_starts(SIZE).step
            return np.zeros(SIZE), np.where(np.arange(SIZE) % step < step - 2, 1e-3 * base, base)
    raise AssertionError(kind)


KINDS = ["normal", "few levels", "half equal", "all equal", "equal in float32", "misleading sample"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("held", "few"), [(1 << 21, 1 << 18), (1 << 21, 10), (300, 10), (1, 10)])
def test_cuts_are_those_of_a_sort(kind, held, few, monkeypatch):
    monkeypatch.setattr(selection, "_HELD", held)
    monkeypatch.setattr(selection, "_FEW", few)
    monkeypatch.setattr(sampling, "_RUN", 8)
    wanted = [0, 1, 20, 4000, 10_000, 10_001, 19_999, SIZE]
    for dtype in STORAGE:
        base, model = (values.astype(STORAGE[dtype]) for values in example(kind))
        expected = [sorted_mask(base, model, count) for count in wanted]
        for monotone in (True, False):
            stored = operands(dtype, base, model)
            (found,) = cuts(stored, [change], [wanted], monotone_in_float32=monotone)
            for mask, cut in zip(expected, found, strict=True):
                assert np.array_equal(found_mask(cut, base, model), mask), (dtype, monotone)


def test_measures_have_cuts_of_their_own():
    base, model = example("normal")
    stored = operands("F64", base, model)
    first, second = cuts(stored, [change, lambda blocks: blocks[0] * 1.0], [[5], [7, 9]])
    assert np.array_equal(found_mask(first[0], base, model), sorted_mask(base, model, 5))
    for cut, count in zip(second, (7, 9), strict=True):
        zeros = np.zeros(SIZE)
        assert np.array_equal(found_mask(cut, zeros, base), sorted_mask(zeros, base, count))


def test_values_that_are_held_are_few(monkeypatch):
    """Whatever is asked for, most of a large tensor is only looked at."""
    monkeypatch.setattr(selection, "_HELD", 1000)
    monkeypatch.setattr(selection, "_FEW", 10)
    most = []
    cut = selection._cut
    monkeypatch.setattr(selection, "_cut", lambda p, v, n: most.append(len(v)) or cut(p, v, n))
    for kind in KINDS:
        cuts(operands("F32", *example(kind)), [change], [[4000]], monotone_in_float32=True)
    assert len(most) >= 1
    assert max(most) <= 1000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_values_are_the_largest(value):
    base, model = np.zeros(100), np.arange(100.0)
    model[3] = value
    ((cut,),) = cuts(operands("F32", base, model), [change], [[5]], monotone_in_float32=True)
    assert cut.least == 96.0
    ((cut,),) = cuts(operands("F32", base, model), [change], [[1]], monotone_in_float32=True)
    assert not found_mask(cut, base, np.nan_to_num(model, nan=0, posinf=0)).any()
