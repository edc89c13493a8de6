"""Figures that matplotlib draws: made without a display, saved the same each time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from surgeon.base.errors import UsageError, WriteError
from surgeon.base.files import put_whole, require_mine
from surgeon.base.tables import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure

# By what a picture of ours may be replaced, and no other: what is among its first bytes.
_MARKS = {".png": b"tEXtSoftware\0surgeon", ".svg": b"<dc:title>surgeon</dc:title>"}
FORMATS = tuple(_MARKS)
_NEEDED = "a picture needs matplotlib: pip install 'surgeon-checkpoints[picture]'"
_DOTS = 130
# Without a date and random ids the same figure is the same file, and text in it stays text. A
# name may have dollar signs, and is no formula.
_SETTINGS: Mapping[str, Any] = {
    "svg.hashsalt": "surgeon",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "figure.facecolor": "white",
    "hatch.linewidth": 0.8,
    "hatch.color": "#555555",
}
Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def require_drawable(path: Path) -> None:
    """Raise UsageError, before any work is done, where no picture could be drawn there."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: a picture is a {' or '.join(FORMATS)} file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.absolute().parent}")
    require_mine(path, _MARKS[path.suffix.lower()], "drew")
    require_matplotlib()


def require_matplotlib() -> None:
    """Raise UsageError where the extra is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(_NEEDED) from None


@contextmanager
def _settings() -> Iterator[None]:
    import matplotlib as mpl

    settings: Any = _SETTINGS  # or else every name is checked against one release's
    with mpl.rc_context(settings), warnings.catch_warnings():
        # Names in scripts that the font does not have: boxes stand for them.
        warnings.filterwarnings("ignore", r"Glyph \d+|.*missing from (current )?font")
        yield


def figured(draw: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """Have a function draw with the settings that all figures share."""

    def drawn(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
        require_matplotlib()
        with _settings():
            return draw(*args, **kwargs)

    return drawn


def new(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure: no label is cut off, and nothing tells when it was drawn."""
    suffix = path.suffix.lower()
    is_svg = suffix == ".svg"
    metadata = {"Date": None, "Creator": "surgeon"} if is_svg else {"Software": "surgeon"}
    drawn = BytesIO()
    with _settings():
        figure.savefig(drawn, format=suffix[1:], dpi=_DOTS, metadata=metadata, bbox_inches="tight",
                       pad_inches=0.12)  # fmt: skip
    require_mine(path, _MARKS[suffix], "drew")
    try:
        put_whole(path, drawn.getvalue())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WriteError(f"{path}: cannot be written: {reason}") from None


def titled(figure: Figure, title: str, lines: Sequence[str] = ()) -> None:
    """Put a title at the left above everything, and lines below it that say what is shown."""
    text = "\n".join([title, *lines])
    # One text for both, so that room is made for all of it.
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)


def named(models: Sequence[str], most: int = 70) -> list[str]:
    """Return a line for each model: its letter, and the end of its path."""
    return [f"{letter}  {tail(model, most)}" for letter, model in zip(letters(len(models)), models,
                                                                       strict=True)]  # fmt: skip


def tail(path: str, most: int) -> str:
    """Return the end of a path, which tells it from others."""
    text = shown(path)
    return text if len(text) <= most else f"…{text[-(most - 1) :]}"


def letters(count: int) -> list[str]:
    """Return A, B, ... Z, then numbers."""
    return [chr(65 + index) if index < 26 else str(index + 1) for index in range(count)]


def every(count: int, most: int) -> int:
    """Return which labels there is room for: each first, second, ... one."""
    return max(1, -(-count // most))
