"""The training side: reads a manifest, imports torch, and sets up each stage of a training run.

    from surgeon.training import Manifest

    run = Manifest.load("out.manifest.json").bind(model)
    for stage in run.stages:
        optimizer, scheduler = run.start(stage.name)
        ...  # your loop

Nothing else of surgeon imports this package.
"""

from surgeon.manifest.model import Group, Stage, Teacher, TensorEntry, TorchClass
from surgeon.training.collecting import collect_fisher, collect_gram, update_batch_norm
from surgeon.training.distillation import Distillation
from surgeon.training.errors import ManifestError
from surgeon.training.gradients import Gradients
from surgeon.training.history import History
from surgeon.training.importance import collect_importance
from surgeon.training.manifest import Manifest
from surgeon.training.report import Report
from surgeon.training.routers import collect_router, collect_routing
from surgeon.training.run import Run

__all__ = [
    "Distillation",
    "Gradients",
    "Group",
    "History",
    "Manifest",
    "ManifestError",
    "Report",
    "Run",
    "Stage",
    "Teacher",
    "TensorEntry",
    "TorchClass",
    "collect_fisher",
    "collect_gram",
    "collect_importance",
    "collect_router",
    "collect_routing",
    "update_batch_norm",
]
