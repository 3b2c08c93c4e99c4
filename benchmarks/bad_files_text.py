"""JSON, YAML and rows of data, spoiled with an eye to what they mean."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

EXTREMES: list[Any] = [
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**400,
    0.5,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    True,
]
EXTREMES += [
    None,
    [],
    {},
    [[]],
    {"a": {"b": 1}},
    [1, "a", None],
    "\ud800",
    "é" * 3,
    "x" * 100_000,
    "../..",
    [2**31] * 3,
]
Place = tuple[str | int, ...]


def spoil_json(path: Path, draw: random.Random) -> tuple[str, bool]:
    """Change a JSON file; the name of the change, and whether it says the same still."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change = draw.choice([*_FIELDS] * 3 + [*_WHOLE])
    if change in _FIELDS:
        where = change(content, draw)
        path.write_bytes(json.dumps(content, indent=draw.choice([None, 2])).encode("utf-8"))
        return f"{change.__name__.strip('_')} {'.'.join(map(str, where))}", False
    path.write_bytes(change(content, draw))
    return change.__name__.strip("_"), change in _NEUTRAL


def spoil_yaml(path: Path, draw: random.Random) -> tuple[str, bool]:
    """The same for a YAML file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change = draw.choice([*_FIELDS] * 3 + [*_YAML])
    if change in _FIELDS:
        where = change(content, draw)
        path.write_bytes(yaml.safe_dump(content, sort_keys=False).encode("utf-8", "surrogatepass"))
        return f"{change.__name__.strip('_')} {'.'.join(map(str, where))}", False
    text = path.read_text(encoding="utf-8")
    path.write_bytes(change(text, draw))
    return change.__name__.strip("_"), change in _NEUTRAL


def spoil_rows(path: Path, draw: random.Random) -> tuple[str, bool]:
    """Change a line of a text file with rows."""
    lines = path.read_bytes().splitlines(keepends=True)
    change = draw.choice(_ROWS)
    number = draw.randrange(len(lines))
    path.write_bytes(b"".join([*lines[:number], change(lines[number], draw), *lines[number + 1 :]]))
    return change.__name__.strip("_"), False


# -- fields of JSON and YAML


def _places(content: Any, before: Place = ()) -> list[Place]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in items for place in [(*before, key), *_places(value, (*before, key))]]


def _parent(content: Any, place: Place) -> Any:
    for key in place[:-1]:
        content = content[key]
    return content


def _some_place(content: Any, draw: random.Random) -> Place:
    top = [place for place in _places(content) if len(place) <= 1]
    return draw.choice(top if draw.random() < 0.6 and top else _places(content))


def _remove_field(content: Any, draw: random.Random) -> Place:
    place = _some_place(content, draw)
    del _parent(content, place)[place[-1]]
    return place


def _rename_field(content: Any, draw: random.Random) -> Place:
    place = draw.choice([place for place in _places(content) if isinstance(place[-1], str)])
    parent = _parent(content, place)
    parent[draw.choice([f"{place[-1]}x", str(place[-1]).upper(), "", "peft_type"])] = parent.pop(place[-1])
    return place


def _set_field(content: Any, draw: random.Random) -> Place:
    place = _some_place(content, draw)
    _parent(content, place)[place[-1]] = copy.deepcopy(draw.choice(EXTREMES))
    return place


def _nudge_number(content: Any, draw: random.Random) -> Place:
    def is_number(place: Place) -> bool:
        return isinstance(_parent(content, place)[place[-1]], (int, float))

    numbers = [place for place in _places(content) if is_number(place)]
    if not numbers:
        return _set_field(content, draw)
    place = draw.choice(numbers)
    parent, key = _parent(content, place), place[-1]
    value = parent[key]
    parent[key] = draw.choice([value + 1, value * 2, -value, 10**6, not value])
    return place


def _retype_field(content: Any, draw: random.Random) -> Place:
    place = _some_place(content, draw)
    value = _parent(content, place)[place[-1]]
    _parent(content, place)[place[-1]] = draw.choice([str(value), [value], {"value": value}, json.dumps(value)])
    return place


def _add_field(content: Any, draw: random.Random) -> Place:
    if isinstance(content, dict):
        content[draw.choice(["runtime_config", "tomorrow", "\ud800", "peft_types", "0"])] = draw.choice(EXTREMES)
    return ("tomorrow",)


def _newer(content: Any, draw: random.Random) -> Place:
    if not isinstance(content, dict):
        return _set_field(content, draw)
    known = [key for key in ("format_version", "format", "peft_type", "schema") if key in content]
    key = draw.choice(known or ["format_version"])
    foreign = ["QPEFT_TOMORROW", "LORA", "ADALORA", "PREFIX_TUNING", "QPEFT_QPA", "IA3", "XLORA", "BOFT"]
    content[key] = draw.choice(foreign) if key == "peft_type" else draw.choice([2, 99, "2", 0, 1.5, True])
    return (key,)


def _without_effect(content: Any, draw: random.Random) -> Place:
    """The adapter is multiplied by nothing, or by what is no number."""
    adapter = content.get("host", content) if isinstance(content, dict) else None
    names = [name for name in ("lora_alpha", "alpha", "alpha_pattern") if isinstance(adapter, dict) and name in adapter]
    if not names:
        return _set_field(content, draw)
    name, factor = draw.choice(names), draw.choice([0, -0.0, 1e-300, float("inf"), float("nan"), 10**400])
    adapter[name] = {".*": factor} if name == "alpha_pattern" else factor
    return (name,)


_FIELDS: list[Callable[[Any, random.Random], Place]] = [
    *(_remove_field, _rename_field, _set_field, _set_field, _nudge_number, _retype_field, _add_field, _newer),
    _without_effect,
]  # fmt: skip

# -- whole JSON files


def _bom(content: Any, draw: random.Random) -> bytes:
    return json.dumps(content).encode("utf-8-sig")


def _utf16(content: Any, draw: random.Random) -> bytes:
    return json.dumps(content).encode("utf-16")


def _latin1(content: Any, draw: random.Random) -> bytes:
    return json.dumps({"note": "é", "content": content}, ensure_ascii=False).encode("latin-1", "replace")


def _duplicate_key(content: Any, draw: random.Random) -> bytes:
    key = draw.choice(list(content)) if isinstance(content, dict) else ""
    return (json.dumps(content)[:-1] + f", {json.dumps(key)}: {json.dumps(draw.choice(EXTREMES))}" + "}").encode()


def _not_json(content: Any, draw: random.Random) -> bytes:
    text = json.dumps(content)
    wrong = [text + ",", text[:-1] + ",}", "// a comment\n" + text, text.replace('"', "'"), text * 2]
    return draw.choice(wrong).encode()


def _other_top(content: Any, draw: random.Random) -> bytes:
    return json.dumps(draw.choice([[content], None, 1, "x", [], {}, [[["peft_type"]]], "peft_type"])).encode()


def _deep(content: Any, draw: random.Random) -> bytes:
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    return draw.choice([deep, json.dumps(content)[:-1] + f', "deep": {deep}' + "}", "[" * 100_000]).encode()


def _huge_digits(content: Any, draw: random.Random) -> bytes:
    return (json.dumps(content)[:-1] + ', "big": ' + "9" * 10_000 + "}").encode()


def _reordered(content: Any, draw: random.Random) -> bytes:
    """The same in another order and with other blanks."""
    if isinstance(content, dict):
        content = dict(sorted(content.items(), key=lambda _: draw.random()))
    return (json.dumps(content, indent=draw.choice([None, 1, 8]), ensure_ascii=draw.random() < 0.5) + "\n\n").encode()


_WHOLE = [_bom, _utf16, _latin1, _duplicate_key, _not_json, _other_top, _deep, _huge_digits, _reordered]

# -- whole YAML files

RUNS_CODE = "PWNED"  # replaced by a path; a file there means that code of the input ran


def _python_tag(text: str, draw: random.Random) -> bytes:
    tags = ["object/apply:os.system ['touch PWNED']", "name:os.system", "object/new:dict [[]]"]
    return text.replace("title: A tiny study", f"title: !!python/{draw.choice(tags)}").encode()


def _bomb(text: str, draw: random.Random) -> bytes:
    """Few lines that stand for a billion."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    where = draw.choice([text + "\n".join(lines), "\n".join(lines) + "\ntitle: *a11\n" + text, _in_place(text, lines)])
    return where.encode()


def _in_place(text: str, lines: list[str]) -> str:
    inside = "\n".join(f"      {line}" for line in lines)
    return text.replace("    r: 2\n", f"    r: 2\n{inside}\n", 1)


def _cycle(text: str, draw: random.Random) -> bytes:
    return text.replace("seeds:", "seeds: &s\n- *s\nold:").encode()


def _yaml_comment(text: str, draw: random.Random) -> bytes:
    """The same with a comment."""
    return f"# a comment\n{text}\n# the end\n".encode()


def _yaml_twice(text: str, draw: random.Random) -> bytes:
    return draw.choice([text + text, text + "\n---\n" + text, text + "name: other\n"]).encode()


def _yaml_encoding(text: str, draw: random.Random) -> bytes:
    changed = text.replace("tiny study", "tiny stüdy")
    return changed.encode(draw.choice(["latin-1", "utf-16", "utf-8-sig", "utf-32"]))


def _yaml_deep(text: str, draw: random.Random) -> bytes:
    return (text + "\ndeep: " + "[" * 5000 + "]" * 5000).encode()


def _yaml_break(text: str, draw: random.Random) -> bytes:
    broken = [text.replace("  ", "\t"), text.replace(":", "", 1), text.replace("- ", "-", 1), "- 1", ""]
    return draw.choice(broken).encode()


_YAML = [_python_tag, _bomb, _cycle, _yaml_comment, _yaml_twice, _yaml_encoding, _yaml_deep, _yaml_break]
_NEUTRAL = (_reordered, _yaml_comment)

# -- rows


def _nul(line: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(line))
    return line[:place] + b"\0" * draw.choice([1, 3]) + line[place:]


def _torn(line: bytes, draw: random.Random) -> bytes:
    return line[: draw.randrange(len(line))]


def _more_fields(line: bytes, draw: random.Random) -> bytes:
    return line.rstrip() + draw.choice([b",1,2\n", b"\t1\n", b"\t\n", b",\n"])


def _quotes(line: bytes, draw: random.Random) -> bytes:
    return draw.choice([b'"', b"'", b'""', b'\\"']) + line


def _other_encoding(line: bytes, draw: random.Random) -> bytes:
    return line.replace(b"e", draw.choice([b"\xe9", b"\xff", b"\xed\xa0\x80", b"\xc3"]), 1)


def _enormous(line: bytes, draw: random.Random) -> bytes:
    return line.replace(b"e", b"e" * 3_000_000, 1)


def _mixed_types(line: bytes, draw: random.Random) -> bytes:
    rows: list[Any] = [{"text": value} for value in (5, None, ["a"], {"a": 1})]
    rows += [{"other": "x"}, 7, "x", [], None]
    return json.dumps(draw.choice(rows)).encode() + b"\n"


def _twice(line: bytes, draw: random.Random) -> bytes:
    return line * 2


def _not_a_line(line: bytes, draw: random.Random) -> bytes:
    doubled = line.rstrip(b"\n") + b"\x85" + line
    return draw.choice([b"\n", b"\r", b"   \n", line.replace(b"\n", b"\r\n"), doubled, b"\xe2\x80\xa8\n"])


_ROWS = [_nul, _torn, _more_fields, _quotes, _other_encoding, _enormous, _mixed_types, _twice, _not_a_line]
