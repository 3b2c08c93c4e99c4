"""safetensors files read and written by hand: a second reading to compare with, and files that no library writes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1", "BOOL": "?"}
Header = dict[str, Any]


def read(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the file. Raises ValueError or KeyError for one that is not as it must be."""
    header, payload = split(path.read_bytes())
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = np.frombuffer(payload[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def split(content: bytes) -> tuple[Header, bytes]:
    """Header and payload."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Header | str, payload: bytes) -> bytes:
    """The file again; whatever the header says."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + payload


def spoil(path: Path, draw: random.Random) -> tuple[str, bool]:
    """Change one thing that a safetensors file says; the name of the change, and whether it says the same still."""
    change = draw.choice(CHANGES)
    header, payload = split(path.read_bytes())
    path.write_bytes(change(header, payload, draw))
    return change.__name__.strip("_"), change in _NEUTRAL


def _names(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _remove(header: Header, payload: bytes, draw: random.Random) -> bytes:
    return _packed({k: v for k, v in _arrays(header, payload).items() if k != draw_name(header, draw)})


def draw_name(header: Header, draw: random.Random) -> str:
    """One of the tensors; the same again within one change."""
    names = _names(header)
    return names[draw.getstate()[1][0] % len(names)]


def _rename(header: Header, payload: bytes, draw: random.Random) -> bytes:
    name = draw_name(header, draw)
    new = draw.choice([f"{name}x", name.upper(), "", f"module.{name}", name.rpartition(".")[2], f"{name}\ud800"])
    return join({(new if k == name else k): v for k, v in header.items()}, payload)


def _duplicate_key(header: Header, payload: bytes, draw: random.Random) -> bytes:
    name = draw_name(header, draw)
    entry = json.dumps({**header[name], "shape": [1]})
    return join(json.dumps(header)[:-1] + f", {json.dumps(name)}: {entry}}}", payload)


def _add_tensor(header: Header, payload: bytes, draw: random.Random) -> bytes:
    name = draw.choice(["foreign", f"{draw_name(header, draw)}.more", "base_model.model.lm_head.weight"])
    return _packed({**_arrays(header, payload), name: np.ones((3, 2), np.float32)})


def _dtype_of_header(header: Header, payload: bytes, draw: random.Random) -> bytes:
    header[draw_name(header, draw)]["dtype"] = draw.choice([*_DTYPES, "BF16", "F8_E4M3", "X1", 7])
    return join(header, payload)


def _cast(header: Header, payload: bytes, draw: random.Random) -> bytes:
    arrays, name = _arrays(header, payload), draw_name(header, draw)
    with np.errstate(all="ignore"):
        return _packed({**arrays, name: arrays[name].astype(draw.choice(["<f2", "<f8", "<i4", "u1"]))})


def _shape_of_header(header: Header, payload: bytes, draw: random.Random) -> bytes:
    entry = header[draw_name(header, draw)]
    entry["shape"] = draw.choice([entry["shape"][::-1], [*entry["shape"], 1], [], [2**62, 4], [-1], "x", [2**40, 0]])
    return join(header, payload)


def _reshape(header: Header, payload: bytes, draw: random.Random) -> bytes:
    arrays, name = _arrays(header, payload), draw_name(header, draw)
    a = arrays[name]
    return _packed({**arrays, name: draw.choice([a.T, a.ravel(), a[None], a[:-1] if a.ndim else a[None]])})


def _offsets(header: Header, payload: bytes, draw: random.Random) -> bytes:
    entry = header[draw_name(header, draw)]
    begin, end = entry["data_offsets"]
    wrong = [[begin + 4, end + 4], [end, begin], [0, 2**63], [begin], [begin, end - 4], None]
    entry["data_offsets"] = draw.choice(wrong)
    return join(header, payload)


def _not_finite(header: Header, payload: bytes, draw: random.Random) -> bytes:
    return _with_value(header, payload, draw, [np.nan, np.inf, -np.inf])


def _huge(header: Header, payload: bytes, draw: random.Random) -> bytes:
    return _with_value(header, payload, draw, [3e38, -1e30, 1e20])


def _swap_data(header: Header, payload: bytes, draw: random.Random) -> bytes:
    one, other = draw_name(header, draw), draw.choice(_names(header))
    header[one], header[other] = header[other], header[one]
    return join(header, payload)


def _shuffle(header: Header, payload: bytes, draw: random.Random) -> bytes:
    """The same tensors in another order."""
    arrays = list(_arrays(header, payload).items())
    draw.shuffle(arrays)
    return _packed(dict(arrays))


def _no_tensors(header: Header, payload: bytes, draw: random.Random) -> bytes:
    return join({}, b"")


def _header_length(header: Header, payload: bytes, draw: random.Random) -> bytes:
    return draw.choice([2**63, 2**32, 0, 1, 10**9]).to_bytes(8, "little") + join(header, payload)[8:]


def _deep_header(header: Header, payload: bytes, draw: random.Random) -> bytes:
    return join('{"a":' * 100_000 + "1" + "}" * 100_000, payload)


CHANGES: list[Callable[[Header, bytes, random.Random], bytes]] = [
    *(_remove, _rename, _duplicate_key, _add_tensor, _dtype_of_header, _cast, _shape_of_header, _reshape, _offsets),
    *(_not_finite, _huge, _swap_data, _shuffle, _no_tensors, _header_length, _deep_header),
]  # fmt: skip
_NEUTRAL = (_shuffle,)


def _with_value(header: Header, payload: bytes, draw: random.Random, values: list[float]) -> bytes:
    arrays, value = _arrays(header, payload), draw.choice(values)
    names = [name for name, a in arrays.items() if a.dtype.kind == "f" and a.size]
    name = draw.choice(names)
    changed = arrays[name].copy()
    with np.errstate(all="ignore"):
        changed.reshape(-1)[draw.randrange(changed.size) if draw.random() < 0.7 else slice(None)] = value
    return _packed({**arrays, name: changed})


def _arrays(header: Header, payload: bytes) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(payload[slice(*header[name]["data_offsets"])], _DTYPES[header[name]["dtype"]]).reshape(
            header[name]["shape"]
        )
        for name in _names(header)
    }


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    names = {np.dtype(code): name for name, code in _DTYPES.items()}
    header: Header = {"__metadata__": {"format": "pt"}}
    payload = b""
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        offsets = [len(payload), len(payload) + len(data)]
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
        payload += data
    return join(header, payload)
