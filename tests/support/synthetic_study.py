"""A study's folder with invented rows, as the runner writes it, for tests of tables and reports."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from qpeft_lab.compare.report import write_all
from qpeft_lab.compare.rows import ROWS, Row, cell_id
from qpeft_lab.compare.summary import load

SEEDS = [0, 1, 2, 3, 4]
STEPS = 200
BASE_LOSS = 4.6

# key: label, role, against, method, settings, trainable, deployed, gain over the base in nats, effective rank
METHODS: dict[str, tuple[str, str, str | None, str, dict[str, Any], int, int, float, float]] = {
    "none": ("the base, untrained", "main", None, "none", {}, 0, 0, 0.0, 0.0),
    "full": ("full fine-tuning", "main", None, "full", {}, 1_400_000, 1_400_000, 0.90, 40.0),
    "lora": ("LoRA", "main", None, "lora", {"r": 4}, 32_768, 32_768, 0.60, 3.6),
    "twin": ("LoRA again", "main", None, "lora", {"r": 4}, 32_768, 32_768, 0.60, 3.6),
    "prefix": ("prefix tuning", "main", None, "prefix", {"num_virtual_tokens": 10}, 10_240, 10_240, 0.31, 5.0),
    "qpa": ("QPA", "main", None, "qpa", {"budget": 0.5}, 16_382, 32_768, 0.558, 3.1),
    "quantum_peft": ("Quantum-PEFT", "main", None, "quantum_peft", {"r": 8}, 1_240, 65_536, 0.35, 7.0),
    "qaa": ("QAA", "main", None, "qaa", {"n_layers": 1}, 16_900, 16_900, 0.40, 6.4),
    "vera": ("VeRA", "main", None, "vera", {}, 6_000, 6_000, 0.38, 4.0),
    "ia3": ("IA3", "main", None, "ia3", {}, 1_536, 1_536, 0.2, 1.0),
    "qpa_noise": ("QPA with noise for its circuit", "control", "qpa", "qpa", {"feature_source": "noise"},
                  16_382, 32_768, 0.557, 3.0),
    "qaa_linear": ("QAA with a random linear map", "control", "qaa", "qaa", {"control": "linear"},
                   16_900, 16_900, 0.2, 6.0),
    "lora@qaa": ("LoRA at QAA's count", "equal_budget", None, "lora", {"r": 2}, 16_384, 16_384, 0.55, 1.9),
    "quantum_peft@qaa": ("Quantum-PEFT at QAA's count", "equal_budget", None, "quantum_peft", {"r": 16}, 2_480, 65_536,
                         0.36, 9.0),
    "bottleneck@qaa": ("bottleneck at QAA's count", "equal_budget", None, "bottleneck", {"bottleneck_size": 1}, 18_000,
                       18_000, 0.45, 1.0),
}  # fmt: skip

NOISE = {"qpa_noise": 0.004, "vera": 0.01}


def write_synthetic_study(folder: Path) -> Path:
    """Five seeds of fifteen methods, with failures.

    A seed of `vera` diverged, one of `ia3` failed, two of `prefix` are missing. `twin` has LoRA's values,
    `qpa_noise` is as good as QPA, `bottleneck@qaa` is over its budget, `quantum_peft@qaa` far below it.
    """
    methods = [_planned(key) for key in METHODS]
    study = {
        "name": "synthetic",
        "title": "A synthetic study",
        "question": "Do tables and report contain the values of the rows?",
        "metric": "test_loss",
        "reference": "lora",
        "task": "causal-lm",
        "base_sha256": "b" * 64,
        "params_total": 1_400_000,
        "data_sha256": "d" * 64,
        "training": {"steps": STEPS, "batch_size": 4, "seq_len": 128, "eval_every": 20},
        "test_blocks": 128,
        "seeds": SEEDS,
        "tuning": {"grid": [0.3, 1.0, 3.0, 10.0], "seed": 1000},
        "command": "qpeft compare run synthetic --out study",
        "methods": methods,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study, indent=2) + "\n", encoding="utf-8")
    rows = [row for method in methods for row in _rows(method)]
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def stored_rows(folder: Path, method: str = "*", name: str = "*") -> list[Row]:
    """The rows of the methods and names that match these patterns, in the order of their cell_id."""
    rows = [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]
    matching = [row for row in rows if _matches(row, method, name)]
    return sorted(matching, key=cell_id)


def edit_rows(folder: Path, change: Callable[[Row], Any], method: str = "*", name: str = "*") -> None:
    """Apply `change` to the rows that match, in the order of their cell_id."""
    chosen = {cell_id(row): row for row in stored_rows(folder, method, name)}
    for row in chosen.values():
        change(row)
    everything = [chosen.get(cell_id(row), row) for row in stored_rows(folder)]
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in everything), encoding="utf-8")


def drop_rows(folder: Path, method: str = "*", name: str = "*") -> None:
    """Remove the rows that match."""
    kept = [row for row in stored_rows(folder) if not _matches(row, method, name)]
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Apply `change` to what a JSON file holds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_report_of(folder: Path) -> Path:
    """Write all outputs; returns the report."""
    write_all(folder, load(folder))
    return folder / "report.html"


def _matches(row: Row, method: str, name: str) -> bool:
    return fnmatch(row["method"], method) and fnmatch(row["name"], name)


def _planned(key: str) -> dict[str, Any]:
    label, _, against, method, settings, trainable, deployed, _, _ = METHODS[key]
    return {
        "key": key, "label": label, "against": against, "at_size_of": key.partition("@")[2] or None,
        "method": method, "kind": "quantum" if method[0] == "q" else "classical", "settings": settings, "lr": 1e-3,
        "rates": [] if method == "none" else [3e-4, 1e-3, 3e-3, 1e-2], "hash": f"{list(METHODS).index(key):012x}",
        "trainable": trainable, "deployed": deployed,
        "note": "A note on prefixes." if method == "prefix" else "",
    }  # fmt: skip


def _rows(method: dict[str, Any]) -> list[Row]:
    if not method["rates"]:
        return [_row(method, 0)]
    seeds = [seed for seed in SEEDS if not (method["key"] == "prefix" and seed > 2)]
    trials = [_trial(method, rate) for rate in method["rates"]]
    return [*trials, *(_row(method, seed) for seed in seeds), _cost(method)]


def _started(method: dict[str, Any], name: str, role: str, seed: int, lr: float | None) -> Row:
    return {
        "study": "synthetic", "method": method["key"], "hash": method["hash"], "name": name, "role": role,
        "seed": seed, "lr": lr, "status": "success", "adapter": method["method"], "settings": method["settings"],
        "python": "3.12.3", "torch": "2.13.0", "device": "cpu x86_64, 1 threads",
    }  # fmt: skip


def _row(method: dict[str, Any], seed: int) -> Row:
    key = method["key"]
    rate = {"quantum_peft": 1e-2, "none": None}.get(key, 1e-3)
    row = _started(method, f"seed{seed}", METHODS[key][1], seed, rate)
    if key == "ia3" and seed == 3:
        failed = {"status": "failed", "error_type": "RuntimeError", "error": "a planted | crash in /home/me/x.py"}
        return row | failed | {"traceback": "Traceback (most recent call last):\n  RuntimeError: a planted crash"}
    draw = random.Random(f"{'lora' if key == 'twin' else key} {seed}")
    common = 0.02 * random.Random(seed).gauss()  # equal batches: a seed has the same effect on all methods
    gain = METHODS[key][7]
    loss = BASE_LOSS - gain + (common + NOISE.get(key, 0.003) * draw.gauss() if gain else 0.0)
    curve = _curve(loss, gain, slow=1 + 0.3 * draw.random())
    if key == "vera" and seed == 4:
        row |= {"status": "diverged"}
        loss, curve = 2.5 * BASE_LOSS, [*curve[:-1], [STEPS, 2.5 * BASE_LOSS, 9.0]]
    row |= {
        "curve": curve, "seconds": curve[-1][2],
        "valid_loss": loss - 0.01, "valid_loss_last": loss - 0.01, "best_step": STEPS, "test_loss": loss,
        "test_ppl": math.exp(loss), "params_trainable": method["trainable"],
        "params_deployed": method["deployed"], "params_generator": method["trainable"] if "q" in key else None,
        "bytes_stored": 4 * method["trainable"] + 512,
        "rank_effective": METHODS[key][8] or None, "rank_numerical": math.ceil(METHODS[key][8]) or None,
    }  # fmt: skip
    return row


def _curve(last: float, gain: float, slow: float) -> list[list[Any]]:
    """Step 0, then a validation loss every 20 steps, falling to about `last`."""
    curve: list[list[Any]] = [[0, BASE_LOSS, 0.0]]
    for step in range(20, STEPS + 1, 20) if gain else ():
        done = (1 - math.exp(-4 * step / STEPS / slow)) / (1 - math.exp(-4 / slow))
        curve.append([step, BASE_LOSS + (last - BASE_LOSS) * done, 0.045 * step])
    return curve


def _trial(method: dict[str, Any], rate: float) -> Row:
    row = _started(method, f"lr{rate:g}", "tuning", 1000, rate)
    best = 1e-2 if method["key"] == "quantum_peft" else 1e-3
    loss = BASE_LOSS - METHODS[method["key"]][7] + 0.1 * abs(math.log10(rate / best))
    if method["key"] == "full" and rate == 1e-2:
        return row | {"status": "diverged", "error": "the loss is nan at step 12"}
    return row | {"valid_loss": loss, "valid_loss_last": loss, "best_step": STEPS, "curve": _curve(loss, 1.0, 1.0)}


def _cost(method: dict[str, Any]) -> Row:
    ratio = {"qaa": 4.2, "qaa_linear": 1.3, "qpa": 1.15, "quantum_peft": 1.3, "full": 1.4}.get(method["key"], 1.0)
    return _started(method, "cost", "cost", 0, 1e-3) | {
        "peak_mem_bytes": 350_000_000 + 8 * method["trainable"], "peak_mem_kind": "resident set of the process",
        "step_ms": 40 * ratio, "step_ms_p10": 36 * ratio, "step_ms_p90": 48 * ratio, "step_ratio": ratio,
    }  # fmt: skip
