"""Reads and writes safetensors files without the library: an independent reader, and files that no library writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1", "BOOL": "?"}
Header = dict[str, Any]


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the file. Raises ValueError, KeyError or TypeError if it is invalid."""
    return tensors(*split(path.read_bytes()))


def split(content: bytes) -> tuple[Header, bytes]:
    """Header and payload."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Header | str, payload: bytes) -> bytes:
    """The inverse of `split`, for any header."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + payload


def tensors(header: Header, payload: bytes) -> dict[str, np.ndarray]:
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = np.frombuffer(payload[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    names = {np.dtype(code): name for name, code in DTYPES.items()}
    header: Header = {"__metadata__": {"format": "pt"}}
    payload = b""
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        offsets = [len(payload), len(payload) + len(data)]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        payload += data
    return join(header, payload)
