"""Parts of what lies in files by strides are what NumPy finds there, however they are read."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.base.errors import CheckpointError
from surgeon.formats.files import InputFile
from surgeon.lazy import Scratch, views
from surgeon.numeric import compiled

AXES = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), max_size=4)
BYTES = np.random.default_rng(0).integers(0, 255, 1000).astype(np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("views") / "file"
    path.write_bytes(BYTES.tobytes())
    opened = InputFile(path)
    yield opened
    opened.close()


@pytest.mark.parametrize("has_loops", [True, False])
@given(st.data(), AXES, st.integers(1, 100), st.integers(0, 20))
def test_boxes_of_any_strides_are_numpys(file, has_loops, data, axes, chunk, gap):
    shape, strides = tuple(n for n, _ in axes), tuple(2 * step for _, step in axes)
    box = tuple(sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape)
    order = data.draw(st.permutations(range(len(shape))))
    whole = np.ndarray(shape, np.int16, BYTES, 6, strides)
    expected = whole[tuple(slice(*side) for side in box)]
    out = np.zeros([expected.shape[axis] for axis in order], np.int16).transpose(np.argsort(order))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "_CHUNK", chunk)
        patch.setattr(views, "_GAP", gap)
        patch.setattr(views, "_GAP_OF_PYTHON", gap)
        if not has_loops:
            patch.setattr(compiled, "loops", lambda: None)
        views.View(file, 6, np.dtype(np.int16), shape, strides).read_into(out, box, Scratch())
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("has_loops", [True, False])
def test_file_that_is_cut_off_meanwhile_is_an_error_and_no_signal(tmp_path, monkeypatch, has_loops):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    if not has_loops:
        monkeypatch.setattr(compiled, "loops", lambda: None)
    file = InputFile(path)
    view = views.View(file, 0, np.dtype(np.int8), (1 << 14, 64), (1, 1 << 14))
    os.truncate(path, 4096)
    with pytest.raises(CheckpointError, match="was changed while it was read: it had 1048576"):
        view.read_into(np.empty((1 << 14, 64), np.int8), ((0, 1 << 14), (0, 64)), Scratch())
    file.close()
