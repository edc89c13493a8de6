"""What a page or a picture may replace: one of surgeon's own, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from surgeon.base.errors import UsageError
from surgeon.inspection.reporting import require_page, write_page
from surgeon.pictures import figures
from surgeon.pictures.markup import page

PLACES = {
    "a file": lambda path: path.write_text("<svg><!-- drawn by hand --></svg>"),
    "a link": lambda path: path.symlink_to("victim"),
    "a link to a device": lambda path: path.symlink_to("/dev/full"),
    "a FIFO": os.mkfifo,
    "a folder": Path.mkdir,
}


def draw(path: Path) -> None:
    figures.require_drawable(path)
    figures.save(figures.new(1, 1), path)


def write(path: Path) -> None:
    require_page(path)
    write_page(page("title"), path)


WRITERS = [("x.svg", draw), ("x.png", draw), ("x.html", write)]


@pytest.mark.parametrize(("name", "make"), WRITERS)
@pytest.mark.parametrize("what", PLACES)
def test_nothing_else_is_replaced(
    tmp_path: Path, what: str, name: str, make: Callable[[Path], None]
) -> None:
    (tmp_path / "victim").write_text("old")
    PLACES[what](tmp_path / name)
    before = (tmp_path / name).lstat()
    with pytest.raises(UsageError, match=r"exists, and is no file that surgeon (drew|wrote)"):
        make(tmp_path / name)
    assert (tmp_path / name).lstat() == before
    assert (tmp_path / "victim").read_text() == "old"


@pytest.mark.parametrize(("name", "make"), WRITERS)
def test_an_earlier_one_is_replaced(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    make(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
