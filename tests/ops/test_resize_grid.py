"""resize_grid against torch.nn.functional.interpolate on the grid that the positions are."""

import pytest
import torch
from torch.nn.functional import interpolate

from surgeon.base.errors import SurgeonError
from surgeon.output.execute import Options
from tests.manifest.test_optimizer_state import operate
from tests.network import assert_identical, correctly_rounded

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


def step(before, after, mode="bicubic", target="pos", **parameters):
    words = {"target": target, "from": before, "to": after, "mode": mode}
    return {"op": "resize_grid", **words, **parameters}


def embedding(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )


def resized(positions, before, after, mode="bicubic", **words):
    """Positions (..., h w, features) as images of that size, resized in float64."""
    *outer, _, features = positions.shape
    image = positions.double().reshape(-1, *before, features).movedim(-1, 1)
    image = interpolate(image, size=tuple(after), mode=mode, **words)
    return image.movedim(1, -1).reshape(*outer, -1, features)


def problem(bench, *steps):
    with pytest.raises(SurgeonError) as caught:
        bench.operate(*steps)
    return str(caught.value).replace("recipe.json: steps[0] (resize_grid): ", "")


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("words", [{}, {"align_corners": True}, {"antialias": True}])
@pytest.mark.parametrize("after", [(7, 3), (2, 9), (4, 5), (1, 1)])
def test_positions_of_an_image(bench, mode, words, after):
    pos = embedding(1, 20, 6)
    made = bench.given({"pos": pos}).operate(step([4, 5], list(after), mode, **words))
    expected = resized(pos, (4, 5), after, mode, **words)
    torch.testing.assert_close(made["pos"], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("mode", "words"), [
    ("linear", {}), ("linear", {"align_corners": True}), ("nearest", {}), ("nearest-exact", {}),
])  # fmt: skip
@pytest.mark.parametrize("after", [3, 16, 40])
def test_positions_of_a_sequence(bench, mode, words, after):
    pos = embedding(16, 6)
    made = bench.given({"pos": pos}).operate(step(16, after, mode, **words))
    expected = interpolate(pos.T[None], size=after, mode=mode, **words)[0].T
    torch.testing.assert_close(made["pos"], expected, rtol=0, atol=1e-14)


def test_a_sequence_is_one_row_of_an_image(bench):
    pos = embedding(16, 6)
    made = bench.given({"pos": pos}).operate(step(16, 7, "bicubic", antialias=True))
    expected = resized(pos, (1, 16), (1, 7), antialias=True)
    torch.testing.assert_close(made["pos"], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("where", "kept", "grid"), [
    ("first", slice(0, 2), slice(2, 18)), ("last", slice(16, 18), slice(0, 16)),
])  # fmt: skip
def test_extra_entries_keep_their_bits(bench, dtype, where, kept, grid):
    pos = embedding(1, 18, 6, dtype=dtype)
    bench.given({"pos": pos})
    made = bench.operate(step([4, 4], [6, 6], extra=2, extra_at=where))["pos"]
    between = resized(pos[:, grid], (4, 4), (6, 6))
    parts = [pos[:, kept], correctly_rounded(between, dtype)]
    expected = torch.cat([p.double() for p in (parts if where == "first" else parts[::-1])], 1)
    assert made.dtype == dtype
    tolerance = 1e-14 if dtype == torch.float64 else 0
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=tolerance)


def growing(source, target):
    """Where BEiT's fine-tuning code has the offsets: steps grow by q, found by halving."""
    slow, fast = 1.01, 1.5
    while fast - slow > 1e-6:
        q = (slow + fast) / 2
        too_far = (1 - q ** (source // 2)) / (1 - q) > target // 2
        slow, fast = (slow, q) if too_far else (q, fast)
    steps = [sum(q**k for k in range(n + 1)) for n in range(source // 2)]
    return [*(-step for step in reversed(steps)), 0, *steps]


def between(places, values, at):
    """Linear between unevenly spaced places, and the outermost value beyond, in plain Python."""
    if at <= places[0] or at >= places[-1]:
        return values[0 if at <= places[0] else -1]
    right = next(i for i, place in enumerate(places) if place > at)
    part = (at - places[right - 1]) / (places[right] - places[right - 1])
    return values[right - 1] * (1 - part) + values[right] * part


@pytest.mark.parametrize(
    ("before", "after"),
    [((7, 7), (12, 12)), ((4, 7), (9, 8)), ((6, 6), (5, 4)), ((2, 5), (14, 9))],
)
def test_offsets_of_a_window_lie_farther_apart_farther_out(bench, before, after):
    old, new = ([2 * n - 1 for n in window] for window in (before, after))
    table = embedding(old[0] * old[1], 3)
    expected = table.reshape(*old, 3)
    for axis in range(2):
        places, lines = growing(old[axis], new[axis]), expected.movedim(axis, 0)
        wanted = range(-(new[axis] // 2), new[axis] // 2 + 1)
        made = torch.stack([between(places, lines, at) for at in wanted])
        expected = made.movedim(0, axis)
    words = {"mode": "geometric", "relative": True}
    made = bench.given({"pos": table}).operate(step(list(before), list(after), **words))
    torch.testing.assert_close(made["pos"], expected.reshape(-1, 3), rtol=1e-12, atol=1e-12)


def test_a_side_that_stays_is_left_alone(bench):
    table = embedding(13 * 5, 2)
    bench.given({"pos": table})
    made = bench.operate(step([7, 3], [9, 3], "geometric", relative=True))["pos"]
    torch.testing.assert_close(made[8 * 5 : 9 * 5], table[6 * 5 : 7 * 5], rtol=0, atol=0)
    torch.testing.assert_close(made[:5], table[:5], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("before", "words", "what"),
    [
        (13, {}, "'geometric' is for offsets within a window"),
        (7, {"relative": True, "antialias": True}, "'antialias' has no meaning for 'geometric'"),
        (1, {"relative": True}, "within a window of 2 or more"),
    ],
)
def test_geometric_is_for_offsets_alone(bench, before, words, what):
    bench.given({"pos": embedding(13, 2)})
    assert what in problem(bench, step(before, 9, "geometric", **words))


def test_relative_tables_of_a_window(bench):
    table = embedding(13 * 13, 4)
    made = bench.given({"pos": table}).operate(step([7, 7], [12, 12], relative=True))
    assert made["pos"].shape == (23 * 23, 4)
    torch.testing.assert_close(made["pos"], resized(table, (13, 13), (23, 23)), rtol=0, atol=1e-14)


def test_every_block_and_tied_names(bench):
    old = {f"h.{i}.table": embedding(9, 2) + i for i in range(3)}
    bench.given(old, {"alias": "h.0.table"})
    made = bench.operate(step([3, 3], [5, 5], target="h.*.table"))
    assert {tuple(t.shape) for t in made.tensors.values()} == {(25, 2)}
    assert made.manifest["ties"] == {"alias": "h.0.table"}


def test_the_same_grid_changes_nothing(bench):
    old = {"pos": embedding(1, 17, 6)}
    made = bench.given(old).operate(step([4, 4], [4, 4], extra=1))
    assert_identical(made.tensors, old)
    assert made.lineage("pos") == []


def test_positions_are_not_new_and_their_optimizer_state_is_reset(tmp_path):
    pos = torch.nn.Parameter(torch.randn(1, 5, 3))
    optimizer = torch.optim.Adam([("pos", pos)])
    pos.square().sum().backward()
    optimizer.step()
    saved = {"model": {"pos": pos.data}, "optimizer": optimizer.state_dict()}
    made = operate(tmp_path, saved, step([2, 2], [3, 3], extra=1))
    assert "new" not in made.manifest["tensors"]["pos"]["lineage"][0]
    assert made.blocks == ["pos[:,0:1]"]
    kept = optimizer.state[pos]["exp_avg"][:, :1]
    assert torch.equal(made.tensors["pos/exp_avg"][:, :1], kept)


def test_bytes_are_the_same_for_any_number_of_workers(bench):
    bench.given({"pos": embedding(1, 32 * 32, 300)})
    written = [
        bench.operate(step([32, 32], [48, 48]), options=Options(workers=n)).path.read_bytes()
        for n in (1, 2)
    ]
    assert written[0] == written[1]


WRONG = {
    "another grid": (
        step([4, 4], [5, 5]),
        "'pos' is F32 (1, 17, 6): 17 entries, but the grid has 4 x 4 = 16; "
        "say \"extra\": 1 if the rest are no positions",
    ),
    "too large a grid": (
        step([5, 4], [5, 5]), "'pos' is F32 (1, 17, 6): 17 entries, but the grid has 5 x 4 = 20"
    ),
    "wrong extra": (
        step([4, 4], [5, 5], extra=2),
        "'pos' is F32 (1, 17, 6): 17 entries, but the grid has 4 x 4 = 16 and there are 2 extra",
    ),
    "a vector": (
        step(6, 7, "linear", target="bias"),
        "'bias' is F32 (6,), which are no embeddings (..., positions, features)",
    ),
    "integers": (
        step(6, 7, "linear", target="ids"),
        "'ids' is I64 (1, 6), which are no embeddings (..., positions, features)",
    ),
    "a number and a grid": (
        step(17, [5, 5]), "'from' and 'to' are both a number, or both [height, width]"
    ),
    "bilinear of a sequence": (
        step(17, 5, "bilinear"), "'bilinear' is for grids of 2 dimension(s); say 'linear'"
    ),
    "linear of an image": (
        step([4, 4], [5, 5], "linear"), "'linear' is for grids of 1 dimension(s); say 'bilinear'"
    ),
    "corners of nearest": (
        step(17, 5, "nearest", align_corners=True), "'align_corners' has no meaning for 'nearest'"
    ),
    "a grid of three": (
        step([4, 4, 4], [5, 5]), "recipe.json: steps[0].from: [4, 4, 4] is too long"
    ),
    "no size": (step(0, 5), "recipe.json: steps[0].from: 0 is less than the minimum of 1"),
    "NaN": (
        step([2, 2], [3, 3], target="nan"), "'nan' holds NaN or Inf, which cannot be interpolated"
    ),
    "overflow": (
        step(3, 6, "bicubic", target="large"),
        "'large' cannot be interpolated: F16 cannot hold the result",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_impossible_grids_say_why(bench, case):
    bench.given({
        "pos": torch.zeros(1, 17, 6), "bias": torch.zeros(6), "ids": torch.arange(6)[None],
        "nan": torch.full((4, 2), torch.nan),
        "large": torch.tensor([[-65504.0], [65504.0], [65504.0]]).half(),
    })  # fmt: skip
    wrong, line = WRONG[case]
    assert line in problem(bench, wrong)
