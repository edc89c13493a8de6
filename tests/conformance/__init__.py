"""Conformance with mergekit 0.1.5: the same configurations by both, and what differs."""
