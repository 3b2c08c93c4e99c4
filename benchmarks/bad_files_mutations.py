"""The damage that `bad_files.py` does to a copy of valid files: to bytes, to content, to the folder."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bad_files_made import METHODS, OTHERS

EXTREMES: list[Any] = [
    *(0, -1, 1, 3, 2**31, 2**63, 10**400, 0.5, 1e308, -1e308, float("nan"), float("inf"), "", "x", True, None),
    *([], {}, [[]], {"a": {"b": 1}}, [1, "a", None], "\ud800", "é" * 3, "x" * 100_000, "../..", [2**31] * 3),
]
MARKER = "CODE-RAN"  # replaced by the path of a file that exists only if code of the input ran
READ = ("adapter_config.json", "adapter_model.safetensors", "task.json", "config.json", "metrics.jsonl", "result.json")
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1", "BOOL": "?"}
Header = dict[str, Any]
Place = tuple[str | int, ...]
Draw = random.Random


@dataclass(frozen=True)
class Mutation:
    """`kind` of change, to which `file`, in which way; `neutral` if the meaning of the content is unchanged."""

    kind: str
    file: str
    how: str
    neutral: bool = False


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return (os.system, (f"touch {self.marker}",))


def mutate(copy: Path, good: Path, marker: Path, draw: Draw) -> Mutation:
    """Damage one file of `copy`, a file or folder equal to `good`; code in it would create `marker`."""
    file = draw.choice(_targets(copy))
    name = file.name if file == copy else file.relative_to(copy).as_posix()
    special = SPECIAL.get(file.suffix)
    kind = draw.choice(["bytes", "bytes", "tree", *[special] * (4 if special else 0)])
    how = _change_folder(file, copy, good, marker, draw) if kind == "tree" else DAMAGE[kind](file, draw)
    if kind == "yaml":
        file.write_bytes(file.read_bytes().replace(MARKER.encode(), str(marker).encode()))
    return Mutation(kind, name, how, how in NEUTRAL)


def _targets(copy: Path) -> list[Path]:
    """The files that a load reads."""
    if copy.is_file():
        return [copy]
    if (copy / "checkpoints").is_dir():  # a run
        checkpoints = [p for p in (copy / "checkpoints").rglob("*") if p.is_file()]
        return [copy / name for name in READ if (copy / name).is_file()] * 3 + checkpoints
    return [p for p in sorted(copy.rglob("*")) if p.name in READ or p.suffix == ".png"]


# -- bytes


def _damage_bytes(file: Path, draw: Draw) -> str:
    how = draw.choice(["flip"] * 3 + ["noise", "truncate", "extend", "empty", "zeros", "cut"])
    content = file.read_bytes()
    i = draw.randrange(len(content))
    if how == "flip":
        i = i if draw.random() < 0.5 else draw.randrange(min(64, len(content)))
        changed = content[:i] + bytes([content[i] ^ (1 << draw.randrange(8))]) + content[i + 1 :]
    elif how == "noise":
        new = draw.randbytes(draw.choice([1, 2, 8, 64]))
        changed = content[:i] + new + content[i + len(new) :]
    elif how == "truncate":
        changed = content[: draw.choice([i, len(content) - 1, 8, 1])]
    elif how == "extend":
        changed = content + draw.choice([b"\0", b"\0" * 4096, draw.randbytes(7), content])
    elif how == "empty":
        changed = b""
    elif how == "zeros":  # a file that was not flushed before a power failure
        begin = draw.choice([0, i])
        changed = content[:begin] + b"\0" * (len(content) - begin)
    else:
        changed = content[:i] + content[i + draw.choice([1, 4, 100]) :]
    file.write_bytes(changed)
    return how


# -- the folder


def _change_folder(file: Path, copy: Path, good: Path, marker: Path, draw: Draw) -> str:
    changes = ["remove", "rename", "folder", "link", "dangling", "loop", "pipe", "pickle"]
    is_adapter = good.name.startswith(("adapter-", "exported-"))
    how = draw.choice([*changes, *(["bin", "swap", "swap", "swap", "swap"] if is_adapter else [])])
    if how == "swap":
        form, method = good.name.split("-")[:2]
        names = [f"{form}-{method}-{other}" for other in OTHERS]
        other = draw.choice([*names, *(f"adapter-{other}" for other in METHODS if other != method)])
        shutil.copyfile(good.parent / other / file.name, file)
        return f"swap {other}"
    aside = copy.parent / "aside"
    shutil.move(file, aside)
    if how == "rename":
        shutil.move(aside, file.with_name(draw.choice([f"{file.name}.bak", file.name.upper(), f".{file.name}"])))
    elif how == "folder":
        file.mkdir()
    elif how in ("link", "dangling", "loop"):
        file.symlink_to({"link": aside, "dangling": copy / "nowhere", "loop": file}[how])
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "pickle":
        file.write_bytes(pickle.dumps(_Payload(marker), protocol=draw.choice([0, 2, 4])))
    elif how == "bin":
        (file if file.suffix == ".json" else file.with_suffix(".bin")).write_bytes(pickle.dumps(_Payload(marker)))
    return how


# -- tensors, read and written without the safetensors library


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


def _damage_tensors(file: Path, draw: Draw) -> str:
    header, payload = split(file.read_bytes())
    name = draw.choice([name for name in header if name != "__metadata__"])
    how = draw.choice([*_HEADERS, *_ARRAYS, "duplicate key", "header length", "deep header", "no tensors"])
    if how in _HEADERS:
        _HEADERS[how](header, name, draw)
        changed = join(header, payload)
    elif how in _ARRAYS:
        with np.errstate(all="ignore"):
            changed = pack(_ARRAYS[how](tensors(header, payload), name, draw))
    elif how == "duplicate key":
        entry = json.dumps({**header[name], "shape": [1]})
        changed = join(json.dumps(header)[:-1] + f", {json.dumps(name)}: {entry}}}", payload)
    elif how == "header length":
        length = draw.choice([2**63, 2**32, 0, 1, 10**9])
        changed = length.to_bytes(8, "little") + join(header, payload)[8:]
    elif how == "deep header":
        changed = join('{"a":' * 100_000 + "1" + "}" * 100_000, payload)
    else:
        changed = join({}, b"")
    file.write_bytes(changed)
    return how


def _rename_tensor(header: Header, name: str, draw: Draw) -> None:
    names = [f"{name}x", name.upper(), "", f"module.{name}", name.rpartition(".")[2], f"{name}\ud800"]
    header[draw.choice(names)] = header.pop(name)


def _change_dtype(header: Header, name: str, draw: Draw) -> None:
    header[name]["dtype"] = draw.choice([*DTYPES, "BF16", "F8_E4M3", "X1", 7])


def _change_shape(header: Header, name: str, draw: Draw) -> None:
    shape = header[name]["shape"]
    header[name]["shape"] = draw.choice([shape[::-1], [*shape, 1], [], [2**62, 4], [-1], "x", [2**40, 0]])


def _change_offsets(header: Header, name: str, draw: Draw) -> None:
    begin, end = header[name]["data_offsets"]
    wrong = [[begin + 4, end + 4], [end, begin], [0, 2**63], [begin], [begin, end - 4], None]
    header[name]["data_offsets"] = draw.choice(wrong)


def _swap_data(header: Header, name: str, draw: Draw) -> None:
    other = draw.choice([other for other in header if other != "__metadata__"])
    header[name], header[other] = header[other], header[name]


def _with_value(arrays: dict[str, np.ndarray], draw: Draw, values: list[float]) -> dict[str, np.ndarray]:
    name = draw.choice([name for name, array in arrays.items() if array.dtype.kind == "f" and array.size])
    changed = arrays[name].copy()
    changed.reshape(-1)[draw.randrange(changed.size) if draw.random() < 0.7 else slice(None)] = draw.choice(values)
    return {**arrays, name: changed}


_HEADERS: dict[str, Callable[[Header, str, Draw], None]] = {
    "rename": _rename_tensor,
    "dtype": _change_dtype,
    "shape": _change_shape,
    "offsets": _change_offsets,
    "swap data": _swap_data,
}
_ARRAYS: dict[str, Callable[[dict[str, np.ndarray], str, Draw], dict[str, np.ndarray]]] = {
    "remove tensor": lambda arrays, name, draw: {k: v for k, v in arrays.items() if k != name},
    "add tensor": lambda arrays, name, draw: {
        **arrays,
        draw.choice(["foreign", f"{name}.more", "base_model.model.lm_head.weight"]): np.ones((3, 2), np.float32),
    },
    "cast": lambda arrays, name, draw: {
        **arrays,
        name: arrays[name].astype(draw.choice(["<f2", "<f8", "<i4", "u1"])),
    },
    "reshape": lambda arrays, name, draw: {
        **arrays,
        name: draw.choice([(a := arrays[name]).T, a.ravel(), a[None], a[:-1] if a.ndim else a[None]]),
    },
    "not finite": lambda arrays, name, draw: _with_value(arrays, draw, [np.nan, np.inf, -np.inf]),
    "huge": lambda arrays, name, draw: _with_value(arrays, draw, [3e38, -1e30, 1e20]),
    "shuffle tensors": lambda arrays, name, draw: dict(draw.sample(list(arrays.items()), len(arrays))),
}

# -- fields of JSON and YAML


def _damage_json(file: Path, draw: Draw) -> str:
    content = json.loads(file.read_text(encoding="utf-8"))
    how = draw.choice([*_FIELDS] * 3 + [*_JSON])
    if how in _FIELDS:
        where = _FIELDS[how](content, draw)
        file.write_bytes(json.dumps(content, indent=draw.choice([None, 2])).encode("utf-8"))
        return f"{how} {'.'.join(map(str, where))}"
    file.write_bytes(_JSON[how](content, json.dumps(content), draw))
    return how


def _damage_yaml(file: Path, draw: Draw) -> str:
    text = file.read_text(encoding="utf-8")
    how = draw.choice([*_FIELDS] * 3 + [*_YAML])
    if how in _FIELDS:
        content = yaml.safe_load(text)
        where = _FIELDS[how](content, draw)
        file.write_bytes(yaml.safe_dump(content, sort_keys=False).encode("utf-8", "surrogatepass"))
        return f"{how} {'.'.join(map(str, where))}"
    file.write_bytes(_YAML[how](text, draw))
    return how


def _places(content: Any, before: Place = ()) -> list[Place]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in items for place in [(*before, key), *_places(value, (*before, key))]]


def _parent(content: Any, place: Place) -> Any:
    for key in place[:-1]:
        content = content[key]
    return content


def _some_place(content: Any, draw: Draw) -> tuple[Place, Any]:
    """A field, and the object or list that contains it."""
    top = [place for place in _places(content) if len(place) <= 1]
    place = draw.choice(top if draw.random() < 0.6 and top else _places(content))
    return place, _parent(content, place)


def _remove_field(content: Any, draw: Draw) -> Place:
    place, parent = _some_place(content, draw)
    del parent[place[-1]]
    return place


def _rename_field(content: Any, draw: Draw) -> Place:
    place = draw.choice([place for place in _places(content) if isinstance(place[-1], str)])
    parent = _parent(content, place)
    parent[draw.choice([f"{place[-1]}x", str(place[-1]).upper(), "", "peft_type"])] = parent.pop(place[-1])
    return place


def _set_field(content: Any, draw: Draw) -> Place:
    place, parent = _some_place(content, draw)
    parent[place[-1]] = copy.deepcopy(draw.choice(EXTREMES))
    return place


def _change_number(content: Any, draw: Draw) -> Place:
    numbers = [place for place in _places(content) if isinstance(_parent(content, place)[place[-1]], (int, float))]
    if not numbers:
        return _set_field(content, draw)
    place = draw.choice(numbers)
    parent, key = _parent(content, place), place[-1]
    value = parent[key]
    parent[key] = draw.choice([value + 1, value * 2, -value, 10**6, not value])
    return place


def _change_type(content: Any, draw: Draw) -> Place:
    place, parent = _some_place(content, draw)
    value = parent[place[-1]]
    parent[place[-1]] = draw.choice([str(value), [value], {"value": value}, json.dumps(value)])
    return place


def _add_field(content: Any, draw: Draw) -> Place:
    if isinstance(content, dict):
        content[draw.choice(["runtime_config", "tomorrow", "\ud800", "peft_types", "0"])] = draw.choice(EXTREMES)
    return ("tomorrow",)


def _newer_version(content: Any, draw: Draw) -> Place:
    if not isinstance(content, dict):
        return _set_field(content, draw)
    present = [key for key in ("format_version", "format", "peft_type", "schema") if key in content]
    key = draw.choice(present or ["format_version"])
    foreign = ["QPEFT_TOMORROW", "LORA", "ADALORA", "PREFIX_TUNING", "QPEFT_QPA", "IA3", "XLORA", "BOFT"]
    content[key] = draw.choice(foreign) if key == "peft_type" else draw.choice([2, 99, "2", 0, 1.5, True])
    return (key,)


def _without_effect(content: Any, draw: Draw) -> Place:
    """The adapter is multiplied by zero, or by a value that is not finite."""
    adapter = content.get("host", content) if isinstance(content, dict) else None
    names = [name for name in ("lora_alpha", "alpha", "alpha_pattern") if isinstance(adapter, dict) and name in adapter]
    if not names:
        return _set_field(content, draw)
    name, factor = draw.choice(names), draw.choice([0, -0.0, 1e-300, float("inf"), float("nan"), 10**400])
    adapter[name] = {".*": factor} if name == "alpha_pattern" else factor
    return (name,)


_FIELDS: dict[str, Callable[[Any, Draw], Place]] = {
    "remove field": _remove_field,
    "rename field": _rename_field,
    "set field": _set_field,
    "replace field": _set_field,
    "change number": _change_number,
    "change type": _change_type,
    "add field": _add_field,
    "newer version": _newer_version,
    "without effect": _without_effect,
}
_DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000

# -- whole files of JSON and YAML


def _duplicate_key(content: Any, text: str, draw: Draw) -> bytes:
    key = draw.choice(list(content)) if isinstance(content, dict) else ""
    return (text[:-1] + f", {json.dumps(key)}: {json.dumps(draw.choice(EXTREMES))}" + "}").encode()


def _reorder(content: Any, text: str, draw: Draw) -> bytes:
    """The same content in another order, with other white space."""
    if isinstance(content, dict):
        content = dict(sorted(content.items(), key=lambda _: draw.random()))
    return (json.dumps(content, indent=draw.choice([None, 1, 8]), ensure_ascii=draw.random() < 0.5) + "\n\n").encode()


_JSON: dict[str, Callable[[Any, str, Draw], bytes]] = {
    "byte order mark": lambda content, text, draw: text.encode("utf-8-sig"),
    "utf-16": lambda content, text, draw: text.encode("utf-16"),
    "latin-1": lambda content, text, draw: f'{{"note": "é", "content": {text}}}'.encode("latin-1", "replace"),
    "duplicate key": _duplicate_key,
    "not json": lambda content, text, draw: draw.choice(
        [text + ",", text[:-1] + ",}", "// a comment\n" + text, text.replace('"', "'"), text * 2]
    ).encode(),
    "other top level": lambda content, text, draw: json.dumps(
        draw.choice([[content], None, 1, "x", [], {}, [[["peft_type"]]], "peft_type"])
    ).encode(),
    "deep": lambda content, text, draw: draw.choice(
        [_DEEP, text[:-1] + f', "deep": {_DEEP}' + "}", "[" * 100_000]
    ).encode(),
    "many digits": lambda content, text, draw: (text[:-1] + ', "big": ' + "9" * 10_000 + "}").encode(),
    "reorder": _reorder,
}


def _python_tag(text: str, draw: Draw) -> bytes:
    tags = [f"object/apply:os.system ['touch {MARKER}']", "name:os.system", "object/new:dict [[]]"]
    return text.replace("title: A tiny study", f"title: !!python/{draw.choice(tags)}").encode()


def _billion_laughs(text: str, draw: Draw) -> bytes:
    """A few lines that expand to a billion values."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    inside = text.replace("    r: 2\n", "    r: 2\n" + "\n".join(f"      {line}" for line in lines) + "\n", 1)
    return draw.choice([text + "\n".join(lines), "\n".join(lines) + "\ntitle: *a11\n" + text, inside]).encode()


_YAML: dict[str, Callable[[str, Draw], bytes]] = {
    "python tag": _python_tag,
    "billion laughs": _billion_laughs,
    "cycle": lambda text, draw: text.replace("seeds:", "seeds: &s\n- *s\nold:").encode(),
    "comment": lambda text, draw: f"# a comment\n{text}\n# the end\n".encode(),
    "twice": lambda text, draw: draw.choice([text + text, text + "\n---\n" + text, text + "name: other\n"]).encode(),
    "encoding": lambda text, draw: text.replace("tiny study", "tiny stüdy").encode(
        draw.choice(["latin-1", "utf-16", "utf-8-sig", "utf-32"])
    ),
    "deep": lambda text, draw: (text + "\ndeep: " + "[" * 5000 + "]" * 5000).encode(),
    "not yaml": lambda text, draw: draw.choice(
        [text.replace("  ", "\t"), text.replace(":", "", 1), text.replace("- ", "-", 1), "- 1", ""]
    ).encode(),
}

# -- rows


def _damage_rows(file: Path, draw: Draw) -> str:
    lines = file.read_bytes().splitlines(keepends=True)
    how, number = draw.choice(list(_ROWS)), draw.randrange(len(lines))
    lines[number] = _ROWS[how](lines[number], draw)
    file.write_bytes(b"".join(lines))
    return how


def _nul(line: bytes, draw: Draw) -> bytes:
    place = draw.randrange(len(line))
    return line[:place] + b"\0" * draw.choice([1, 3]) + line[place:]


def _other_values(line: bytes, draw: Draw) -> bytes:
    rows: list[Any] = [{"text": value} for value in (5, None, ["a"], {"a": 1})]
    return json.dumps(draw.choice([*rows, {"other": "x"}, 7, "x", [], None])).encode() + b"\n"


def _line_ends(line: bytes, draw: Draw) -> bytes:
    doubled = line.rstrip(b"\n") + b"\x85" + line
    return draw.choice([b"\n", b"\r", b"   \n", line.replace(b"\n", b"\r\n"), doubled, b"\xe2\x80\xa8\n"])


_ROWS: dict[str, Callable[[bytes, Draw], bytes]] = {
    "nul": _nul,
    "torn": lambda line, draw: line[: draw.randrange(len(line))],
    "more fields": lambda line, draw: line.rstrip() + draw.choice([b",1,2\n", b"\t1\n", b"\t\n", b",\n"]),
    "quotes": lambda line, draw: draw.choice([b'"', b"'", b'""', b'\\"']) + line,
    "encoding": lambda line, draw: line.replace(b"e", draw.choice([b"\xe9", b"\xff", b"\xed\xa0\x80", b"\xc3"]), 1),
    "enormous": lambda line, draw: line.replace(b"e", b"e" * 3_000_000, 1),
    "other values": _other_values,
    "twice": lambda line, draw: line * 2,
    "line ends": _line_ends,
}

SPECIAL = {".safetensors": "tensors", ".json": "json", ".yaml": "yaml"} | dict.fromkeys(
    (".jsonl", ".csv", ".tsv", ".txt"), "rows"
)
DAMAGE: dict[str, Callable[[Path, Draw], str]] = {
    "bytes": _damage_bytes,
    "tensors": _damage_tensors,
    "json": _damage_json,
    "yaml": _damage_yaml,
    "rows": _damage_rows,
}
NEUTRAL = {"link", "shuffle tensors", "reorder", "comment"}
