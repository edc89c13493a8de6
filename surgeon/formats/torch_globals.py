"""What a torch pickle may name: classes, functions and dtypes, and what stands for them here.

Nothing is looked up, whatever its name. A class that is not known becomes a placeholder with its
name; what would run code is refused, since a file that asks for it means harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from surgeon.base.errors import listed
from surgeon.formats.checkpoint import Opaque, is_tensor, plain, plain_key
from surgeon.formats.foreign import SAVE_ALL_RANKS
from surgeon.numeric.dtypes import DTYPES

_RESAVE = (
    "load it where it was made and save its weights alone: torch.save(model.state_dict(), ...)"
)

_STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
# float4_e2m1fn_x2 is absent: torch counts pairs where safetensors counts elements.
TORCH_DTYPES = {
    row.torch: row.name for row in DTYPES.values() if row.bits >= 8
}  # fmt: skip
_OTHER_DTYPES = frozenset(
    {"complex128", "complex32", "qint8", "quint8", "qint32", "quint4x2", "quint2x4"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}
    | {f"bits{kind}" for kind in ("1x8", "2x4", "4x2", "8", "16")}
    | {"float4_e2m1fn_x2"}
)
UNUSABLE_TENSORS = {
    "_rebuild_sparse_tensor": "it is sparse; save tensor.to_dense() instead",
    "_rebuild_sparse_csr_tensor": "it is sparse; save tensor.to_dense() instead",
    "_rebuild_qtensor": "it is quantised; save tensor.dequantize() instead",
    "_rebuild_nested_tensor": "it is nested; save its tensors one by one instead",
    "_rebuild_meta_tensor_no_storage": "it is on the meta device and has no values",
    "_rebuild_wrapper_subclass": "it is a tensor subclass; save plain tensors instead",
    "_rebuild_device_tensor_from_numpy": "it was pickled as a NumPy array; save tensor.cpu()",
    "_rebuild_xla_tensor": "it was pickled as a NumPy array; save tensor.cpu()",
}
TENSOR_CLASSES = frozenset(
    {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
)
# Common in training checkpoints, so not worth a word.
_EXPECTED = frozenset(
    [
        "argparse.Namespace",
        "types.SimpleNamespace",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
        "datetime.datetime",
        "datetime.date",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "_io.BytesIO",
        "typing.Any",
        "torch.torch_version.TorchVersion",
        "torch.per_tensor_affine",
        "torch.per_channel_affine",
        "torch.per_tensor_symmetric",
        "torch.per_channel_symmetric",
        "torch.per_channel_affine_float_qparams",
        "torch.serialization._get_layout",
        "numpy.random._pickle.__randomstate_ctor",
        "numpy.random._pickle.__generator_ctor",
        "numpy.random._pickle.__bit_generator_ctor",
        "numpy.random._mt19937.MT19937",
        "numpy.random._pcg64.PCG64",
        "easydict.EasyDict",
        "yacs.config.CfgNode",
        "fvcore.common.config.CfgNode",
        "mmengine.logging.history_buffer.HistoryBuffer",
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
        "omegaconf.dictconfig.DictConfig",
        "omegaconf.listconfig.ListConfig",
        "omegaconf.base.Metadata",
        "omegaconf.base.ContainerMetadata",
        "omegaconf.nodes.AnyNode",
        "omegaconf.nodes.StringNode",
        "omegaconf.nodes.IntegerNode",
        "omegaconf.nodes.FloatNode",
        "omegaconf.nodes.BooleanNode",
    ]
)
_ARRAY = "it is a NumPy array; save torch.from_numpy(array) instead"
_ARRAYS = frozenset(
    f"{module}.{name}"
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric",
                   "numpy.core.numeric")
    for name in ("_reconstruct", "_frombuffer")
)  # fmt: skip
_SCALARS = frozenset({"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"})
# Modules, and functions of others, that a checkpoint refers to only in order to do something.
_HARMFUL_MODULES = frozenset(
    {"os", "posix", "nt", "subprocess", "_posixsubprocess", "sys", "shutil", "socket", "_socket",
     "importlib", "imp", "runpy", "pkgutil", "pty", "ctypes", "_ctypes", "cffi", "pickle",
     "_pickle", "marshal", "code", "codeop", "pdb", "bdb", "timeit", "webbrowser", "commands",
     "popen2", "pip", "urllib", "http", "ftplib", "smtplib", "requests"}
)  # fmt: skip
_HARMFUL = frozenset(
    {"eval", "exec", "compile", "open", "__import__", "input", "breakpoint", "globals", "locals",
     "vars", "setattr", "delattr", "execfile", "file", "apply"}
)  # fmt: skip
_HARMFUL_IN_TORCH = ("torch.load", "torch.hub.", "torch.utils.cpp_extension", "torch.jit.load",
                     "torch.serialization.load", "torch.package")  # fmt: skip
# What Python 2, and so pickle protocol 2, calls what is there under another name.
_NAMES_OF_PYTHON2 = {"long": "int", "unicode": "str", "xrange": "range"}
_MODULES_OF_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_LONGEST_NAME = 300


@dataclass(eq=False, slots=True)
class Global(Opaque):
    """What stands for a class, a function or a dtype; `run` takes the world it is called in."""

    run: Callable[..., object] | None = None
    dtype: str = ""
    is_expected: bool = True


# Identity is of no account, so that one that was forgotten may be made again.
@lru_cache(maxsize=4096)
def known(module: str, name: str) -> Global:
    """Return what stands for a global; raises ValueError to refuse it."""
    full = f"{module}.{name}"
    # "<locals>" stands in the names of what was defined in a function.
    parts = full.replace("<locals>", "x").split(".")
    if len(full) > _LONGEST_NAME or not all(part.isidentifier() for part in parts):
        raise ValueError(f"found {full[:_LONGEST_NAME]!r}, which is no name of a class")
    module = _MODULES_OF_PYTHON2.get(module, module)
    if module == "builtins":
        name = _NAMES_OF_PYTHON2.get(name, name)
    full = f"{module}.{name}"
    if _is_harmful(module, name):
        raise ValueError(f"found {full!r}, which would run code when the file is loaded; {_RESAVE}")
    if module in ("torch", "torch.cuda", "torch.storage"):
        if name in _STORAGE_DTYPES:
            return Global(full, dtype=_STORAGE_DTYPES[name])
        if name in ("UntypedStorage", "_UntypedStorage"):
            return Global(full, dtype="uint8")
        if name in TORCH_DTYPES or name in _OTHER_DTYPES:
            return Global(full, dtype=name)
    if full in TENSOR_CLASSES:
        return Global(full)
    if full in _FUNCTIONS:
        return Global(full, run=_FUNCTIONS[full])
    if module in ("torch._utils", "torch._tensor") and name.startswith("_rebuild"):
        problem = UNUSABLE_TENSORS.get(name, f"it is made by {full}, which is not known")
        return Global(full, run=lambda *_: Opaque("a tensor", problem))
    if full in _ARRAYS or full == "numpy.ndarray":
        return Global(full, run=lambda *_: Opaque("a NumPy array", _ARRAY))
    if full in _SCALARS or full == "numpy.dtype" or module == "numpy.dtypes":
        return Global(full, run=lambda *_: Opaque("a NumPy scalar"))
    expected = full in _EXPECTED or module in ("numpy", "torch")
    return Global(full, run=_placeholder(full), is_expected=expected)


def left_unbuilt(names: Iterable[str]) -> tuple[str, ...]:
    """Return a note on objects of classes that are not known, if there are any."""
    classes = list(names)
    return (f"not built, since their classes are not known: {listed(classes)}",) if classes else ()


def storage_bytes(dtype: str) -> int:
    """Return the size in a file of an element of a dtype, by torch's name for it."""
    if dtype in TORCH_DTYPES:
        return DTYPES[TORCH_DTYPES[dtype]].bits // 8
    return {"complex128": 16, "complex32": 4, "qint32": 4}.get(dtype, 1)


def _is_harmful(module: str, name: str) -> bool:
    return (
        module.partition(".")[0] in _HARMFUL_MODULES
        or (module == "builtins" and name.partition(".")[0] in _HARMFUL)
        or f"{module}.{name}".startswith(_HARMFUL_IN_TORCH)
    )


def _placeholder(full: str) -> Callable[..., Opaque]:
    """Return what makes a placeholder for an object of a class that is not known."""

    def make(world: object, *arguments: object) -> Opaque:
        return Opaque(full, subclass_problem(full) if any(map(is_weight, arguments)) else "")

    return make


def is_weight(value: object) -> bool:
    """Say whether something is a tensor that may be a weight, or would be if it could be used."""
    if is_tensor(value):
        return bool(value.spec.shape)
    return isinstance(value, Opaque) and value.problem != ""


def subclass_problem(full: str) -> str:
    """Return why an object with tensors in it is no tensor here, and what to do about it."""
    if "DTensor" in full or full.startswith("torch.distributed"):
        return f"found {full!r}, of which this file holds one rank's part; {SAVE_ALL_RANKS}"
    return (
        f"found {full!r} with tensors in it, which is no plain tensor; save plain tensors instead"
    )


def _attribute(world: object, owner: object, name: object) -> Opaque:
    """Return what stands for a class inside another, or a method: protocol 2 looks them up."""
    if not isinstance(name, str) or not isinstance(owner, Opaque):
        return Opaque("an attribute")
    full = f"{owner.what}.{name}"
    if len(full) > _LONGEST_NAME:
        raise ValueError(f"found {full[:_LONGEST_NAME]!r}, which is no name of a class")
    return Global(full, run=_placeholder(full), is_expected=False)


def _reconstructed(world: Any, kind: object, base: object, state: object) -> object:
    """Return what `copyreg` makes of a class's object, with the items of the class it extends."""
    made = world.call(kind, ())
    if isinstance(made, Opaque) and isinstance(state, dict):
        made.items = dict(state)
    return made


def _first(world: object, data: object, *_: object) -> object:
    return data


def _mapping(world: object, items: object = ()) -> dict[object, object]:
    pairs = items.items() if isinstance(items, dict) else items
    return {plain_key(name): value for name, value in pairs}  # type: ignore[attr-defined]


def _plain_set(items: Sequence[object]) -> set[object]:
    return {plain_key(item) for item in items}


def _items_of(kind: Callable[[Any], object]) -> Callable[..., object]:
    """Return what makes a `kind` of the items of another plain container, or of none."""

    def make(world: object, items: object = ()) -> object:
        if not isinstance(items, list | tuple | set | frozenset):
            raise TypeError
        return kind(items)

    return make


def _bytes(world: object, text: object = b"", encoding: str = "latin-1") -> bytes:
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return text.encode("latin-1")
    if not isinstance(text, bytes):
        raise TypeError
    return text


_FUNCTIONS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": lambda world, *parts: world.tensor(*parts),
    "torch._utils._rebuild_tensor_v2": lambda world, *parts: world.tensor(*parts),
    "torch._utils._rebuild_tensor_v3": lambda world, *parts: world.tensor_of_dtype(*parts),
    "torch._tensor._rebuild_from_type_v2": lambda world, *parts: world.typed(*parts),
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch.Size": _items_of(tuple),
    "torch.device": lambda world, *parts: ":".join(map(plain, parts)),
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda world, factory=None, items=(): _mapping(world, items),
    "collections.deque": lambda world, items=(), longest=None: _items_of(list)(world, items),
    "builtins.dict": _mapping,
    "builtins.list": _items_of(list),
    "builtins.tuple": _items_of(tuple),
    "builtins.set": _items_of(_plain_set),
    "builtins.frozenset": _items_of(_plain_set),
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "builtins.complex": lambda world, *parts: complex(*parts),
    "builtins.int": lambda world, value=0: value,
    "builtins.float": lambda world, value=0.0: value,
    "builtins.str": lambda world, value="": value,
    "builtins.bool": lambda world, value=False: value,
    "builtins.slice": lambda world, *parts: parts,
    "builtins.range": lambda world, *parts: parts,
    "builtins.getattr": _attribute,
    "_codecs.encode": _bytes,
    "deepspeed.runtime.zero.config.ZeroStageEnum": lambda world, value: value,
    "copyreg._reconstructor": _reconstructed,
    "copyreg.__newobj__": lambda world, kind, *parts: world.call(kind, parts),
    "copyreg.__newobj_ex__": lambda world, kind, parts, _: world.call(kind, parts),
}
