"""HTML and SVG as trees: what tests look at pictures through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

# What would load, run or lead elsewhere.
_LEADING = {"src", "href", "srcset", "data", "action", "background", "poster", "cite"}
_RUNNING = {"script", "iframe", "object", "embed", "link", "base", "form", "img", "image", "use"}


def parsed(text: str) -> Element:
    """Return a page, or a part of one, as a tree; raises where it is not well-formed."""
    return ElementTree.fromstring(text.removeprefix("<!doctype html>\n"))


def drawn(path: Path) -> Element:
    """Return an SVG file as a tree, its elements without their namespace."""
    root = ElementTree.fromstring(path.read_text("utf-8"))
    for element in root.iter():
        element.tag = re.sub(r"\{.*?\}", "", element.tag)
    return root


def require_alone(root: Element) -> None:
    """Raise where a page would load something, run something or lead somewhere."""
    for element in root.iter():
        assert element.tag not in _RUNNING, element.tag
        for name, value in element.attrib.items():
            assert name not in _LEADING, name
            assert not name.startswith("on"), name
            assert "url(" not in value
    styles = "".join(element.text or "" for element in root.iter("style"))
    assert "url(" not in styles
    assert "@import" not in styles


def said(element: Element) -> str:
    """Return all text of an element, its spaces as one."""
    return " ".join("".join(element.itertext()).split())


def section(root: Element, title: str) -> Element:
    """Return the part of a page under a title."""
    return next(part for part in root.iter("section") if said(next(part.iter("h2"))) == title)


def rows(part: Element) -> Iterator[list[str]]:
    """Yield the cells of every row of the tables in a part, headers too."""
    for row in part.iter("tr"):
        yield [said(cell) for cell in row]


def labels(root: Element) -> list[str]:
    """Return all texts of a drawing, in its order."""
    return [said(element) for element in root.iter("text") if said(element)]
