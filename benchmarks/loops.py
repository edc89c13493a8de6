"""Nanoseconds per element of each compiled loop, and of its NumPy form; prints a table."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

import numpy as np

from surgeon.lazy import Blocks
from surgeon.merges import sce
from surgeon.merges.fisher import mean
from surgeon.merges.shared.gram import Shares, Vectors, combination
from surgeon.numeric import compiled, drawing
from surgeon.numeric.compiled import Block, Change, Ending
from surgeon.numeric.dtypes import SPARE, downcast_fits, upcast
from surgeon.numeric.ranks import Chances
from surgeon.numeric.sums import sums
from surgeon.numeric.weighing import Weighed, Weights, variance, weighed

COUNT = 64 * 1024
ROW = 4096


def best_ns(call: Callable[[], object]) -> float:
    """Return the shortest time of a call, per element."""
    call()
    best = float("inf")
    for _ in range(30):
        began = time.perf_counter()
        for _ in range(5):
            call()
        best = min(best, (time.perf_counter() - began) / 5)
    return best / COUNT * 1e9


def by_numpy(call: Callable[[], object]) -> float:
    found, compiled.loops = compiled.loops, lambda: None  # type: ignore[assignment]
    try:
        return best_ns(call)
    finally:
        compiled.loops = found


def main() -> None:
    """Measure in one process, one core, on blocks of the size that merges use."""
    random = np.random.default_rng(0)
    base = random.standard_normal(COUNT).astype(np.float32) * 0.02
    floats = [base, *(base + 0.001 * random.standard_normal(COUNT) for _ in range(3))]
    spare = np.empty(SPARE * COUNT, np.uint32)
    stored = [np.empty(COUNT, np.uint16) for _ in floats]
    for values, out in zip(floats, stored, strict=True):
        downcast_fits(np.asarray(values, np.float64), "BF16", out, spare)
    blocks = [Block(block, "BF16") for block in stored]
    narrow, wide, out = np.empty(COUNT, np.float32), np.empty(COUNT), np.empty(COUNT, np.uint16)
    upcasts = [upcast(block, "BF16", np.empty(COUNT)) for block in stored]
    narrow[:] = upcasts[0]
    wide[:] = upcasts[1]
    data = stored[0].view(np.uint8)
    magnitudes = np.abs(upcasts[1] - upcasts[0])
    threshold = float(np.quantile(magnitudes, 0.8))
    window = [int(v) for v in np.quantile(magnitudes, [0.78, 0.82]).view(np.uint64)]
    places, values, counts = np.empty(COUNT, np.int64), np.empty(COUNT), np.zeros(2, np.uint64)
    bins, words = np.zeros(1 << 16, np.int64), np.empty(COUNT, np.uint32)
    changes = [Change(cut=(threshold, 0))] * 3
    divisors = np.array([-1.0, 1, 1, 2, 1, 2, 2, 3])
    chances = Chances(0.5, 0.1, ROW)
    table = chances.of(np.arange(ROW, dtype=np.float64))

    def both(call: Callable[[], object]) -> tuple[float, float]:
        return by_numpy(call), best_ns(call)

    def products_by_numpy() -> object:
        a, b = (upcast(block, "BF16", wide).copy() for block in stored[:2])
        return [sums(x * y) for x, y in ((a, a), (a, b), (b, b))]

    # What merges do of rows, and by weights of every element.
    rows_of = Vectors("row", ROW, ROW)
    shares = Shares(np.full((COUNT // ROW, 2), 0.5), np.zeros(COUNT // ROW, bool))
    by_row = [Weights(Block(np.full(COUNT // ROW, 0.5), "F64"), 1, 0)] * 2
    positive = [Block(block & 0x7FFF, "BF16") for block in stored]
    by_element = [Weights(block) for block in positive[2:]]

    def raised(some: list[Block]) -> Blocks:
        return Blocks((upcast(b.elements, b.dtype, np.empty(COUNT)) for b in some), 0)

    def mixed_by_numpy() -> object:
        found = combination(rows_of)(raised(blocks[:2]), shares, wide)
        return downcast_fits(found, "BF16", out, spare)

    def mean_by_numpy() -> object:
        found = mean(raised(blocks[:2]), raised(positive[2:]), [1, 1], 2, wide)
        return downcast_fits(found, "BF16", out, spare)

    rows = {
        "bf16 to float32": both(lambda: upcast(stored[0], "BF16", narrow)),
        "bf16 to float64": both(lambda: upcast(stored[0], "BF16", wide)),
        "float32 to bf16": both(lambda: downcast_fits(narrow, "BF16", out, spare)),
        "float64 to bf16": both(lambda: downcast_fits(wide, "BF16", out, spare)),
        "float64 to fp16": both(lambda: downcast_fits(wide, "F16", out.view(np.float16), spare)),
        "average of 2, in float32": (0, best_ns(lambda: compiled.linear(
            blocks[:2], [1, 1], "BF16", out, multiply=0.5, in_float32=True))),
        "average of 4, in float64": (0, best_ns(lambda: compiled.linear(
            blocks, [1] * 4, "BF16", out, multiply=0.25))),
        "three inner products of two": (by_numpy(products_by_numpy), best_ns(
            lambda: compiled.products(blocks[:2], 1, relative=False))),
        "magnitudes in a window of 4 %": (0, best_ns(lambda: compiled.within(
            blocks[1], blocks[0], window[0], window[1], 0, places, values, counts))),
        "histogram of 16 bits": (0, best_ns(lambda: compiled.bins(
            blocks[1], blocks[0], 0, (1 << 63) - 1, 47, bins, counts))),
        "n-th largest": (best_ns(lambda: np.partition(magnitudes, COUNT // 5)), best_ns(
            lambda: compiled.nth(magnitudes, COUNT // 5))),
        "trim, elect, merge of 3": (0, best_ns(lambda: compiled.elected(
            blocks, changes, divisors, 1.0, "BF16", out))),
        "trim, sum of 3": (0, best_ns(lambda: compiled.summed(
            blocks, changes, Ending(), "BF16", out))),
        "ranks in rows of 4096": (best_ns(lambda: chances.by_rank(magnitudes)), best_ns(
            lambda: drawing.by_rank(blocks[1], blocks[0], ROW, table))),
        "variance of 3 changes": (
            by_numpy(lambda: sce.variance_of(raised(blocks))), best_ns(lambda: variance(blocks))),
        "mix of 2 by rows": (by_numpy(mixed_by_numpy), best_ns(lambda: weighed(
            blocks[:2], by_row, Weighed.SUM, "BF16", out, vectors=COUNT // ROW))),
        "mean of 2 by weights of each element": (by_numpy(mean_by_numpy), best_ns(lambda: weighed(
            blocks[:2], by_element, Weighed.MEAN, "BF16", out, total=2.0))),
        "random words": (best_ns(lambda: np.random.Philox(key=1).random_raw(COUNT // 2)), best_ns(
            lambda: drawing.philox(1, 0, 0, words))),
        "CRC-32 of 2 bytes": (best_ns(lambda: zlib.crc32(data)), best_ns(
            lambda: compiled.crc32(data))),
    }  # fmt: skip
    print(f"{compiled.kernels()}, ns per element of one core\n")
    print("| loop | NumPy | C |\n|---|---|---|")
    for name, (numpy_ns, c_ns) in rows.items():
        print(f"| {name} | {f'{numpy_ns:.2f}' if numpy_ns else ''} | {c_ns:.2f} |")


if __name__ == "__main__":
    main()
