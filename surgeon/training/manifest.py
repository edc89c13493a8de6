"""A manifest that a live model can be bound to."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from surgeon.manifest import model as document
from surgeon.manifest.names import located
from surgeon.training.errors import ManifestError
from surgeon.training.run import Run, bound


class Manifest(document.Manifest):
    """How the checkpoint beside it is to be trained, with the two ways to begin."""

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read the manifest at `path`, or beside the checkpoint or in the model folder there.

        Raises ManifestError where it is not there, not strict JSON, of a newer version, or lacks
        what a manifest must say.
        """
        found = located(Path(path))
        try:
            return document.read(cls, found)
        except OSError as error:
            raise ManifestError(f"{found}: cannot be read: {_reason(error)}") from None
        except ValueError as error:
            raise ManifestError(f"{found}: {error}") from None

    def bind(self, model: nn.Module) -> Run:
        """Check the manifest against a live model and the checkpoint; changes and loads nothing.

        Checked are the hash of the checkpoint's header, names and shapes of all parameters and
        buffers, which of them are tied, and that every stage holds every element of every
        parameter exactly once. Raises ManifestError with a line for every contradiction.
        """
        return bound(self, model)

    def _repr_html_(self) -> str:
        from surgeon.pictures.facts import of_manifest
        from surgeon.pictures.report import shown_in_notebook

        return shown_in_notebook(of_manifest(self))


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there; surgeon apply writes it beside the checkpoint"
    return (error.strerror or str(error)).lower()
