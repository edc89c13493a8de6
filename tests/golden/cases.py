"""The golden recipes, as data: steps, input, models, and what is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One run of `surgeon apply`."""

    steps: tuple[Json, ...]
    given: str = "net.safetensors"
    # Kept by the recipe under these names; the files are called so.
    models: tuple[str, ...] = ()
    folder: bool = False
    rest: Json = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def case(*steps: Json, **options: Any) -> Case:
    return Case(steps, **options)


def merge(op: str, *models: str, also: tuple[str, ...] = (), **parameters: Any) -> Case:
    """Merge relatives into their origin, in all of its dtypes at once."""
    names = list(models or ("left", "right"))
    step = {"op": op, "models": names, **parameters}
    return Case((step,), "base.safetensors", (*names, *also))


def do(op: str, target: Any = None, **parameters: Any) -> Json:
    return {"op": op, **({} if target is None else {"target": target}), **parameters}


def move(op: str, source: Any, to: Any, **parameters: Any) -> Json:
    return {"op": op, "from": source, "to": to, **parameters}


ENCODER = "encoder.{i}.weight"
SPLIT = do("split", "fused", dim=0, parts=3, into=[f"fused.{part}.weight" for part in "qkv"])
STAGES = {
    "optimizer": {"class": "torch.optim.AdamW", "args": {"lr": 0.001}},
    "stages": [
        {"name": "head", "duration": {"epochs": 2}, "train": ["classifier"]},
        {"name": "joint", "freeze": ["embed"],
         "layer_decay": {"container": "encoder", "factor": 0.9},
         "groups": [{"name": "vectors", "params": ["@vectors"], "weight_decay": 0}]},
    ],
}  # fmt: skip
CARRY = {"stages": [{"name": "a"}, {"name": "b", "optimizer_state": "carry"}]}
INITIALISERS: dict[str, Json] = {
    "zeros": {}, "ones": {}, "constant": {"val": 0.3}, "normal": {"std": 0.02},
    "trunc_normal": {"a": -0.5, "b": 1.0}, "uniform": {"a": -1.0}, "xavier_uniform": {},
    "xavier_normal": {"gain": 2.0}, "kaiming_uniform": {"mode": "fan_out"},
    "kaiming_normal": {"nonlinearity": "relu"}, "eye": {},
}  # fmt: skip
GRID = {"from": [2, 2], "to": [3, 3], "extra": 1}
CUT = {"density": 0.5, "weights": [1, 0.5]}

# Results that are the same bits wherever they are computed.
EXACT: dict[str, Case] = {
    "copied_whole": case(),
    "concat": case(do("concat", **{"from": ["encoder.{i}.norm.weight", "encoder.{i}.norm.bias"]},
                      dim=0, into="encoder.{i}.vectors")),
    "concat_groups": case(SPLIT, do("concat", **{"from": [f"fused.{p}.weight" for p in "qkv"]},
                                    dim=0, groups=2, into="fused.weight")),
    "copy": case(move("copy", "classifier", "auxiliary"),
                 move("copy", "head.weight", "tail.weight")),
    "copy_of_model": case(move("copy", "encoder.0.{rest**}", "extra.{rest}", model="other"),
                          models=("other",)),
    "delete": case(do("delete", ["encoder.0.norm", "embed"])),
    "keep": case(do("keep", ["encoder", "!encoder.1", "head", "codes"])),
    "layers": case({"op": "layers", "container": "encoder", "take": [
        "1:3", {"model": "other", "range": "0:2"}, {"range": "0", "zero": ["norm"]}]},
        models=("other",)),
    "permute": case(do("permute", "stem.weight", order=[2, 3, 1, 0]),
                    do("permute", "position.ids", order=[1, 0])),
    "rename": case(move("rename", "encoder.{i}.{rest**}", "backbone.{i+1}.{rest}")),
    "rename_swap": case(move("rename", ["encoder.0", "encoder.1"], ["encoder.1", "encoder.0"])),
    "reshape": case(do("reshape", "stem.weight", shape=[4, -1]),
                    do("reshape", "mask", shape=[3, 1])),
    "split": case(SPLIT),
    "split_groups": case(do("split", "fused", dim=0, sizes=[8, 4], groups=2,
                            into=["fused.a.weight", "fused.b.weight"])),
    "stack": case({"op": "stack", "from": ENCODER, "into": "encoder.weight", "dim": 1}),
    "tie": case(do("tie", "encoder.1.weight", to="encoder.0.weight", when="always")),
    "transpose": case(do("transpose", ["classifier", "fused", "stem.weight"])),
    "unstack": case({"op": "unstack", "from": "encoder.{i}.bias", "into": "encoder.{i}.bias.{e}"}),
    "untie": case(do("untie", "head.weight"), do("widen", "head.weight", rows=1, init="zeros")),
    "upcycle": case(do("upcycle", ENCODER, experts=2, into="encoder.{i}.experts.{expert}.weight",
                       router="encoder.{i}.gate.weight", columns=8)),
    "channels": case(do("channels", "stem", to=3)),
    "channels_one": case(do("channels", "stem", to=1)),
    "narrow": case(do("narrow", ["encoder.0", "encoder.0.norm"], drop=[1, "4:6"],
                      consumers=["encoder.1"])),
    "narrow_parts": case(do("narrow", "fused", keep=[1], block=2, parts=3)),
    "replace": case(do("replace", "classifier", rows=5, init="kaiming_uniform"), rest={"seed": 3}),
    "replace_default": case(do("replace", "stem", rows=3, bias_init="zeros")),
    "resize_nearest": case(do("resize_grid", "position.weight", mode="nearest", **GRID)),
    "widen_default": case(do("widen", "classifier", rows=2)),
    "widen_tied": case(do("widen", "embed", to=7, init={"name": "normal", "std": 0.02})),
    "widen_columns": case(do("widen", "fused.weight", columns=3, init="uniform")),
    "widen_mean": case(do("widen", "classifier", rows=2, init="mean", bias_init="zeros")),
    "widen_copy": case(do("widen", "fused", rows=2, init={"name": "copy", "rows": [3, 0]})),
    "widen_net2wider": case(do("widen", ["encoder.0", "encoder.0.norm"], to=16, init="net2wider",
                               consumers=["encoder.1"])),
    "add": case(do("add", "encoder.0", **{"from": "encoder.1"}, by=0.3)),
    "add_model": case(do("add", "{name**}", **{"from": "{name}"}, model="right", by=-0.7),
                      given="base.safetensors", models=("right",)),
    "cast": case(do("cast", "encoder", dtype="bfloat16"), do("cast", "embed", dtype="F16"),
                 do("cast", "temperature", dtype="F32")),
    "cast_f8": case(do("cast", "classifier", dtype="F8_E4M3", overflow="saturate")),
    "clamp": case(do("clamp", ["encoder", "embed", "stem"], min=-0.4, max=0.7)),
    "fill": case(do("fill", ["classifier", "mask"], value=1)),
    "reinit": case(*(do("reinit", f"fresh.{i}", init={"name": name, **given})
                     for i, (name, given) in enumerate(INITIALISERS.items())),
                   given="empty.safetensors"),
    "reinit_default": case(do("reinit", ["stem", "encoder.*", "embed"])),
    "reinit_dirac": case(do("reinit", "stem.weight", init={"name": "dirac", "groups": 2})),
    "scale": case(do("scale", ["**", "!codes"], by=0.3)),
    "expect": case(do("expect", "classifier.weight", shape=[7, 8], dtype="F32", finite=True),
                   do("expect", "head.weight", tied=True), do("delete", "unused", optional=True)),
    "match_like": case(do("match", like="other"), models=("other",)),
    "match_shapes": case(do("keep", "mask"), do("match", shapes={"mask": [3]})),
    "output_dtype": case(rest={"output": {"dtype": "BF16", "metadata": {"stage": "2"}}}),
    "output_dtype_f16": case(do("delete", "codes"), rest={"output": {"dtype": "F16"}}),
    "rename_then_widen": case(move("rename", "classifier", "score"), do("widen", "score", rows=1)),
    "stages": case(do("widen", "classifier", rows=1), rest={"training": STAGES}),
    "to_folder": case(rest={"output": {"shard_size": 700}}, folder=True),
    "folder": case(do("replace", "classifier", rows=3, init="normal"), given="folder", folder=True,
                   rest={"output": {"shard_size": "1KB", "config": {"num_labels": 3}}}),
    "folder_one_shard": case(do("cast", "encoder", dtype="F16"), given="folder", folder=True),
    "pickled": case(do("widen", "fc", rows=1), given="plain.pt"),
    "carried": case(do("widen", "fc", rows=1), do("narrow", "body", drop=[2], consumers=["fc"]),
                    given="trained.pt", rest={"training": CARRY}),
    "carried_renamed": case(do("transpose", "body"), move("rename", "fc", "out"), folder=True,
                            given="trained.pt", rest={"training": CARRY}),
    "left_behind": case(given="trained.pt", arguments=("--optimizer", "none"),
                        rest={"training": {"stages": [{"name": "a"}]}}),
    "average": merge("average"),
    "average_weights": merge("average", weights=[0.5, {"by_layer": [0, 1]}, 0.25], normalize=False),
    "average_target": merge("average", "left", target=["layers.1", "embed"]),
    "average_max": merge("average", "left", integers="max"),
    "into": case(do("average", models=["left", "right"], into="mean"),
                 move("copy", "layers.{rest**}", "averaged.{rest}", model="mean"),
                 given="base.safetensors", models=("left", "right")),
    "task_arithmetic": merge("task_arithmetic", weights=[1, -0.5], **{"lambda": 0.7}),
    "ties": merge("ties", **CUT),
    "ties_sum": merge("ties", "left", "right", "third", density=0.3, normalize=False),
    "breadcrumbs": merge("breadcrumbs", gamma=0.1, **CUT),
    "breadcrumbs_ties": merge("breadcrumbs_ties", gamma=0.1, **CUT),
    "consensus": merge("consensus", "left", "right", "third", **{"lambda": 0.4}),
    "consensus_ties": merge("consensus", mix="ties", density=0.6, at_least=1, scale=0.8),
    "dare": merge("dare", "left", "right", "third", density=[0.37, 0.6, 0.9]),
    "dare_none": merge("dare", rescale="none", normalize=True, **CUT),
    "dare_ties": merge("dare_ties", density={"by_layer": [0.37, 0.9]}, weights=[1, 0.5]),
    "della": merge("della", epsilon=0.2, **CUT),
    "della_ties": merge("della_ties", **CUT),
    "fisher": merge("fisher", "left", importances=["fisher_base", "fisher_left"],
                    also=("fisher_base", "fisher_left")),
    "fusion": merge("fusion", "left"),
    "nearswap": merge("nearswap", "left", t=0.1),
    "ram": merge("ram", epsilon=0.5),
    "ram_plus": merge("ram_plus", "left", "right", "third", epsilon=0.5, r=0.5),
    "sce": merge("sce", "left", "right", "third", select_topk=0.6),
    "models_star": case(do("average", models="*", target="layers"), given="base.safetensors",
                        models=("left", "third")),
}  # fmt: skip

# Results of matrix products, inner products and decompositions: they may differ in the last place.
CLOSE: dict[str, Case] = {
    "lora_extract": case(do("lora_extract", "encoder", base="other", rank=2, others="drop"),
                         models=("other",)),
    "lora_merge": case(do("lora_merge", adapter="adapter")),
    "reinit_orthogonal": case(do("reinit", ["encoder.*.weight", "fused.weight", "stem.weight"],
                                 init="orthogonal")),
    "resize_bicubic": case(do("resize_grid", "position.weight", mode="bicubic", **GRID)),
    "resize_linear": case(do("resize_grid", "encoder.0.weight", mode="linear", to=5, antialias=True,
                             **{"from": 8})),
    "resize_relative": case(do("resize_grid", "embed.weight", mode="linear", to=5, relative=True,
                               align_corners=True, **{"from": 3})),
    "weight_align": case(do("weight_align", ["classifier", "fused"], rows=[5, 6])),
    "widen_rows_normal": case(do("widen", "classifier", rows=2, init="rows_normal",
                                 bias_init="zeros")),
    "dare_l1": merge("dare", rescale="l1", **CUT),
    "della_ties_l1": merge("della_ties", rescale="l1", **CUT),
    "isotropic": merge("isotropic", **{"lambda": 0.5}),
    "karcher": merge("karcher", weights=[1, 0.5, 2]),
    "model_stock": merge("model_stock", "left", "right", "third"),
    "model_stock_row": merge("model_stock", granularity="row"),
    "multislerp": merge("multislerp", weights=[1, 0.5, 2]),
    "multislerp_relative": merge("multislerp", relative=True),
    "nuslerp": merge("nuslerp", "left", weights=[0.3, 0.7], granularity="row"),
    "nuslerp_relative": merge("nuslerp", relative=True, weights=[0.3, 0.7], granularity="column"),
    "rebasin": case(do("rebasin", models=["mlp_other"], t=0.25,
                       groups=[{"rows": "0", "columns": ["2.weight"]}]),
                    given="mlp.safetensors", models=("mlp_other",)),
    "regmean": merge("regmean", "left", grams=["gram_base", "gram_left"], alpha=0.5,
                     also=("gram_base", "gram_left")),
    "slerp": merge("slerp", "third", t={"by_layer": [0.1, 0.5, 1]}),
    "slerp_arc": case(do("slerp", models=["other"], t=0.3, target=["encoder", "embed", "stem"]),
                      models=("other",)),
    "tsv": merge("tsv", **{"lambda": 0.5}),
}  # fmt: skip

# Several steps that compute: what is between them may be rounded, or not be.
CHAINS: dict[str, Case] = {
    "ties_then_task_arithmetic": case(
        do("ties", models=["left", "right"], density=0.4),
        do("task_arithmetic", models=["third"], **{"lambda": 0.3}),
        given="base.safetensors", models=("left", "right", "third")),
    "task_arithmetic_then_average": case(
        do("task_arithmetic", models=["left"], **{"lambda": 0.3}), do("average", models=["right"]),
        given="base.safetensors", models=("left", "right")),
    "average_then_output_dtype": case(
        do("average", models=["left", "right"]), given="base.safetensors", models=("left", "right"),
        rest={"output": {"dtype": "F32"}}),
    "into_then_nearswap": case(
        do("average", models=["left", "right"], into="mean"),
        do("nearswap", models=["mean"], t=0.05),
        given="base.safetensors", models=("left", "right")),
    "scale_then_cast": case(do("scale", "encoder", by=0.3), do("cast", "encoder", dtype="BF16")),
    "scale_then_add": case(do("scale", "embed", by=0.3),
                           do("add", "embed", **{"from": "embed"}, by=0.1)),
    "cast_then_scale": case(do("cast", "encoder", dtype="BF16"), do("scale", "encoder", by=3)),
    "average_then_clamp": case(
        do("average", models=["left", "right"]), do("clamp", "layers", min=-0.3, max=0.3),
        given="base.safetensors", models=("left", "right")),
    "channels_then_scale": case(do("channels", "stem", to=3), do("scale", "stem", by=0.7)),
}  # fmt: skip
CLOSE_CHAINS: dict[str, Case] = {
    "average_then_slerp": case(
        do("average", models=["left"], weights=[0.3, 0.7]), do("slerp", models=["right"], t=0.3),
        given="base.safetensors", models=("left", "right")),
    "lora_merge_then_output_dtype": case(do("lora_merge", adapter="adapter"),
                                         do("cast", "codes", dtype="F32"),
                                         rest={"output": {"dtype": "F16"}}),
    "widen_then_weight_align": case(do("widen", "classifier", rows=2, init="normal"),
                                    do("weight_align", "classifier")),
    "resize_then_output_dtype": case(do("resize_grid", "position.weight", mode="bicubic", **GRID),
                                     rest={"output": {"dtype": "BF16"}}),
}  # fmt: skip
