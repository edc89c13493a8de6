"""Name the formats that surgeon does not read, by their first bytes, and what to do about it."""

from __future__ import annotations

_CONVERT = "convert it with the library that wrote it, to safetensors"
# What zip archives that are not torch's are told by, too.
KERAS = (
    "load it with Keras and save its weights with safetensors.numpy.save_file("
    "{w.path: w.numpy() for w in model.weights}, PATH)"
)
NPZ = "save its arrays with safetensors.numpy.save_file(dict(numpy.load(IN)), OUT)"
# Of files that hold one rank's part of each tensor.
SAVE_ALL_RANKS = (
    "in the run that saved it, have all ranks save to a folder (torch.distributed.checkpoint.save("
    "model.state_dict(), checkpoint_id=FOLDER)), which is read, or save the whole: "
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
    "torch.distributed.checkpoint.state_dict"
)
_UNPACK = "unpack it first"
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "gzip", _UNPACK),
    (0, b"BZh", "bzip2", _UNPACK),
    (0, b"\xfd7zXZ", "xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "zstandard", _UNPACK),
    (0, b"\x89HDF", "HDF5, as Keras writes it", KERAS),
    (0, b"\x93NUMPY", "a NumPy array",
     "save it with safetensors.numpy.save_file({NAME: numpy.load(IN)}, OUT)"),
    (0, b"version https://git-lfs", "a git-lfs pointer", "fetch the file itself: git lfs pull"),
    (0, b"<", "markup (HTML or XML)", "it may be an error page that was downloaded instead"),
    (4, b"TFL3", "TensorFlow Lite", _CONVERT),
    (257, b"ustar", "a tar archive (torch before 0.2 wrote such)",
     "unpack it, or load it with an old torch and save it again with torch.save"),
    (0, b"\x08\x07\x12", "ONNX", _CONVERT),
    (0, b"\x08\x08\x12", "ONNX", _CONVERT),
    (0, b"\x08\x09\x12", "ONNX", _CONVERT),
    (0, b"\x08\x0a\x12", "ONNX", _CONVERT),
    (0, b"\x80", "a plain pickle", "load it where it was made and save its weights with "
     "torch.save or safetensors"),
)  # fmt: skip


def is_foreign(start: bytes) -> bool:
    """Tell whether the first bytes of a file are those of a format that is not read.

    Where a brace follows them, they are the header length of a safetensors file.
    """
    return start[8:9] != b"{" and any(
        start.startswith(magic, offset) for offset, magic, _, _ in _MAGIC
    )


def foreign(start: bytes) -> tuple[str, str]:
    """Return what a file is by its first bytes, and a hint; of an unknown one, the bytes."""
    for offset, magic, name, hint in _MAGIC:
        if start.startswith(magic, offset):
            return name, hint
    return f"unknown bytes {start[:8]!r}", "check that the file is complete"
