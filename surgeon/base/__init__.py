"""The ground: errors, patterns, regions, indices, units, tables, schemas.

What any room may use and what knows nothing of checkpoints.
"""
