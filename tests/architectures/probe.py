"""One model type, probed: what its tensors' sizes follow from, class by class."""

from __future__ import annotations

from fractions import Fraction

from tests.architectures.build import (
    NoBuildError,
    config_class,
)  # fmt: skip
from tests.architectures.classes import Class, by_pool, further_of, used_paths, write_classes
from tests.architectures.configs import Json
from tests.architectures.defaults import defaults_of, heads_of, null_defaults, settings_of
from tests.architectures.fit import (
    fit,
)  # fmt: skip
from tests.architectures.fused import fused_layouts
from tests.architectures.kinds import kinds_of, per_layer_lists, stack_lengths
from tests.architectures.subject import subject_of


def probe(model_type: str, class_names: list[str]) -> Json:
    """Return what is known of a model type; raise NoBuildError where nothing can be built."""
    subject, primary = subject_of(model_type, class_names)
    laboratory = subject.laboratory(primary)
    fits = fit(laboratory)
    pool = dict(fits.terms)
    pool[("num_labels", 0)] = (((("num_labels", 1),), Fraction(1)),)
    tried = fits.tried
    records = {primary: Class(subject.build(primary, {}), fits)}
    unbuilt: Json = {}
    for name in class_names:
        if name == primary:
            continue
        try:
            records[name] = Class(subject.build(name, {}), by_pool(subject, name, pool, tried))
        except NoBuildError as error:
            unbuilt[name] = str(error)
    extra = further_of(subject, primary, records[primary].built, pool, tried)
    lengths = stack_lengths(fits)
    made: Json = {
        "classes": {},
        "counts": {},
        "lists": per_layer_lists(subject),
        "kinds": kinds_of(subject, primary, lengths, laboratory),
    }
    write_classes(made, records, extra, subject.links)
    made["settings"] = settings_of(subject, made)
    used = used_paths(made)
    made["defaults"] = defaults_of(subject, used) | null_defaults(subject, primary, used, fits)
    made["heads"] = heads_of(subject, primary, fits, used)
    made["aliases"] = {
        new: old for new, old in (config_class(model_type).attribute_map or {}).items()
        if old in {path.split(".")[0] for path in used}
    }  # fmt: skip
    made["untried"] = [path for path in fits.untried if path.split(".")[-1] not in ("num_labels",)]
    made["fused"] = fused_layouts(model_type)
    if unbuilt:
        made["unbuilt"] = unbuilt
    return {key: value for key, value in made.items() if value}
