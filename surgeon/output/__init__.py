"""Planned files to disk: layout, executor, workers, checksums, linking, publication."""
