"""Pictures of what was found; they need matplotlib, which is an optional extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from surgeon.base.errors import UsageError
from surgeon.inspection.compare import Comparison

_FORMATS = (".png", ".svg")
_MOST_LABELS = 60


def require_drawable(path: Path) -> None:
    """Raise UsageError, before any work is done, where no picture could be drawn there."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"{path}: a picture is a {' or '.join(_FORMATS)} file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.absolute().parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            "a picture needs matplotlib: pip install 'surgeon-checkpoints[picture]'"
        ) from None


def heat_map(found: Comparison, path: Path) -> None:
    """Draw layers × modules: how alike the models' differences are, or with one, how large."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    several = len(found.models) > 2
    layers = list(found.layers)
    modules = list(dict.fromkeys(m for parts in found.layers.values() for m in parts))
    values = np.full((len(layers), len(modules)), np.nan)
    for row, parts in enumerate(found.layers.values()):
        for module, figures in parts.items():
            value = figures.cosine if several else figures.relative[0]
            values[row, modules.index(module)] = np.nan if value is None else value
    # Without a date and random ids the same comparison is the same file.
    with mpl.rc_context({"svg.hashsalt": "surgeon", "svg.fonttype": "none"}):
        figure = Figure(
            figsize=(3 + 0.45 * len(modules), 1.5 + 0.22 * min(len(layers), 200)),
            layout="constrained",
        )
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(facecolor="lightgrey")
        limits = {"vmin": -1, "vmax": 1, "cmap": "RdBu"} if several else {"vmin": 0}
        image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", **limits)
        axes.set_xticks(range(len(modules)), [m or "(itself)" for m in modules], rotation=90)
        every = -(-len(layers) // _MOST_LABELS)
        axes.set_yticks(range(0, len(layers), every), layers[::every])
        label = "cosine between the changes" if several else "norm of the change / norm of A"
        figure.colorbar(image, label=label)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
        figure.savefig(path, dpi=150, metadata=metadata)
