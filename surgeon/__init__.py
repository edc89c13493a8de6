"""Change trained networks between training stages, by recipe."""

__version__ = "0.1.0"
