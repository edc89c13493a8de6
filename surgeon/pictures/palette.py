"""The colours of all pictures, which people who see fewer of them can tell apart too.

Okabe and Ito 2008, Color universal design, https://jfly.uni-koeln.de/color/. They stand on white
and on black; no picture tells by colour alone what matters.
"""

from __future__ import annotations

from surgeon.recipe.fates import CHANGED, DROPPED, KEPT, NEW

# How a tensor fares.
FATES = {NEW: "#009e73", CHANGED: "#e69f00", DROPPED: "#d55e00", KEPT: "#a8adb3"}
FATE_WORDS = {NEW: "new", CHANGED: "changed", DROPPED: "dropped", KEPT: "kept"}
# Things beside each other, such as the groups of an optimizer.
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#7f7f7f")
# The same in lines, for those who see no colour.
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2", "6 2 2 2 2 2")


def series(index: int) -> tuple[str, str]:
    """Return the colour and the dashes of one of several lines; both begin anew after eight."""
    place = index % len(SERIES)
    return SERIES[place], DASHES[(place + index // len(SERIES)) % len(DASHES)]
