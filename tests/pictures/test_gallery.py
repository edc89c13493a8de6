"""The gallery of docs/ is fresh, small, and made by the code that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import gallery
from tests.pictures.parsed import drawn, labels, parsed, require_alone

FILES = sorted([*gallery.PICTURES.iterdir(), *gallery.TERMINAL.iterdir()])
FIGURES = sorted(gallery.PICTURES.glob("*.svg"))


def test_what_is_text_is_fresh() -> None:
    for path, text in gallery.texts().items():
        assert path.read_text("utf-8") == text, f"{path.name}: run `make docs`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_small_and_shown(path: Path) -> None:
    assert path.stat().st_size <= 60_000
    pages = "".join(page.read_text() for page in (gallery.ROOT / "docs").glob("*.md"))
    assert f"]({path.parent.name}/{path.name})" in pages


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.name)
def test_a_figure_has_a_title_and_loads_nothing(path: Path) -> None:
    root = drawn(path)
    assert labels(root)
    addresses = re.findall(r'xlink:href="(?!#|data:image/png;base64,)', path.read_text())
    assert not addresses


@pytest.mark.parametrize("name", ["report-plan.html", "report-merge.html"])
def test_a_page_of_the_gallery_stands_alone(name: str) -> None:
    require_alone(parsed((gallery.PICTURES / name).read_text("utf-8")))


@pytest.mark.slow
def test_figures_have_the_labels_that_they_had(tmp_path: Path) -> None:
    with gallery.world():
        for name, draw in gallery.figures():
            draw(tmp_path / name)
    for made in tmp_path.iterdir():
        assert labels(drawn(made)) == labels(drawn(gallery.PICTURES / made.name)), "run `make docs`"
