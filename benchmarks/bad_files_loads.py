"""All ways in which a user loads a file, and the check of each: the content of the file, or a clear error."""

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
from typing import Any, NamedTuple

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
from bad_files_mutations import read
from qpeft.cli.app import build
from qpeft.compare import plan as plans
from qpeft.compare.study_file import load_study
from qpeft.diagnostics import of_folder
from qpeft.errors import InputError, TrainingError
from qpeft.training import train
from qpeft.training.metrics_log import read_rows
from qpeft.training.run_folder import RunFolder
from qpeft.training.sources import Columns, load_examples, load_rows
from qpeft.training.tasks.images import load_images, open_image

# errors of stock PEFT before it calls qpeft
PEFT_ERRORS = (ValueError, KeyError, TypeError, RuntimeError, OSError, OverflowError, SafetensorError)
PEFT_ERRORS += (pickle.UnpicklingError,)
PEFT_WAYS = ("PeftModel.from_pretrained", "load_adapter as second", "load_adapter over")
LONGEST_MESSAGE = 4000
LEFT_OUT = (("load_adapter over", "pipe"),)  # PEFT itself opens the pipe and blocks
IDS = torch.arange(24).view(2, 12) * 7 % 250
# fields of a stock adapter that no other file repeats: a changed value takes effect
FREE_FIELDS = {"lora_alpha", "use_rslora", "alpha_pattern", "rank_pattern", "r", "alpha", "target_modules"}


class WrongError(Exception):
    """A load with a wrong outcome, which is the text before the colon."""


class CommandFailedError(InputError):
    """A command ended with exit code 2 and a message."""


@dataclass
class Good:
    """A valid file or folder, and the output of its model."""

    path: Path
    logits: Tensor | None = None
    answers: dict[str, Any] = field(default_factory=dict)  # of the commands


class Load(NamedTuple):
    """A load of `path`, which was made from `good`; `neutral` if its meaning is unchanged."""

    world: World
    path: Path
    good: Good
    neutral: bool


Way = Callable[[Load], None]  # raises the error of the load, or WrongError


class World:
    """The valid files and the base, made before any process is forked."""

    def __init__(self, made: Path) -> None:
        self.made = made
        self.base = load_base(made / "base")
        self.base_logits = _logits(self.base)
        adapters = [*sorted(made.glob("adapter-*")), *sorted(made.glob("exported-*"))]
        self.goods = {path.name: Good(path) for path in adapters if path.name.count("-") == 1}
        for good in self.goods.values():
            good.logits = _logits(qpeft.load(self.fresh_base(), good.path).eval())
            assert not torch.equal(good.logits, self.base_logits), good.path
        self.goods |= {name: Good(made / name) for name in ("run", "study.yaml")}
        self.goods["classifier"] = Good(made / "classifier" / "adapter")
        files = sorted((made / "data").iterdir())
        self.goods |= {f"data-{file.suffix[1:] or file.name}": Good(file) for file in files}

    def fresh_base(self) -> Any:
        return copy.deepcopy(self.base)

    def ways(self, name: str) -> dict[str, Way]:
        """How a user loads the file or folder of that name."""
        kind, _, form = name.partition("-")
        return {"data": DATA_READERS[form]} if kind == "data" else WAYS[kind]


def judge(way: str, error: Exception | None) -> tuple[str, str]:
    """Outcome and message of a load: "correct", "refused", "refused by PEFT", or a wrong outcome."""
    if error is None:
        return "correct", ""
    message = str(error)
    if isinstance(error, WrongError):
        return message.partition(":")[0], message
    shown = f"{type(error).__name__}: {message}"[:300]
    if _is_out_of_memory(error) and not isinstance(error, (InputError, *PEFT_ERRORS)):
        return "memory", shown
    if len(message) > LONGEST_MESSAGE or not message.strip():
        return "unclear message", shown
    if "\ud800" in message:
        return "unprintable message", repr(shown)
    if isinstance(error, InputError) or (way == "resume" and isinstance(error, TrainingError)):
        return "refused", shown
    if way in PEFT_WAYS and isinstance(error, PEFT_ERRORS):
        return "refused by PEFT", shown
    return "wrong error", shown


def is_left_to_peft(way: str, folder: Path) -> bool:
    """Whether PEFT alone loads the folder, because adapter_config.json names one of PEFT's methods."""
    if way not in PEFT_WAYS:
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


def _load(load: Load) -> None:
    _check(load, qpeft.load(load.world.fresh_base(), load.path))


def _from_pretrained(load: Load) -> None:
    _check(load, PeftModel.from_pretrained(load.world.fresh_base(), str(load.path)))


def _load_as_second(load: Load) -> None:
    model = qpeft.load(load.world.fresh_base(), load.good.path).eval()
    with _unchanged(model):
        model.load_adapter(str(load.path), "second")
    model.set_adapter("second")
    _check(load, model, "second")


def _load_over(load: Load) -> None:
    model = qpeft.load(load.world.fresh_base(), load.good.path).eval()
    with _unchanged(model, only_on_error=True):
        model.load_adapter(str(load.path), "default")
    _check(load, model)


@contextmanager
def _unchanged(model: Any, *, only_on_error: bool = False) -> Iterator[None]:
    before = _logits(model)
    try:
        yield
    except Exception:
        if not torch.equal(_logits(model), before):
            raise WrongError("present adapter changed: by a refused load") from None
        raise
    if not only_on_error and not torch.equal(_logits(model), before):
        raise WrongError("present adapter changed: by the load of a second one")


def _check(load: Load, model: Any, name: str = "default") -> None:
    """The loaded adapter has the tensors of the file, and its logits follow from them."""
    logits = _logits(model.eval())
    expected, good = _independent(load.path), _independent(load.good.path)
    is_changed = _has_changed_fields(load.path, load.good.path)
    is_huge = any(np.abs(tensor.astype(np.float64)).max(initial=0) > 1e15 for tensor in expected.values())
    if not torch.isfinite(logits).all() and not is_changed and not is_huge:
        raise WrongError("not finite: the logits are NaN or Inf")
    if torch.equal(logits, load.world.base_logits):
        raise WrongError("base model returned: the load changed no logit")
    found = _saved_again(model, name)
    if found.keys() != expected.keys():
        raise WrongError(f"other tensors: {sorted(found.keys() ^ expected.keys())[:4]} differ from the file")
    for key, value in expected.items():
        if value.shape != found[key].shape or not np.array_equal(value.astype(found[key].dtype), found[key]):
            raise WrongError(f"other values: {key} differs from the file")
    if (load.neutral or (_same_tensors(expected, good) and not is_changed)) and not torch.equal(
        logits, load.good.logits
    ):
        raise WrongError("other logits: the meaning of the file is unchanged, the model is not")


def _saved_again(model: Any, name: str) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
        return read(Path(folder, "" if name == "default" else name, "adapter_model.safetensors"))


def _independent(folder: Path) -> dict[str, np.ndarray]:
    try:
        return read(folder / "adapter_model.safetensors")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongError(f"invalid file loaded: {error}") from error


def _same_tensors(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def _has_changed_fields(folder: Path, good: Path) -> bool:
    configs = [json.loads((p / "adapter_config.json").read_text(encoding="utf-8-sig")) for p in (folder, good)]
    flat = [{**config, **(config.get("host") or {})} for config in configs]
    return any(flat[0].get(key) != flat[1].get(key) for key in FREE_FIELDS)


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


# -- commands


def command(*arguments: Any) -> Any:
    """The JSON that the command prints. Raises CommandFailedError, or WrongError if it failed in another way."""
    done = CliRunner().invoke(build(), [str(a) for a in (*arguments, "--json")], prog_name="qpeft", input="")
    if done.exit_code == 0:
        return json.loads(done.stdout)
    output = done.stderr or done.output
    lost = done.exception if not isinstance(done.exception, SystemExit) else None
    if lost is not None or "Traceback" in output or re.search(r"Unexpected \w+:", output) or done.exit_code != 2:
        raise WrongError(f"wrong error: exit code {done.exit_code}, {lost!r}, {output[-600:]}")
    raise CommandFailedError(output)


def evaluate(made: Path, folder: Path, *options: str) -> dict[str, Any]:
    """The scores of the base and of the adapter."""
    data = made / "data" / ("a.tsv" if options else "a.jsonl")
    found = command("evaluate", "--adapter", folder, "--data", data, "--seq-len", 32, *options)
    return {who: found[who] for who in ("base", "adapted")}


def generate(folder: Path) -> str:
    return command("generate", "--adapter", folder, "--prompt", "the king", "--max-new-tokens", 12)["text"]


def _evaluate(load: Load, *options: str) -> None:
    scores = evaluate(load.world.made, load.path, *options)
    if scores["base"] == scores["adapted"]:
        raise WrongError("base model returned: base and adapter have the same score")
    if load.neutral and scores != load.good.answers["evaluate"]:
        raise WrongError("other logits: another score")


def _evaluate_classes(load: Load) -> None:
    _evaluate(load, "--task", "text-classification")


def _generate(load: Load) -> None:
    if generate(load.path) != load.good.answers["generate"] and load.neutral:
        raise WrongError("other logits: another text")


def _export(load: Load) -> None:
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "out")
        command("export", load.path, "--out", out)
        logits = _logits(PeftModel.from_pretrained(load.world.fresh_base(), str(out)).eval())
    if torch.equal(logits, load.world.base_logits):
        raise WrongError("base model returned: the exported adapter changes no logit")


def _stock_logits(base: str, adapter: Path | None, inputs: Tensor, *_: Any, **__: Any) -> Tensor:
    model = load_base(Path(base))
    with torch.no_grad():
        return PeftModel.from_pretrained(model, str(adapter)).eval()(input_ids=inputs).logits


qpeft.cli.export.stock_logits = _stock_logits  # in this process: another one takes seconds to start

COMMANDS: dict[str, Way] = {
    "qpeft evaluate": _evaluate,
    "qpeft generate": _generate,
    "qpeft export": _export,
    "qpeft diagnose": lambda load: command("diagnose", load.path, "--samples", 10),
    "qpeft circuits": lambda load: command("circuits", "draw", "--adapter", load.path),
}

# -- runs and studies


def _read_settings(load: Load) -> None:
    RunFolder(load.path).settings()
    read_rows(load.path / "metrics.jsonl")


def _train_again(load: Load) -> None:
    """A finished run: the command finds its result or refuses."""
    after = train(run_settings(load.world.made, load.path)).after.to_dict()
    if after != json.loads((load.good.path / "result.json").read_text())["after"] | after:
        raise WrongError("other values: the run has another score")


def _resume(load: Load) -> None:
    """A run that was interrupted after its second step."""
    with suppress(IsADirectoryError):
        (load.path / "result.json").unlink(missing_ok=True)
    _train_again(load)
    found, expected = (read(run / "adapter" / "adapter_model.safetensors") for run in (load.path, load.good.path))
    if not _same_tensors(found, expected):
        raise WrongError("other values: the resumed run has another result")


def _load_study(load: Load) -> None:
    """Every field has the value of the file."""
    found = load_study(str(load.path)).model_dump()
    if wrong := _difference(yaml.safe_load(load.path.read_bytes()), found):
        raise WrongError(f"other values: {wrong} of the study differs from the file")
    if load.neutral and found != load_study(str(load.good.path)).model_dump():
        raise WrongError("other values: the study differs")


def _difference(asked: Any, found: Any, place: str = "study") -> str | None:
    if isinstance(asked, dict) and isinstance(found, dict):
        return next((w for key in asked if (w := _difference(asked[key], found.get(key), f"{place}.{key}"))), None)
    if isinstance(asked, list) and isinstance(found, list) and len(asked) == len(found):
        pairs = enumerate(zip(asked, found, strict=True))
        return next((w for i, (a, f) in pairs if (w := _difference(a, f, f"{place}.{i}"))), None)
    with suppress(TypeError, ValueError, OverflowError):
        if float(asked) == float(found):
            return None
    return None if asked == found or str(asked) == str(found) else place


def _plan(load: Load) -> None:
    plans.Plan.estimate = lambda self: {
        "tuning": 0.0,
        "final": 0.0,
        "cost": 0.0,
    }  # times steps
    command("compare", "plan", load.path)


ADAPTER_WAYS: dict[str, Way] = {
    "qpeft.load": _load,
    "PeftModel.from_pretrained": _from_pretrained,
    "load_adapter as second": _load_as_second,
    "load_adapter over": _load_over,
    "qpeft.diagnostics.of_folder": lambda load: of_folder(load.path) and None,
    **COMMANDS,
}
WAYS: dict[str, dict[str, Way]] = {
    "adapter": ADAPTER_WAYS,
    "exported": {"qpeft.load": _load, **COMMANDS},
    "run": {
        "settings": _read_settings,
        "train again": _train_again,
        "resume": _resume,
        "qpeft diagnose": COMMANDS["qpeft diagnose"],
    },
    "classifier": {"qpeft evaluate": _evaluate_classes},
    "study.yaml": {"load_study": _load_study, "qpeft compare plan": _plan},
}

# -- data


def _compare_texts(found: list[str], expected: list[str]) -> None:
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        place = next((i for i, (f, e) in pairs if f != e), min(len(found), len(expected)))
        shown = [repr(texts[place : place + 1])[:80] for texts in (found, expected)]
        raise WrongError(f"other values: {len(found)} texts of {len(expected)}; {place}: {shown[0]}, not {shown[1]}")


def _texts_of_rows(rows: list[Any]) -> list[str]:
    texts = [row.get("text") if isinstance(row, dict) else row for row in rows]
    return [text for text in texts if text]


def _jsonl(file: Path) -> list[str]:
    lines = file.read_bytes().decode("utf-8-sig").split("\n")
    return _texts_of_rows([json.loads(line) for line in lines if line.strip()])


def _json(file: Path) -> list[str]:
    content = json.loads(file.read_bytes())
    return _texts_of_rows(content if isinstance(content, list) else [content])


def _csv(file: Path) -> list[str]:
    csv.field_size_limit(2**31 - 1)
    rows = csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8"), newline=""))
    return [row["text"] for row in rows if (row["text"] or "").strip(" \t")]


def _reader(expected: Callable[[Path], list[str]]) -> Way:
    """Compares qpeft's texts with those of an independent reader of the format."""

    def check(load: Load) -> None:
        found = [row["text"] for row in load_examples(str(load.path), "train", Columns())]
        _compare_texts(found, expected(load.path))

    return check


def _read_tsv(load: Load) -> None:
    rows = load_rows(str(load.path), "train", ("text", "label"))
    found = ["\t".join(map(str, row.values())) for row in rows]
    lines = [line for line in load.path.read_bytes().decode("utf-8").splitlines() if line.strip()]
    _compare_texts(found, lines[1:] if found[:1] != lines[:1] else lines)


def _read_images(load: Load) -> None:
    images = load_images(str(load.path), "train", "label")
    if not images:
        raise WrongError("other values: no image was read")
    for content, _ in images:
        open_image(content, "RGB")


DATA_READERS: dict[str, Way] = {
    "txt": _reader(lambda file: [file.open(encoding="utf-8").read()]),
    "jsonl": _reader(_jsonl),
    "json": _reader(_json),
    "csv": _reader(_csv),
    "parquet": _reader(lambda file: [text for text in parquet.read_table(file)["text"].to_pylist() if text]),
    "tsv": _read_tsv,
    "npz": _read_images,
    "images": _read_images,
}
