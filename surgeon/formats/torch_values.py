"""What a torch pickle may refer to, as inert values: tensors, plain containers, scalars.

A tensor becomes a LazyTensor over its storage's bytes. What is known but of no use here becomes
an `Opaque`; every other global is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from surgeon.formats.checkpoint import Opaque, Record, plain, plain_key, spec_of
from surgeon.lazy import ByteSource, LazyTensor, Stored, Strided, TensorSpec
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
_TORCH_DTYPES = {
    row.torch: row.name for row in DTYPES.values() if row.bits >= 8
}  # fmt: skip
_OTHER_DTYPES = frozenset(
    {"complex128", "complex32", "qint8", "quint8", "qint32", "quint4x2", "quint2x4"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}
    | {f"bits{kind}" for kind in ("1x8", "2x4", "4x2", "8", "16")}
    | {"float4_e2m1fn_x2"}
)
_UNUSABLE_TENSORS = {
    "_rebuild_sparse_tensor": "it is sparse; save tensor.to_dense() instead",
    "_rebuild_sparse_csr_tensor": "it is sparse; save tensor.to_dense() instead",
    "_rebuild_qtensor": "it is quantised; save tensor.dequantize() instead",
    "_rebuild_nested_tensor": "it is nested; save its tensors one by one instead",
    "_rebuild_meta_tensor_no_storage": "it is on the meta device and has no values",
    "_rebuild_wrapper_subclass": "it is a tensor subclass; save plain tensors instead",
    "_rebuild_device_tensor_from_numpy": "it was pickled as a NumPy array; save tensor.cpu()",
    "_rebuild_xla_tensor": "it was pickled as a NumPy array; save tensor.cpu()",
}
_TENSOR_CLASSES = frozenset(
    {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
)
# Harmless, and common in training checkpoints; nothing of them is kept but the name.
_OPAQUE = frozenset(
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


@dataclass(frozen=True, eq=False)
class _Global:
    """What stands for a class, a function or a dtype."""

    name: str
    run: Callable[..., object] | None = None
    dtype: str = ""


@dataclass(frozen=True, eq=False)
class _Storage:
    """The bytes of a storage; `problem` says why they cannot be used."""

    record: Record | None
    dtype: str
    size_bytes: int
    problem: str = ""


class TorchWorld:
    """The globals and storages of one torch archive; see opcodes.World.

    `origins` holds the record of the storage that each tensor lies in.
    """

    def __init__(self, file: ByteSource, members: Mapping[str, Record]) -> None:
        self.origins: dict[LazyTensor, Record] = {}
        self._file = file
        self._members = members
        self._globals: dict[tuple[str, str], _Global] = {}
        self._storages: dict[tuple[_Global, str, int], _Storage] = {}
        self._tensors: dict[tuple[object, ...], LazyTensor] = {}
        self._specs: dict[tuple[str, tuple[int, ...]], TensorSpec] = {}

    def find(self, module: str, name: str) -> object:
        place = (module.replace("__builtin__", "builtins"), name)
        if place not in self._globals:
            self._globals[place] = self._known(*place)
        return self._globals[place]

    def call(self, function: object, arguments: tuple[object, ...]) -> object:
        if not isinstance(function, _Global) or function.run is None:
            raise TypeError
        return function.run(*arguments)

    def build(self, value: object, state: object) -> None:
        # The attributes of an OrderedDict (a state_dict's _metadata) are of no use here.
        if not isinstance(value, dict | Opaque):
            raise TypeError

    def extend(self, value: object, items: Sequence[object]) -> None:
        if not isinstance(value, Opaque):
            raise TypeError

    def storage(self, identity: object) -> object:
        kind, storage_type, name, location, count = cast(tuple[Any, ...], identity)
        if kind != "storage" or not isinstance(storage_type, _Global) or not storage_type.dtype:
            raise TypeError
        if type(name) is not str or type(count) is not int or count < 0:
            raise TypeError
        found = self._storages.get((storage_type, name, count))
        if found is None:
            found = self._located(storage_type.dtype, name, location, count)
            self._storages[(storage_type, name, count)] = found
        return found

    def _located(self, torch_dtype: str, name: str, location: object, count: int) -> _Storage:
        dtype = _TORCH_DTYPES.get(torch_dtype, "")
        record = self._members.get(f"data/{name}")
        if location == "meta":
            return _Storage(None, dtype, 0, _UNUSABLE_TENSORS["_rebuild_meta_tensor_no_storage"])
        if not dtype:
            return _Storage(None, "", 0, f"found dtype {torch_dtype}, which safetensors lacks")
        size_bytes = count * DTYPES[dtype].bits // 8
        if record is None:
            problem = "" if count == 0 else f"its storage 'data/{name}' is missing in the archive"
            return _Storage(None, dtype, 0, problem)
        if record.size_bytes // (DTYPES[dtype].bits // 8) != count:
            return _Storage(
                None, dtype, 0,
                f"found {record.size_bytes} bytes in its storage 'data/{name}', "
                f"expected {size_bytes}",
            )  # fmt: skip
        return _Storage(record, dtype, size_bytes)

    def _known(self, module: str, name: str) -> _Global:
        full = f"{module}.{name}"
        run: Callable[..., object] | None = None
        if module in ("torch", "torch.cuda", "torch.storage"):
            if name in _STORAGE_DTYPES:
                return _Global(full, dtype=_STORAGE_DTYPES[name])
            if name in ("UntypedStorage", "_UntypedStorage"):
                return _Global(full, dtype="uint8")
            if name in _TORCH_DTYPES or name in _OTHER_DTYPES:
                return _Global(full, dtype=name)
        if full in _TENSOR_CLASSES:
            return _Global(full)
        if module == "torch._utils" and name in _UNUSABLE_TENSORS:
            unusable = Opaque("a tensor", _UNUSABLE_TENSORS[name])
            run = lambda *_: unusable  # noqa: E731
        elif full in _OPAQUE:
            opaque = Opaque(full)
            run = lambda *_: opaque  # noqa: E731
        elif full in _ARRAYS or full == "numpy.ndarray":
            run = lambda *_: Opaque("a NumPy array", _ARRAY)  # noqa: E731
        elif full in _SCALARS or full == "numpy.dtype" or module == "numpy.dtypes":
            run = lambda *_: Opaque("a NumPy scalar")  # noqa: E731
        else:
            run = self._functions().get(full)
        if run is None:
            raise ValueError(_refusal(module, name))
        return _Global(full, run)

    def _functions(self) -> dict[str, Callable[..., object]]:
        return {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_dtype,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": _parameter,
            "torch._tensor._rebuild_from_type_v2": self._typed,
            "torch.Size": _items_of(tuple),
            "torch.device": lambda *parts: ":".join(map(plain, parts)),
            "collections.OrderedDict": _mapping,
            "collections.Counter": _mapping,
            "collections.defaultdict": lambda factory=None, items=(): _mapping(items),
            "collections.deque": lambda items=(), longest=None: _items_of(list)(items),
            "builtins.dict": _mapping,
            "builtins.list": _items_of(list),
            "builtins.tuple": _items_of(tuple),
            "builtins.set": _items_of(_plain_set),
            "builtins.frozenset": _items_of(_plain_set),
            "builtins.bytearray": _bytes,
            "builtins.bytes": _bytes,
            "builtins.complex": complex,
            "builtins.int": lambda value=0: value,
            "builtins.float": lambda value=0.0: value,
            "builtins.str": lambda value="": value,
            "builtins.bool": lambda value=False: value,
            "builtins.slice": lambda *parts: parts,
            "builtins.range": lambda *parts: parts,
            "_codecs.encode": _bytes,
        }

    def _tensor(
        self,
        storage: _Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: object = False,
        hooks: object = None,
        metadata: object = None,
    ) -> object:
        if metadata:
            return Opaque("a tensor", "its conjugate or negative bit is set; save tensor.resolve_"
                          "conj().resolve_neg() instead")  # fmt: skip
        return self._view(storage, storage.dtype, offset, size, stride)

    def _tensor_of_dtype(
        self,
        storage: _Storage,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        requires_grad: object,
        hooks: object,
        dtype: _Global,
        metadata: object = None,
    ) -> object:
        if dtype.dtype not in _TORCH_DTYPES:
            return Opaque("a tensor", f"found dtype {dtype.dtype}, which safetensors lacks")
        if metadata:
            return self._tensor(storage, offset, size, stride, metadata=metadata)
        return self._view(storage, _TORCH_DTYPES[dtype.dtype], offset, size, stride)

    def _typed(self, function: object, kind: _Global, arguments: Any, state: object) -> object:
        if kind.name not in _TENSOR_CLASSES:
            return Opaque("a tensor", "it is a tensor subclass; save plain tensors instead")
        return self.call(function, arguments)

    def _view(
        self,
        storage: _Storage,
        dtype: str,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
    ) -> object:
        """Return the one LazyTensor of this view, or why there cannot be one."""
        if storage.problem:
            return Opaque("a tensor", storage.problem)
        # Before anything is hashed or shown: what shares tuples in tuples would take for ever.
        numbers = (offset, *shape, *strides)
        if {type(number) for number in numbers} != {int}:
            odd = next(number for number in numbers if type(number) is not int)
            return Opaque("a tensor", f"found {plain(odd)}, expected whole numbers")
        view = (storage, dtype, offset, shape, strides)
        if view in self._tensors:
            return self._tensors[view]
        try:
            spec = self._specs.get((dtype, shape)) or spec_of(dtype, shape)
            tensor = _lazy(self._file, storage, spec, offset, strides)
        except ValueError as error:
            return Opaque("a tensor", str(error))
        self._tensors[view] = tensor
        self._specs[(dtype, shape)] = spec
        if storage.record is not None:
            self.origins[tensor] = storage.record
        return tensor


def _lazy(
    file: ByteSource, storage: _Storage, spec: TensorSpec, offset: int, strides: tuple[int, ...]
) -> LazyTensor:
    """Return a view of a storage, once all that it states is found to lie inside."""
    shape = spec.shape
    if len(shape) != len(strides):
        raise ValueError(f"found strides {strides} for shape {shape}")
    if min(offset, *strides, 0) < 0:
        raise ValueError(f"found offset {offset} and strides {strides}, expected 0 or more")
    if 0 in shape:
        return Stored(file, 0, spec)
    item_bytes = DTYPES[spec.dtype].bits // 8
    reach, packed, is_contiguous = 1, 1, True
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            reach += (size - 1) * stride
            is_contiguous &= stride == packed
            packed *= size
    if storage.record is None or (offset + reach) * item_bytes > storage.size_bytes:
        raise ValueError(
            f"found offset {offset} and strides {strides} that reach element {offset + reach} of "
            f"its storage, expected at most {storage.size_bytes // item_bytes}"
        )
    begin = storage.record.offset + offset * item_bytes
    if is_contiguous:
        return Stored(file, begin, spec)
    return Strided(Stored(file, begin, TensorSpec(spec.dtype, (reach,))), strides, shape)


def _parameter(data: object, *_: object) -> object:
    return data


def _mapping(items: object = ()) -> dict[object, object]:
    pairs = items.items() if isinstance(items, dict) else items
    return {plain_key(name): value for name, value in pairs}  # type: ignore[attr-defined]


def _plain_set(items: Sequence[object]) -> set[object]:
    return {plain_key(item) for item in items}


def _items_of(kind: Callable[[Any], object]) -> Callable[..., object]:
    """Return what makes a `kind` of the items of another plain container, or of none."""

    def make(items: object = ()) -> object:
        if not isinstance(items, list | tuple | set | frozenset):
            raise TypeError
        return kind(items)

    return make


def _bytes(text: object = b"", encoding: str = "latin-1") -> bytes:
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return text.encode("latin-1")
    if not isinstance(text, bytes):
        raise TypeError
    return text


def _refusal(module: str, name: str) -> str:
    """Return why a global is not looked up, and what to do about it."""
    full = repr(f"{module}.{name}"[:200])
    if module.startswith("torch.nn.modules") or module.startswith("torch.nn.parallel"):
        return f"it is a whole pickled model (found {full}); {_RESAVE}"
    if "DTensor" in name or module.startswith("torch.distributed"):
        return f"found {full}, a distributed tensor; save tensor.full_tensor() instead"
    if module.startswith(("torchao", "torch.ao", "torch.nested", "bitsandbytes")):
        return f"found {full}, a tensor subclass; save plain tensors instead"
    return f"found {full}, which is not looked up, since it could run code; {_RESAVE}"
