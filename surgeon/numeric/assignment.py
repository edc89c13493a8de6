"""The linear assignment problem: who is matched with whom so that costs are least."""

from __future__ import annotations

import numpy as np

from surgeon.numeric.dtypes import Array


def assignment(costs: Array) -> Array:
    """Return for each row the column that it gets: each once, with the least sum of costs.

    `costs` is square and finite. By shortest augmenting paths with dual variables, O(n³): Jonker
    and Volgenant 1987, https://doi.org/10.1007/BF02278710, in the form of Crouse 2016,
    https://doi.org/10.1109/TAES.2016.140952. Of equal choices the first column is taken.
    """
    count = len(costs)
    # Dual variables: costs - row_prices - column_prices >= 0, and 0 for what is matched.
    column_prices = costs.min(axis=0, initial=np.inf)
    reduced = costs - column_prices
    row_prices = reduced.min(axis=1, initial=np.inf)
    column_of = np.full(count, -1)
    row_of = np.full(count, -1)
    for row, column in enumerate(reduced.argmin(axis=1).tolist() if count else []):
        if row_of[column] < 0:
            column_of[row], row_of[column] = column, row
    for row in np.flatnonzero(column_of < 0).tolist():
        _augment(costs, row_prices, column_prices, column_of, row_of, row)
    return column_of


def _augment(
    costs: Array,
    row_prices: Array,
    column_prices: Array,
    column_of: Array,
    row_of: Array,
    start: int,
) -> None:
    """Match one more row, along the cheapest path of exchanges to a free column."""
    count = len(costs)
    distances, open_distances = np.full(count, np.inf), np.full(count, np.inf)
    previous = np.full(count, -1)
    is_done = np.zeros(count, bool)
    row, least = start, 0.0
    while True:
        found = costs[row] - row_prices[row] - column_prices + least
        nearer = (found < distances) & ~is_done
        distances[nearer] = open_distances[nearer] = found[nearer]
        previous[nearer] = row
        column = int(open_distances.argmin())
        least = float(distances[column])
        is_done[column], open_distances[column] = True, np.inf
        if row_of[column] < 0:
            break
        row = int(row_of[column])
    passed = np.flatnonzero(is_done & (row_of >= 0))
    row_prices[start] += least
    row_prices[row_of[passed]] += least - distances[passed]
    column_prices[is_done] -= least - distances[is_done]
    while True:
        row = previous[column]
        row_of[column] = row
        column, column_of[row] = column_of[row], column
        if row == start:
            return
