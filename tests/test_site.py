"""The site has a page for everything, and no link in it leads nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from surgeon.base.ready_made import ready_made
from surgeon.initialisers import INITIALISERS
from tests import site
from tests.docs import ROOT

PAGES = site.pages()


def paths(menu: Any) -> Iterator[str]:
    match menu:
        case str():
            yield menu
        case dict():
            yield from paths(list(menu.values()))
        case list():
            for item in menu:
                yield from paths(item)


def test_the_menu_has_every_page_once() -> None:
    assert sorted(paths(site.navigation(PAGES))) == sorted(PAGES)


def test_everything_has_a_page() -> None:
    wanted = {f"reference/recipes/{name}.md" for name in ready_made()}
    wanted |= {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    wanted |= {f"reference/initialisations/{name}.md" for name in INITIALISERS if name != "copy"}
    assert wanted <= PAGES.keys()
    assert "Yadav" in PAGES["reference/ops/ties.md"]
    assert "Yadav" in PAGES["reference/recipes/ties.md"]
    assert "| `llama` | `Llama" in PAGES["reference/architectures.md"]


def test_links_to_sources_are_plain_names() -> None:
    assert "](surgeon/" not in PAGES["CONTRIBUTING.md"]
    assert "](../../examples/ci/README.md)" not in PAGES["docs/commands.md"]
    assert "](../examples/ci/README.md)" in PAGES["docs/commands.md"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material")
    *_, settings = site.written(tmp_path)
    settings.write_text(settings.read_text().replace(str(site.SITE), str(tmp_path)))
    words = ["build", "--strict", "-f", str(settings), "-d", str(tmp_path / "built")]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words], capture_output=True, text=True, timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "built" / "reference" / "ops" / "widen" / "index.html").exists()
