"""safetensors files as numpy arrays, read strictly and written in one order: no torch, no pickle, nothing but the standard's layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import read_header
from .errors import IntegrityError
from .files import Written, write_atomically

Array = NDArray[Any]
"""Of fp32, whatever the file had; fp64 where the file had that."""

DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
"""Our names of precisions, and the format's."""

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Of each type that is read."""
_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def read(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Name -> array; and name -> the dtype that it has in the file."""
    infos = read_header(path)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    arrays = {}
    for name, info in infos.items():
        begin, end = header[name]["data_offsets"]
        arrays[name] = decoded(path, raw[start + begin : start + end], info.dtype).reshape(info.shape)
    return arrays, {name: info.dtype for name, info in infos.items()}


def decoded(path: Path, data: bytes, dtype: str) -> Array:
    """A tensor's bytes as numbers."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype not in _NUMPY:
        raise IntegrityError(
            "LRY-FILE-ADAPTER", f"{path.name} has weights of type {dtype}.", "Convert from the file in fp16, bf16 or fp32."
        )
    values = np.frombuffer(data, _NUMPY[dtype])
    return values.astype(np.float32) if dtype == "F16" else values


def rounded(array: Array, dtype: str) -> Array:
    """The values as a file of this type holds them, still in fp32."""
    return decoded(Path(), encoded(array, dtype), dtype).reshape(array.shape)


def encoded(array: Array, dtype: str) -> bytes:
    """Numbers as a file of this type has them."""
    if dtype != "BF16":
        return np.ascontiguousarray(array, _NUMPY[dtype]).tobytes()
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()  # to the nearest, ties to even


def write(path: Path, arrays: Mapping[str, Array], dtype: str, metadata: Mapping[str, str]) -> Written:
    """One file of one type, with the hashes by which A1111 and its kin know it."""
    body, entries = bytearray(), {}
    for name in sorted(arrays):
        data = encoded(arrays[name], dtype)
        entries[name] = {"dtype": dtype, "shape": list(arrays[name].shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    bare = _header(entries, training) + bytes(body)
    hashes = {
        "sshs_model_hash": hashlib.sha256(body).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(bare[0x100000:0x110000]).hexdigest()[:8],
    }
    return write_atomically(path, _header(entries, {**metadata, **hashes}) + bytes(body))


def _header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text
