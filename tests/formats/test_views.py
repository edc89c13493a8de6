"""Tensors that are views of few bytes: read, unless nobody could read them to an end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from surgeon.base.errors import CheckpointError
from surgeon.formats import open_checkpoint


@pytest.mark.parametrize("shape", [(1 << 38, 4), (1, 1 << 30, 4)])
def test_views_of_terabytes_are_refused_with_the_largest(tmp_path: Path, shape: tuple[int, ...]):
    path = tmp_path / "in.pt"
    torch.save({"a": torch.ones(4).expand(shape), "b": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"are views of .* kB, 'a' of F32 .* the largest"):
        open_checkpoint(str(path))


def test_many_views_of_one_storage_are_refused_together(tmp_path: Path) -> None:
    path, storage = tmp_path / "in.pt", torch.ones(1_000_000)
    torch.save({f"w{i}": storage[i:] for i in range(400)}, path)
    with pytest.raises(CheckpointError, match=r"tensors of 1\.6 GB that are views of 4"):
        open_checkpoint(str(path))


def test_expanded_tensors_of_a_usual_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save({"mask": torch.ones(1, 1).expand(4096, 4096)}, path)
    opened = open_checkpoint(str(path))
    opened.close()
    assert opened.tensors["mask"].spec.shape == (4096, 4096)
