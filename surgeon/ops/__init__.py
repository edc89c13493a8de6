"""The ops, one file each; a new file is registered by being here."""

from surgeon.draft.registry import OPS

OPS.add_folder(__name__, __path__)
