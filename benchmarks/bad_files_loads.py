"""Every way in which a user loads a file, and what must come of it: an error that is clear, or what the file says."""

from __future__ import annotations

import copy
import csv
import io
import json
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peft import PeftModel, PeftType
from pyarrow import parquet
from safetensors import SafetensorError
from torch import Tensor
from typer.testing import CliRunner

import qpeft
import qpeft.cli.export
from bad_files_made import load_base, run_settings
from bad_files_mutate import Mutation
from bad_files_tensors import read
from qpeft.cli.app import build
from qpeft.compare import plan as plans
from qpeft.compare.study import load_study
from qpeft.diagnostics import of_folder
from qpeft.errors import InputError, TrainingError
from qpeft.training import train
from qpeft.training.sources import Columns, load_examples, load_rows
from qpeft.training.tasks.images import load_images, open_image

# what stock PEFT may raise before qpeft is asked
PEFTS_OWN = (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError, pickle.UnpicklingError)
LONGEST_MESSAGE = 4000
LEFT_OUT = (("load_adapter over", "pipe"),)  # PEFT itself opens the file, and waits for who writes into the pipe
_IDS = torch.arange(24).view(2, 12) * 7 % 250
# settings of a stock adapter that no tensor tells of: whoever edits them gets what is written there
_DECIDE_ALONE = {"lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern", "r", "alpha", "target_modules"}


class WrongError(Exception):
    """A load did what it must not do: the first word says what."""


@dataclass
class Good:
    """A file or folder as it should be, and what its model gives."""

    path: Path
    logits: Tensor | None = None
    answers: dict[str, Any] = field(default_factory=dict)  # of the commands, and of what reads data


class World:
    """The good files, and what every load is compared with; made once, before any process is forked off."""

    def __init__(self, made: Path) -> None:
        self.made = made
        self.base = load_base(made / "base")
        self.base_logits = _logits(self.base)
        names = [*sorted(p.name for p in made.glob("adapter-*") if p.name.count("-") == 1)]
        names += [*sorted(p.name for p in made.glob("exported-*") if p.name.count("-") == 1)]
        self.goods = {name: Good(made / name) for name in names}
        for good in self.goods.values():
            good.logits = _logits(qpeft.load(self.fresh_base(), good.path).eval())
            assert not torch.equal(good.logits, self.base_logits), good.path
        self.goods |= {name: Good(made / name) for name in ("run", "study.yaml")}
        self.goods["classifier"] = Good(made / "classifier" / "adapter")
        files = sorted((made / "data").iterdir())
        self.goods |= {f"data-{file.suffix[1:] or file.name}": Good(file) for file in files}

    def fresh_base(self) -> Any:
        return copy.deepcopy(self.base)

    def ways(self, name: str) -> dict[str, Callable[..., None]]:
        """How a user loads what is called so; each raises what the load raises, or WrongError."""
        if name.startswith("adapter-"):
            return {**_ADAPTER_WAYS, **_COMMANDS}
        if name.startswith("exported-"):
            return {"qpeft.load": _load, **_COMMANDS}
        if name.startswith("data-"):
            return {"data": _READS[name.removeprefix("data-")]}
        return {"run": _RUN_WAYS, "classifier": _CLASSIFIER_WAYS, "study.yaml": _STUDY_WAYS}[name]


def judge(way: str, error: Exception | None) -> tuple[str, str]:
    """What came of a load, and the message: "correct", "refused", "refused by PEFT", or what is wrong."""
    if error is None:
        return "correct", ""
    message = str(error)
    if isinstance(error, WrongError):
        return message.partition(":")[0], message
    shown = f"{type(error).__name__}: {message}"
    if _is_out_of_memory(error) and not isinstance(error, (InputError, *PEFTS_OWN)):
        return "memory", shown[:300]
    if len(message) > LONGEST_MESSAGE or not message.strip():
        return "unclear message", shown[:300]
    if not message.isascii() and "\ud800" in message:
        return "unprintable message", repr(shown[:300])
    if isinstance(error, InputError) or (way == "resume" and isinstance(error, TrainingError)):
        return "refused", shown[:300]
    if way in _PEFTS_WAYS and isinstance(error, PEFTS_OWN):
        return "refused by PEFT", shown[:300]
    return "wrong error", shown[:300]


def is_left_to_peft(way: str, folder: Path) -> bool:
    """Whether PEFT loads the folder alone: its adapter_config.json names a method of PEFT's, and qpeft is not asked."""
    if way not in _PEFTS_WAYS:
        return False
    kind = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("peft_type")
    return kind in PeftType.__members__


def _is_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


# -- adapters


def _load(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    _check(world, qpeft.load(world.fresh_base(), folder), folder, good, mutation)


def _from_pretrained(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    _check(world, PeftModel.from_pretrained(world.fresh_base(), str(folder)), folder, good, mutation)


def _load_beside(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    present = qpeft.load(world.fresh_base(), good.path).eval()
    with _unchanged(present):
        present.load_adapter(str(folder), "second")
    present.set_adapter("second")
    _check(world, present, folder, good, mutation, "second")


def _load_over(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    present = qpeft.load(world.fresh_base(), good.path).eval()
    with _unchanged(present, only_on_error=True):
        present.load_adapter(str(folder), "default")
    _check(world, present, folder, good, mutation)


@contextmanager
def _unchanged(present: Any, *, only_on_error: bool = False) -> Iterator[None]:
    before = _logits(present)
    try:
        yield
    except Exception:
        if not torch.equal(_logits(present), before):
            raise WrongError("spoiled the present adapter: a refused load changed its logits") from None
        raise
    if not only_on_error and not torch.equal(_logits(present), before):
        raise WrongError("spoiled the present adapter: a load beside it changed its logits")


def _of_folder(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    of_folder(folder)


def _check(world: World, model: Any, folder: Path, good: Good, mutation: Mutation, name: str = "default") -> None:
    """The loaded adapter holds the file's own bits, and does what they say."""
    logits = _logits(model.eval())
    is_meant = _decides(folder, good.path) or _is_huge(folder)
    if not torch.isfinite(logits).all() and not is_meant:
        raise WrongError("not finite: a load gave logits that are NaN or Inf")
    if torch.equal(logits, world.base_logits):
        raise WrongError("silently the base model: a load changed no logit")
    found, expected = _saved_again(model, name), _independent(folder)
    if found.keys() != expected.keys():
        raise WrongError(f"other tensors: the file has {sorted(found.keys() ^ expected.keys())[:4]} differently")
    for key, value in expected.items():
        if value.shape != found[key].shape or not np.array_equal(value.astype(found[key].dtype), found[key]):
            raise WrongError(f"other numbers: {key} is not what the file holds")
    is_same = _same_tensors(expected, _independent(good.path)) and not _decides(folder, good.path)
    if (mutation.neutral or is_same) and not torch.equal(logits, good.logits):
        raise WrongError("other logits: the file says what it said before, and the model does not")


def _saved_again(model: Any, name: str) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
        return read(Path(folder, "" if name == "default" else name, "adapter_model.safetensors"))


def _independent(folder: Path) -> dict[str, np.ndarray]:
    try:
        return read(folder / "adapter_model.safetensors")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongError(f"loaded what cannot be read: {error}") from error


def _same_tensors(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def _decides(folder: Path, good: Path) -> bool:
    """Whether adapter_config.json differs in what nothing else tells of."""
    configs = [json.loads((p / "adapter_config.json").read_text(encoding="utf-8-sig")) for p in (folder, good)]
    flat = [{**config, **(config.get("host") or {})} for config in configs]
    return any(flat[0].get(key) != flat[1].get(key) for key in _DECIDE_ALONE)


def _is_huge(folder: Path) -> bool:
    """Whether the file has numbers that no forward pass survives."""
    return any(np.abs(tensor.astype(np.float64)).max(initial=0) > 1e15 for tensor in _independent(folder).values())


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=_IDS).logits


_ADAPTER_WAYS: dict[str, Callable[..., None]] = {
    "qpeft.load": _load,
    "PeftModel.from_pretrained": _from_pretrained,
    "load_adapter beside": _load_beside,
    "load_adapter over": _load_over,
    "qpeft.diagnostics.of_folder": _of_folder,
}
_PEFTS_WAYS = ("PeftModel.from_pretrained", "load_adapter beside", "load_adapter over")

# -- commands


class CommandFailedError(InputError):
    """A command ended with exit code 2 and a message."""


def command(*arguments: Any) -> Any:
    """The JSON that the command prints. Raises CommandFailedError, or WrongError if it failed in another way."""
    done = CliRunner().invoke(build(), [str(a) for a in (*arguments, "--json")], prog_name="qpeft", input="")
    if done.exit_code == 0:
        return json.loads(done.stdout)
    said = done.stderr + "" if done.stderr else done.output
    lost = done.exception if not isinstance(done.exception, SystemExit) else None
    if lost is not None or "Traceback" in said or re.search(r"Unexpected \w+:", said) or done.exit_code != 2:
        raise WrongError(f"wrong error: exit code {done.exit_code}, {lost!r}, {said[-600:]}")
    raise CommandFailedError(said)


def evaluate(made: Path, folder: Path, *options: str) -> dict[str, Any]:
    """What `qpeft evaluate` says of the base and of the adapter."""
    data = made / "data" / ("a.tsv" if options else "a.jsonl")
    found = command("evaluate", "--adapter", folder, "--data", data, "--seq-len", 32, *options)
    return {who: found[who] for who in ("base", "adapted")}


def _evaluate(world: World, folder: Path, good: Good, mutation: Mutation, *options: str) -> None:
    figures = evaluate(world.made, folder, *options)
    if figures["base"] == figures["adapted"]:
        raise WrongError("silently the base model: evaluate gives base and adapter the same score")
    if mutation.neutral and figures != good.answers["evaluate"]:
        raise WrongError("other logits: evaluate gives another score")


def _generate(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    found = command("generate", "--adapter", folder, "--prompt", "the king", "--max-new-tokens", 12)
    if mutation.neutral and found["text"] != good.answers["generate"]:
        raise WrongError("other logits: generate writes another text")


def _export(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    """The process without qpeft takes seconds to begin: what it does is done in this one."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "out")
        command("export", folder, "--out", out)
        logits = _logits(PeftModel.from_pretrained(world.fresh_base(), str(out)).eval())
    if torch.equal(logits, world.base_logits):
        raise WrongError("silently the base model: what export wrote changes no logit")


def _stock_logits(base: str, adapter: Path | None, inputs: Tensor, *_: Any, **__: Any) -> Tensor:
    model = load_base(Path(base))
    with torch.no_grad():
        return PeftModel.from_pretrained(model, str(adapter)).eval()(input_ids=inputs).logits


qpeft.cli.export.stock_logits = _stock_logits


def _diagnose(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    command("diagnose", folder, "--samples", 10)


def _count(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    command("circuits", "draw", "--adapter", folder)


_COMMANDS: dict[str, Callable[..., None]] = {
    "qpeft evaluate": _evaluate,
    "qpeft generate": _generate,
    "qpeft export": _export,
    "qpeft diagnose": _diagnose,
    "qpeft circuits": _count,
}

# -- runs and studies


def _settings(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    from qpeft.training.metrics_log import read_rows
    from qpeft.training.run_folder import RunFolder

    RunFolder(folder).settings()
    read_rows(folder / "metrics.jsonl")


def _train_again(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    """The same command over a run that ended: it must find its result, or refuse."""
    result = train(run_settings(world.made, folder))
    _check_result(result, good)


def _resume(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    """The same command over a run that was interrupted after its second step."""
    with suppress(IsADirectoryError):
        (folder / "result.json").unlink(missing_ok=True)
    result = train(run_settings(world.made, folder))
    _check_result(result, good)
    if not _same_tensors(read(folder / "adapter" / "adapter_model.safetensors"),
                         read(good.path / "adapter" / "adapter_model.safetensors")):  # fmt: skip
        raise WrongError("other numbers: the resumed run ended elsewhere")


def _check_result(result: Any, good: Good) -> None:
    if result.after.to_dict() != json.loads((good.path / "result.json").read_text())["after"] | result.after.to_dict():
        raise WrongError("other numbers: the run has another score")


def _evaluate_classes(world: World, folder: Path, good: Good, mutation: Mutation) -> None:
    _evaluate(world, folder, good, mutation, "--task", "text-classification")


_RUN_WAYS: dict[str, Callable[..., None]] = {
    "settings": _settings,
    "train again": _train_again,
    "resume": _resume,
    "qpeft diagnose": _diagnose,
}
_CLASSIFIER_WAYS: dict[str, Callable[..., None]] = {"qpeft evaluate": _evaluate_classes}


def _load_study(world: World, file: Path, good: Good, mutation: Mutation) -> None:
    """Every field has the value that the file gives it."""
    found = load_study(str(file)).model_dump()
    asked = yaml.safe_load(file.read_bytes())
    if wrong := _differing(asked, found):
        raise WrongError(f"other numbers: the study's {wrong} is not what the file says")
    if mutation.neutral and found != load_study(str(good.path)).model_dump():
        raise WrongError("other numbers: the study is another one")


def _differing(asked: Any, found: Any, place: str = "study") -> str | None:
    if isinstance(asked, dict) and isinstance(found, dict):
        return next((w for key in asked if (w := _differing(asked[key], found.get(key), f"{place}.{key}"))), None)
    if isinstance(asked, list) and isinstance(found, list) and len(asked) == len(found):
        pairs = enumerate(zip(asked, found, strict=True))
        return next((w for i, (a, f) in pairs if (w := _differing(a, f, f"{place}.{i}"))), None)
    return None if asked == found or str(asked) == str(found) or _same_number(asked, found) else place


def _same_number(asked: Any, found: Any) -> bool:
    try:
        return float(asked) == float(found)
    except (TypeError, ValueError):
        return False


def _plan(world: World, file: Path, good: Good, mutation: Mutation) -> None:
    """Steps are not timed: what they take is no matter of the file."""
    plans.Plan.estimate = lambda self: {"tuning": 0.0, "final": 0.0, "cost": 0.0}
    command("compare", "plan", file)


_STUDY_WAYS: dict[str, Callable[..., None]] = {"load_study": _load_study, "qpeft compare plan": _plan}

# -- data


def _compare_texts(found: list[str], expected: list[str]) -> None:
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        place = next((i for i, (f, e) in pairs if f != e), min(len(found), len(expected)))
        shown = [repr(texts[place : place + 1])[:80] for texts in (found, expected)]
        raise WrongError(
            f"other numbers: {len(found)} texts read, {len(expected)} there; number {place}: {shown[0]}, not {shown[1]}"
        )


def _texts(file: Path) -> list[str]:
    return [row["text"] for row in load_examples(str(file), "train", Columns())]


def _read_txt(world: World, file: Path, good: Good, mutation: Mutation) -> None:
    found = _texts(file)
    _compare_texts(found, [io.TextIOWrapper(file.open("rb"), encoding="utf-8").read()])


def _read_jsonl(world: World, file: Path, good: Good, mutation: Mutation) -> None:
    found = _texts(file)
    lines = file.read_bytes().decode("utf-8-sig").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]  # a line of any white space is none
    texts = [row.get("text") if isinstance(row, dict) else row for row in rows]
    _compare_texts(found, [text for text in texts if text])


def _read_json(world: World, file: Path, good: Good, mutation: Mutation) -> None:
    found = _texts(file)
    content = json.loads(file.read_bytes())
    rows = content if isinstance(content, list) else [content]
    texts = [row.get("text") if isinstance(row, dict) else row for row in rows]
    _compare_texts(found, [text for text in texts if text])


def _read_csv(world: World, file: Path, good: Good, mutation: Mutation) -> None:
    found = _texts(file)
    csv.field_size_limit(2**31 - 1)
    rows = list(csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8"), newline="")))
    _compare_texts(found, [row["text"] for row in rows if (row["text"] or "").strip(" \t")])  # blank lines are none


def _read_parquet(world: World, file: Path, good: Good, mutation: Mutation) -> None:
    found = _texts(file)
    _compare_texts(found, [text for text in parquet.read_table(file)["text"].to_pylist() if text])


def _read_tsv(world: World, file: Path, good: Good, mutation: Mutation) -> None:
    rows = load_rows(str(file), "train", ("text", "label"))
    found = ["\t".join(map(str, row.values())) for row in rows]
    lines = [line for line in file.read_bytes().decode("utf-8").splitlines() if line.strip()]
    _compare_texts(found, lines[1:] if found[:1] != lines[:1] else lines)


def _read_images(world: World, file: Path, good: Good, mutation: Mutation) -> None:
    images = load_images(str(file), "train", "label")
    if not images:
        raise WrongError("other numbers: no image was read")
    for content, _ in images:
        open_image(content, "RGB")


_READS: dict[str, Callable[..., None]] = {
    "txt": _read_txt,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "tsv": _read_tsv,
    "npz": _read_images,
    "images": _read_images,
}
