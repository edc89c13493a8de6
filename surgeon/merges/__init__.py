"""The merges, one file each or one a family; a new file is registered by being here."""

from surgeon.draft.registry import OPS

_PRUNING = (
    "breadcrumbs", "breadcrumbs_ties", "dare", "dare_ties", "della", "della_ties",
    "task_arithmetic", "ties",
)  # fmt: skip

OPS.add_folder(__name__, __path__, families={"pruning": _PRUNING})
