"""Other tools' configurations as recipes."""

from surgeon.mergekit.convert import imported

__all__ = ["imported"]
