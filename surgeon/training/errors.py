"""What can go wrong between a manifest and a live model."""

from __future__ import annotations

from surgeon.base.errors import SurgeonError


class ManifestError(SurgeonError):
    """A manifest cannot be read, or does not fit the checkpoint or model; one line a problem."""

    exit_code = 4
