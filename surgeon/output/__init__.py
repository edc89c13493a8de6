"""Planned files to disk: layout, executor, workers, checksums, linking, publication.

`cluster/` has the workers that are on other machines.
"""
