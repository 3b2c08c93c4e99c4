"""Damages valid files in thousands of ways and loads each as a user would: a correct load, or a
clear error.

    python benchmarks/bad_files.py --out bad-files [--mutations 10000] [--seed 0]

The valid files are made once, for a tiny base: compact adapters and exported adapters. A
mutation damages one file of a copy. A process of its own, with limits on time and memory, loads it
in up to two ways and compares a successful load with the content of the file. OUT/bad-files.jsonl
has one line per mutation. Exit code 1: a load had a wrong outcome.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pebble
import torch
from peft import LoraConfig, PeftModel, PeftType, PrefixTuningConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.errors import InputError

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from tiny_models import llama, save_base

SECONDS = 60.0  # a load that takes longer hangs
MEMORY = 3 * 2**30  # bytes of address space for a load
RIGHT = ("correct", "refused", "refused by PEFT", "loaded by PEFT")
# errors of stock PEFT before it calls qpeft
PEFT_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    OSError,
    OverflowError,
    SafetensorError,
)
PEFT_WAYS = ("PeftModel.from_pretrained", "load_adapter over")
# a changed value of these takes effect, since no other file repeats it
FREE_FIELDS = (
    "lora_alpha",
    "use_rslora",
    "alpha_pattern",
    "rank_pattern",
    "r",
    "alpha",
    "target_modules",
)
IDS = torch.arange(24).view(2, 12) * 7 % 250
Draw = random.Random


class WrongError(Exception):
    """A load with a wrong outcome, which is the text before the colon."""


class World(NamedTuple):
    """The valid files by name, the base and all logits; made before any process is forked."""

    goods: dict[str, Path]
    base: Any
    logits: dict[str, torch.Tensor]  # of adapters, and of "base"


class Load(NamedTuple):
    """A load of `path`, a damaged copy of the file or folder `name`; `neutral` if its meaning is
    unchanged.
    """

    world: World
    name: str
    path: Path
    neutral: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the valid files and the results"
    )
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    world = prepare(options.out / "made")
    found = Counter[tuple[str, str]]()
    with (options.out / "bad-files.jsonl").open("w") as log:
        for number in range(options.mutations):
            row = mutated(world, f"{options.seed} {number}")
            log.write(json.dumps(row) + "\n")
            found.update((row["good"].partition("-")[0], one["outcome"]) for one in row["loads"])
            if wrong := [one for one in row["loads"] if one["outcome"] not in RIGHT]:
                print(json.dumps({**row, "loads": wrong}), flush=True)
    for (kind, outcome), count in sorted(found.items()):
        print(f"{kind:10} {outcome:20} {count:6}")
    return int(any(outcome not in RIGHT for _, outcome in found))


def mutated(world: World, seed: str) -> dict[str, Any]:
    """Damage a file and load it in up to two ways, each in a process of its own."""
    draw = random.Random(seed)
    name = draw.choice([*world.goods])
    with tempfile.TemporaryDirectory() as place:
        path = shutil.copytree(world.goods[name], Path(place, name))
        how = damage(path, world.goods[name], Path(place, "code-ran"), draw)
        first, *others = WAYS[name.partition("-")[0]]
        asked = Load(world, name, path, how.endswith(NEUTRAL))
        loads = [in_child(asked, way) for way in (first, *draw.sample(others, min(1, len(others))))]
        if Path(place, "code-ran").exists():
            loads.append({"way": "any", "outcome": "code ran"})
    return {"good": name, "how": how, "loads": loads}


def in_child(asked: Load, way: str) -> dict[str, str]:
    """The outcome of a load in a separate process, which may hang or crash."""
    load = pebble.concurrent.process(
        _be_child, timeout=SECONDS, context=multiprocessing.get_context("fork")
    )
    try:
        return load(asked, way).result()
    except TimeoutError:
        return {"way": way, "outcome": "hang"}
    except pebble.ProcessExpired as end:
        return {"way": way, "outcome": f"crash {end.exitcode}"}


def _be_child(asked: Load, way: str) -> dict[str, str]:
    gc.disable()
    devnull = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(devnull, number)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    logging.raiseExceptions = (
        False  # a handler of transformers may hold a stream that a test has closed
    )
    return outcome_of(asked, way)


# -- valid files

_TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
_LORA: dict[str, Any] = {**_TASK, "target_modules": ["q_proj", "v_proj", "down_proj"]}
_QPA: dict[str, Any] = {"hidden": (6, 5), "chunk_size": 32, "n_layers": 3}
EXPORTED = ("qpa", "quantum_peft", "sora")
CONFIGS: dict[str, Callable[[int], Any]] = {
    "qpa": lambda seed: qpeft.QPAConfig(**_LORA, **_QPA, r=2, seed=seed),
    "quantum_peft": lambda seed: qpeft.QuantumPeftConfig(
        **_LORA, r=2, seed=seed, frame="gradient", frame_rank=8
    ),
    "attached_lora": lambda seed: LoraConfig(**_LORA, r=2),
    "attached_prefix": lambda seed: PrefixTuningConfig(**_TASK, num_virtual_tokens=4),
    "qaa": lambda seed: qpeft.QAAConfig(
        **_TASK, target_modules=["q_proj", "v_proj"], n_layers=2, seed=seed
    ),
    "sora": lambda seed: qpeft.SoRAConfig(**_LORA, r=2, seed=seed),
    "bottleneck": lambda seed: qpeft.BottleneckConfig(**_TASK, bottleneck_size=2, seed=seed),
}


def prepare(folder: Path) -> World:
    """Make the valid files, and the outputs of their models."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 257,
        "hidden_size": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    save_base(folder / "base", llama(**sizes, initializer_range=0.2))
    for name in CONFIGS:
        _make_adapter(folder, name, 0)
        _make_adapter(folder / "others", name, 1, folder / "base")  # to exchange files with
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    adapters = sorted([*folder.glob("adapter-*"), *folder.glob("exported-*")])
    goods = {path.name: path for path in adapters}
    logits = {
        name: logits_of(qpeft.load(copy.deepcopy(base), path)) for name, path in goods.items()
    }
    logits["base"] = logits_of(base)
    world = World(goods, base, logits)
    for way in WAYS["adapter"].values():  # forked processes find everything imported
        way(Load(world, "adapter-qpa", goods["adapter-qpa"], neutral=True))
    gc.freeze()
    return world


def _make_adapter(folder: Path, name: str, seed: int, base: Path | None = None) -> None:
    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base or folder / "base"), CONFIGS[name](seed)
    )
    if name.startswith("attached"):
        model = qpeft.attach(model, qpeft.QPAGeneratorConfig(**_QPA, seed=seed))
    if name == "quantum_peft":
        qpeft.fit_frames(model, [{"input_ids": torch.arange(40).view(2, 20)}])
    with torch.no_grad():  # change all trainable parameters, as training does
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_((parameter != 0) * 0.1 + 0.05 * torch.randn(parameter.shape))
    qpeft.save(model, folder / f"adapter-{name}")
    if name in EXPORTED:
        qpeft.export(model.eval(), folder / f"exported-{name}")


# -- damage

EXTREMES: list[Any] = [
    *(
        0,
        -1,
        3,
        2**31,
        2**63,
        10**400,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        True,
        None,
        [],
        {},
        [[]],
    ),
    *(
        {"a": {"b": 1}},
        [1, "a", None],
        "\ud800",
        "x" * 100_000,
        "../..",
        [2**31] * 3,
        "LORA",
        "IA3",
        "QPEFT_NONE",
    ),
]
READ = ("adapter_config.json", "adapter_model.safetensors")
NEUTRAL = "reorder"


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def damage(path: Path, good: Path, marker: Path, draw: Draw) -> str:
    """Damage one file of `path`, a copy of `good`; code in it would create `marker`. Returns the
    file and the way.
    """
    files = sorted(p for p in path.iterdir() if p.name in READ)
    file = draw.choice(files)
    kinds: list[Callable[..., str]] = [_damage_bytes, _damage_place]
    special = {".safetensors": _damage_tensors, ".json": _damage_fields}.get(file.suffix)
    how = draw.choice([*kinds, *[special] * 3] if special else kinds)(file, good, marker, draw)
    return f"{file.name}: {how}"


def _damage_bytes(file: Path, good: Path, marker: Path, draw: Draw) -> str:
    content = file.read_bytes()
    i = draw.randrange(len(content))
    changed = {
        "flip": content[:i] + bytes([content[i] ^ (1 << draw.randrange(8))]) + content[i + 1 :],
        "noise": content[:i] + draw.randbytes(8) + content[i + 8 :],
        "truncate": content[:i],
        "extend": content + draw.choice([b"\0" * 4096, draw.randbytes(7), content]),
        "empty": b"",
        "zeros": content[:i] + b"\0" * (len(content) - i),  # not flushed before a power failure
        "cut": content[:i] + content[i + draw.choice([1, 4, 100]) :],
        "encoding": content.replace(b"e", draw.choice([b"\xe9", b"\xff", b"\0"]), 1),
        "utf-16": content.decode("latin-1").encode("utf-16"),
        "python tag": f"!!python/object/apply:os.system ['touch {marker}']".encode(),
        "pickle": pickle.dumps(_Payload(marker), protocol=draw.choice([0, 2, 4])),
    }
    how = draw.choice(list(changed))
    file.write_bytes(changed[how])
    return how


def _damage_place(file: Path, good: Path, marker: Path, draw: Draw) -> str:
    """The file is missing, or that of another adapter."""
    file.unlink()
    if draw.random() < 0.3 or not (good.parent / "others" / good.name).exists():
        return "remove"
    other = draw.choice([good.name, *(f"adapter-{name}" for name in CONFIGS)])
    shutil.copyfile(good.parent / "others" / other / file.name, file)
    return f"swap {other}"


def _damage_tensors(file: Path, good: Path, marker: Path, draw: Draw) -> str:
    arrays = {name: array.copy() for name, array in load(file.read_bytes()).items()}
    name = draw.choice(sorted(arrays))
    how = draw.choice(["rename", "remove", "add", "cast", "reshape", "value", "value"])
    array = arrays.pop(name)
    if how == "rename":
        arrays[draw.choice([f"{name}x", "", f"module.{name}"])] = array
    elif how == "add":
        arrays |= {name: array, "base_model.model.lm_head.weight": np.ones((3, 2), np.float32)}
    elif how == "cast":
        arrays[name] = array.astype(draw.choice(["<f2", "<f8", "<i4", "u1"]))
    elif how == "reshape":
        arrays[name] = np.ascontiguousarray(
            draw.choice([array.T, array.ravel(), array[None], array.ravel()[:-1]])
        )
    elif how == "value":
        with np.errstate(all="ignore"):
            value = np.asarray(draw.choice([np.nan, np.inf, 3e38, 1e20])).astype(array.dtype)
        array.reshape(-1)[draw.randrange(max(1, array.size)) :] = value
        arrays[name] = array
    file.write_bytes(save(arrays))
    return how


def _damage_fields(file: Path, good: Path, marker: Path, draw: Draw) -> str:
    content = json.loads(file.read_text(encoding="utf-8"))
    how = draw.choice(["reorder", "remove", "rename", "set", "set", "change", "top level"])
    parent, key = _some_field(content, draw)
    if how == "remove":
        del parent[key]
    elif how == "rename" and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
    elif how == "set":
        parent[key] = copy.deepcopy(draw.choice(EXTREMES))
    elif how == "change":
        old = parent[key]
        number = [old + 1, old * 2, -old, 10**6] if isinstance(old, int | float) else []
        parent[key] = draw.choice([*number, str(old), [old], {"value": old}])
    elif how == "top level":
        content = draw.choice([[content], None, 1, "x", [], {}])
    elif isinstance(content, dict):
        content, how = dict(sorted(content.items(), key=lambda _: draw.random())), "reorder"
    file.write_bytes(json.dumps(content).encode("utf-8", "surrogatepass"))
    return how if how == NEUTRAL else f"{how} {key}"


def _some_field(content: Any, draw: Draw) -> tuple[Any, Any]:
    """An object or list, and one of its keys."""
    key = draw.choice(list(content) if isinstance(content, dict) else range(len(content)))
    if isinstance(content[key], dict | list) and content[key] and draw.random() < 0.6:
        return _some_field(content[key], draw)
    return content, key


# -- loads


def outcome_of(asked: Load, way: str) -> dict[str, str]:
    """The way, the outcome and the message of a load."""
    try:
        WAYS[asked.name.partition("-")[0]][way](asked)
        outcome = "correct"
        message = ""
    except Exception as error:
        outcome = judge(way, error)
        message = f"{type(error).__name__}: {error}"[:300]
        if outcome not in RIGHT and way in PEFT_WAYS and _is_of_peft(asked.path):
            outcome = "loaded by PEFT"
    return {"way": way, "outcome": outcome, "message": message}


def judge(way: str, error: Exception) -> str:
    message = str(error)
    if isinstance(error, WrongError):
        return message.partition(":")[0]
    if isinstance(error, MemoryError) or "allocate memory" in message:
        return "memory"
    if len(message) > 4000 or not message.strip():
        return "unclear message"
    if "\ud800" in message:
        return "unprintable message"
    if isinstance(error, InputError):
        return "refused"
    return (
        "refused by PEFT" if way in PEFT_WAYS and isinstance(error, PEFT_ERRORS) else "wrong error"
    )


def _is_of_peft(folder: Path) -> bool:
    """Whether PEFT alone loads the folder, because adapter_config.json names one of PEFT's methods."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config.get("peft_type") in PeftType.__members__


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def _load(asked: Load) -> None:
    _check(asked, qpeft.load(copy.deepcopy(asked.world.base), asked.path))


def _from_pretrained(asked: Load) -> None:
    _check(asked, PeftModel.from_pretrained(copy.deepcopy(asked.world.base), str(asked.path)))


def _load_over(asked: Load) -> None:
    """Into a present adapter, which a refused load must not change."""
    model = qpeft.load(copy.deepcopy(asked.world.base), asked.world.goods[asked.name])
    try:
        model.load_adapter(str(asked.path), "default")
    except Exception:
        if not torch.equal(logits_of(model), asked.world.logits[asked.name]):
            raise WrongError("present adapter changed: by a refused load") from None
        raise
    _check(asked, model)


def _check(asked: Load, model: Any) -> None:
    """The loaded adapter has the tensors of the file, and its logits follow from them."""
    logits = logits_of(model)
    good = asked.world.goods[asked.name]
    try:
        expected, usual = (
            load_file(path / "adapter_model.safetensors") for path in (asked.path, good)
        )
    except (OSError, SafetensorError) as error:
        raise WrongError(f"invalid file loaded: {error}") from error
    configs = [
        json.loads((p / "adapter_config.json").read_text(encoding="utf-8"))
        for p in (asked.path, good)
    ]
    one, other = ({**config, **(config.get("host") or {})} for config in configs)
    is_changed = any(one.get(key) != other.get(key) for key in FREE_FIELDS)
    is_huge = any(
        np.abs(array.astype(np.float64)).max(initial=0) > 1e15 for array in expected.values()
    )
    if not torch.isfinite(logits).all() and not is_changed and not is_huge:
        raise WrongError("not finite: the logits are NaN or Inf")
    if torch.equal(logits, asked.world.logits["base"]):
        raise WrongError("base model returned: the load changed no logit")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        found = load_file(Path(folder, "adapter_model.safetensors"))
    if not _same(
        found,
        {
            name: array.astype(found[name].dtype)
            for name, array in expected.items()
            if name in found
        },
    ):
        raise WrongError("other values: the tensors differ from the file")
    is_same = asked.neutral or (_same(expected, usual) and not is_changed)
    if is_same and not torch.equal(logits, asked.world.logits[asked.name]):
        raise WrongError("other logits: the meaning of the file is unchanged, the model is not")


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


_WAYS = {"qpeft.load": _load}
WAYS: dict[str, dict[str, Callable[[Load], None]]] = {
    "adapter": {
        **_WAYS,
        "PeftModel.from_pretrained": _from_pretrained,
        "load_adapter over": _load_over,
    },
    "exported": _WAYS,
}


if __name__ == "__main__":
    sys.exit(main())
