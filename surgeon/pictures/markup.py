"""HTML and SVG as text: elements whose texts and attributes are escaped, and whole pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from surgeon.base.tables import shown
from surgeon.pictures.palette import FATE_WORDS, FATES

Attributes = Mapping[str, str | float]
_NONE: Attributes = {}


class Markup(str):
    """Text that is HTML already; everything else is escaped where it is put into an element."""

    __slots__ = ()


def text(content: str) -> Markup:
    """Return a text as HTML shows it; what does not print is escaped as on a terminal."""
    return content if isinstance(content, Markup) else Markup(escape(shown(content)))


def tag(name: str, attributes: Attributes = _NONE, *children: str) -> Markup:
    """Return an element around its children."""
    given = "".join(
        f' {key}="{text(value if isinstance(value, str) else rounded(value))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{given}>{''.join(map(text, children))}</{name}>")


def rounded(value: float) -> str:
    """Return a coordinate with at most two digits after the point."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def joined(parts: Iterable[str]) -> Markup:
    return Markup("".join(map(text, parts)))


def chip(sign: str) -> Markup:
    """Return the sign of how a tensor fares, on its colour."""
    style = f"background:{FATES[sign]}"
    return tag("span", {"class": "chip", "style": style, "title": FATE_WORDS[sign]}, sign)


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()
) -> Markup:
    """Return a table; columns in `right` hold figures, those in which nothing is are left out."""
    cells = [*rows]
    kept = [i for i in range(len(headers)) if not cells or any(row[i] for row in cells)]
    figures = set(right)
    kinds: list[Attributes] = [
        {"class": "figure"} if header in figures else _NONE for header in headers
    ]
    head = [tag("th", kinds[i], headers[i]) for i in kept]
    body = [tag("tr", _NONE, *(tag("td", kinds[i], row[i]) for i in kept)) for row in cells]
    return tag("table", _NONE, tag("thead", _NONE, tag("tr", _NONE, *head)),
               tag("tbody", _NONE, *body))  # fmt: skip


def code(content: str) -> Markup:
    return tag("code", _NONE, content)


def section(title: str, *children: str, note: str = "") -> Markup:
    """Return a part of a page; nothing where there is nothing to say."""
    if not any(children):
        return Markup()
    about = [tag("p", {"class": "note"}, note)] if note else []
    return tag("section", _NONE, tag("h2", _NONE, title), *about, *children)


def svg(width: float, height: float, label: str, *children: str) -> Markup:
    """Return a drawing that is as wide as there is room for, and what it is of for readers."""
    box = f"0 0 {rounded(width)} {rounded(height)}"
    attributes: Attributes = {"viewBox": box, "role": "img", "style": f"max-width:{width:.0f}px"}
    return tag("svg", attributes, tag("title", _NONE, label), *children)


def words(x: float, y: float, content: str, *, kind: str = "", anchor: str = "start") -> Markup:
    """Return a line of text in a drawing."""
    return tag("text", {"x": x, "y": y, "class": kind, "text-anchor": anchor}, content)


def shortened(name: str, most: int) -> str:
    """Return a name of at most so many characters, without its middle if it has more."""
    name = shown(name)
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


# Nothing but what stands on a notebook's own background too, be it light or dark.
_STYLE = """
.surgeon{font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:inherit;
--line:rgba(128,128,128,.35);--soft:rgba(128,128,128,.12);--accent:#0072b2}
.surgeon h1{font-size:1.6em;margin:0 0 .2em;overflow-wrap:anywhere}
.surgeon h2{font-size:1.15em;margin:2em 0 .5em;padding-bottom:.25em;border-bottom:1px solid
var(--line)}
.surgeon p{margin:.3em 0 .8em;max-width:75ch}
.surgeon .note{opacity:.75}
.surgeon table{font:inherit;border-collapse:collapse;margin:.4em 0 1.1em;
font-variant-numeric:tabular-nums;
color:inherit}
.surgeon th,.surgeon td{text-align:left;vertical-align:top;padding:.22em .9em .22em 0;
border:0;background:none;white-space:normal;max-width:44ch;overflow-wrap:break-word}
.surgeon th{font-weight:600;border-bottom:1px solid var(--line);white-space:nowrap}
.surgeon tbody tr{background:none}
.surgeon tbody tr+tr td{border-top:1px solid var(--soft)}
.surgeon .figure{text-align:right;white-space:nowrap}
.surgeon code,.surgeon .name{font:12.5px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
background:none;color:inherit}
.surgeon td .name{white-space:pre}
.surgeon .what{font-size:12.5px}
.surgeon .chip{display:inline-block;min-width:1.25em;text-align:center;border-radius:.25em;
color:#111;font:600 12px/1.35 ui-monospace,Menlo,Consolas,monospace}
.surgeon .part{white-space:nowrap}
.surgeon .quiet{opacity:.65}
.surgeon .legend{max-width:none}
.surgeon .legend span+span{margin-left:.45em}
.surgeon .legend b{font-weight:400;margin:0 1.1em 0 .35em}
.surgeon .bar{display:inline-flex;width:11em;height:.72em;vertical-align:baseline;
background:var(--soft);border-radius:2px;overflow:hidden}
.surgeon .bar.wide{display:flex;width:100%;height:1em;margin:.4em 0 .2em}
.surgeon .bar i{display:block;height:100%}
.surgeon .wide-part{overflow-x:auto}
.surgeon svg{display:block;width:100%;height:auto;margin:.4em 0}
.surgeon td svg{width:auto;height:18px;margin:0;display:inline-block;vertical-align:middle}
.surgeon svg text{fill:currentColor;font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.surgeon svg text.small{font-size:11px;opacity:.75}
.surgeon svg text.strong{font-weight:600}
.surgeon svg .box{fill:none;stroke:currentColor;stroke-opacity:.45}
.surgeon svg .grid{stroke:currentColor;stroke-opacity:.16;fill:none}
.surgeon svg .band{fill:currentColor;fill-opacity:.05}
.surgeon svg .edge{fill:none;stroke:currentColor;stroke-opacity:.5;stroke-width:1.4}
.surgeon details{margin:.4em 0}
.surgeon summary{cursor:pointer}
.surgeon footer{margin-top:3em;opacity:.65;font-size:.9em;overflow-wrap:anywhere}
"""
_PAGE_STYLE = """
:root{color-scheme:light dark}
body{margin:0;background:#fff;color:#1b1f24}
main{max-width:76rem;margin:0 auto;padding:2rem 1.5rem 4rem}
@media (prefers-color-scheme:dark){body{background:#14171b;color:#e4e7eb}}
@media print{main{max-width:none}}
"""


# Whatever a name might do, nothing is loaded and nothing runs. A page of ours is known by it.
PAGE_MARK = (
    '<meta charset="utf-8"/>'
    '<meta name="viewport" content="width=device-width,initial-scale=1"/>'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
)


def fragment(*children: str) -> Markup:
    """Return what a notebook shows: a part of a page with its own style."""
    return tag("div", {"class": "surgeon"}, tag("style", _NONE, Markup(_STYLE)), *children)


def page(title: str, *children: str) -> Markup:
    """Return one file that needs no other."""
    head = tag(
        "head", _NONE,
        Markup(PAGE_MARK),
        tag("title", _NONE, title),
        tag("style", _NONE, Markup(_PAGE_STYLE + _STYLE)),
    )  # fmt: skip
    body = tag("body", _NONE, tag("main", {"class": "surgeon"}, *children))
    return Markup(f"<!doctype html>\n{tag('html', {'lang': 'en'}, head, body)}\n")
