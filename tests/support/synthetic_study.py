"""A study's folder with invented rows, as the runner writes it, for tests of tables and reports."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

from qpeft.compare.analysis.summary import Summary, summarise
from qpeft.compare.report.files import write_tables
from qpeft.compare.report.page import write_report
from qpeft.compare.resolved import read_study
from qpeft.compare.rows import ROWS, read_rows

StoredRow = dict[str, Any]  # as JSON holds it

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
        "schema": 1,
        "study": "synthetic",
        "title": "A synthetic study",
        "question": "Do tables and report contain the values of the rows?",
        "metric": "test_loss",
        "reference": "lora",
        "task": "causal-lm",
        "base": {"id": "embedded", "sha256": "b" * 64, "params_total": 1_400_000, "dtype": "float32"},
        "data": {"id": "numpy-docs", "eval_data": None, "test_data": None, "sha256": "d" * 64},
        "training": {"steps": STEPS, "batch_size": 4, "seq_len": 128, "eval_every": 20},
        "test_blocks": 128,
        "seeds": SEEDS,
        "tuning": {"grid": [0.3, 1.0, 3.0, 10.0], "seed": 1000},
        "max_hours": 8.0,
        "command": "qpeft compare run synthetic --out study",
        "methods": methods,
        "blocks": [_block("qaa", ["qaa", "lora@qaa", "quantum_peft@qaa", "bottleneck@qaa"])],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(study, indent=2) + "\n", encoding="utf-8")
    rows = [row for method in methods for row in _rows(method)]
    (folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def stored_rows(folder: Path, method: str = "*", name: str = "*") -> list[StoredRow]:
    """The rows of the methods and names that match these patterns, in the order of their cell_id."""
    rows = [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]
    matching = [row for row in rows if _matches(row, method, name)]
    return sorted(matching, key=lambda row: row["cell_id"])


def edit_rows(folder: Path, change: Callable[[StoredRow], Any], method: str = "*", name: str = "*") -> None:
    """Apply `change` to the rows that match, in the order of their cell_id."""
    chosen = {row["cell_id"]: row for row in stored_rows(folder, method, name)}
    for row in chosen.values():
        change(row)
    everything = [chosen.get(row["cell_id"], row) for row in stored_rows(folder)]
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


def summary_of(folder: Path) -> Summary:
    return summarise(read_study(folder), read_rows(folder))


def write_tables_of(folder: Path) -> Summary:
    summary = summary_of(folder)
    write_tables(folder, summary)
    return summary


def write_report_of(folder: Path) -> Path:
    return write_report(folder, summary_of(folder))


def _matches(row: StoredRow, method: str, name: str) -> bool:
    return fnmatch(row["method"], method) and fnmatch(row["cell_id"].rpartition("/")[2], name)


def _planned(key: str) -> dict[str, Any]:
    label, role, against, method, settings, trainable, deployed, _, _ = METHODS[key]
    rates = [] if method == "none" else [3e-4, 1e-3, 3e-3, 1e-2]
    return {
        "key": key, "label": label, "role": role, "against": against, "method": method, "host": "lora",
        "settings": settings, "lr_base": 1e-3, "rates": rates, "hash": f"{list(METHODS).index(key):012x}",
        "trainable": trainable, "deployed": deployed, "note": None,
    }  # fmt: skip


def _block(of: str, keys: list[str]) -> dict[str, Any]:
    budget = METHODS[of][5]
    members = []
    for key in keys:
        ratio = METHODS[key][5] / budget
        ranked = 0.8 <= ratio <= 1
        members.append(
            {"key": key, "trainable": METHODS[key][5], "ratio": ratio, "over_budget": ratio > 1, "ranked": ranked}
        )
    return {"of": of, "budget": budget, "members": members}


def _rows(method: dict[str, Any]) -> list[StoredRow]:
    if not method["rates"]:
        return [_row(method, 0)]
    seeds = [seed for seed in SEEDS if not (method["key"] == "prefix" and seed > 2)]
    trials = [_trial(method, rate) for rate in method["rates"]]
    return [*trials, *(_row(method, seed) for seed in seeds), _cost(method)]


def _started(method: dict[str, Any], name: str, role: str, seed: int, lr: float | None) -> StoredRow:
    cell_id = f"synthetic/{method['key']}/{method['hash']}/{name}"
    edge = {3e-4: "low", 1e-2: "high"}.get(lr or 0.0)
    train = {"lr": lr, "lr_grid": method["rates"], "lr_at_grid_edge": edge, "steps": STEPS, "optimizer": "AdamW"}
    return {
        "schema": 1,
        "cell_id": cell_id,
        "study": "synthetic",
        "method": method["key"],
        "label": method["label"],
        "method_config": {name: method[name] for name in ("method", "host", "settings", "hash")},
        "base": {"id": "embedded", "sha256": "b" * 64, "dtype": "float32", "params_total": 1_400_000},
        "data": {"id": "numpy-docs", "sha256": "d" * 64, "tokens_per_step": 508.0, "tokens_seen": 508 * STEPS},
        "train": train,
        "env": {"python": "3.12.3", "torch": "2.13.0", "device": "cpu x86_64", "device_count": 1, "threads": 1},
        "created_at": "2026-01-01T00:00:00+00:00",
        "role": role,
        "seed": seed,
        "status": "success",
        "error_type": None,
        "error_msg": None,
        "traceback_tail": None,
        **{name: {} for name in ("quality", "cost", "convergence", "capacity", "null_reasons")},
    }


def _row(method: dict[str, Any], seed: int) -> StoredRow:
    key = method["key"]
    rate = {"quantum_peft": 1e-2, "none": None}.get(key, 1e-3)
    row = _started(method, f"seed{seed}", method["role"], seed, rate)
    if key == "ia3" and seed == 3:
        return row | {
            "status": "failed",
            "error_type": "RuntimeError",
            "error_msg": "a planted | crash",
            "traceback_tail": "Traceback (most recent call last):\n  RuntimeError: a planted crash",
        }
    draw = random.Random(f"{'lora' if key == 'twin' else key} {seed}")
    common = 0.02 * random.Random(seed).gauss()  # equal batches: a seed has the same effect on all methods
    gain = METHODS[key][7]
    loss = BASE_LOSS - gain + (common + NOISE.get(key, 0.003) * draw.gauss() if gain else 0.0)
    curve = _curve(loss, gain, slow=1 + 0.3 * draw.random())
    if key == "vera" and seed == 4:
        row |= {"status": "diverged"}
        loss, curve = 2.5 * BASE_LOSS, [*curve[:-1], [STEPS, 11.4, 2.5 * BASE_LOSS, 9.0]]
    row["data"] |= {"order_sha256": f"{seed:064x}", "splits": {"train_tokens": 400_000, "valid_tokens": 6_000}}
    row["train"] |= {"curve": curve, "seconds": curve[-1][3]}
    row["quality"] = {
        "valid_loss": loss - 0.01, "valid_loss_last": loss - 0.01, "best_step": STEPS, "test_loss": loss,
        "test_ppl": math.exp(loss), "bits_per_byte": loss / 2.9, "bleu": None,
    }  # fmt: skip
    row["cost"] = {
        "params_trainable": method["trainable"], "params_deployed": method["deployed"],
        "params_generator": method["trainable"] if "q" in key else None, "bytes_stored": 4 * method["trainable"] + 512,
        "optimizer_bytes": 8 * method["trainable"],
    }  # fmt: skip
    points = [(point[0], point[2]) for point in curve if point[2] is not None]
    areas = [(b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points)]
    row["convergence"] = {
        "auc_per_token": sum(areas) / STEPS if areas else None, "best_step": STEPS, "spikes": seed % 2,
        "diverged": False,
    }  # fmt: skip
    row["null_reasons"] = {"quality.bleu": "the task has no references"}
    if "q" not in key:
        row["null_reasons"]["cost.params_generator"] = "nothing is generated"
    if method["rates"]:
        row["capacity"] = _capacity(METHODS[key][8] + 0.1 * draw.gauss())
        row["null_reasons"]["capacity.weight_effective_rank"] = "the update is not linear in its input"
    return row


def _curve(last: float, gain: float, slow: float) -> list[list[Any]]:
    """Step 0, then a training loss every 10 steps and a validation loss every 20, falling to about `last`."""
    if not gain:
        return [[0, None, BASE_LOSS, 0.0]]
    curve: list[list[Any]] = [[0, None, BASE_LOSS, 0.0]]
    for step in range(10, STEPS + 1, 10):
        done = (1 - math.exp(-4 * step / STEPS / slow)) / (1 - math.exp(-4 / slow))
        loss = BASE_LOSS + (last - BASE_LOSS) * done
        curve.append([step, loss + 0.05, loss if step % 20 == 0 else None, 0.045 * step])
    return curve


def _capacity(rank: float) -> dict[str, Any]:
    """Means over modules and blocks, and the list of blocks; no figure of a weight, as if no update were linear."""

    def spread(shift: float) -> dict[str, float]:
        return {"effective_rank": rank + shift, "mean_share": 0.2, "linear_share": 0.9, "update_ratio": 0.05}

    blocks = [{"name": f"h.{i}", "layer": i, **spread(0.2 * i), "cka": 1 - 0.01 * i * rank / 10} for i in range(4)]
    return {
        "measured_at": "modules", "n_tokens": 2048, "n_modules": 4, **spread(0.0), "jacobian_rank": rank,
        "weight_effective_rank": None, **{f"block_{name}": value for name, value in spread(0.3).items()},
        "cka": 0.99, "cka_last": blocks[-1]["cka"], "modules": [], "blocks": blocks,
    }  # fmt: skip


def _trial(method: dict[str, Any], rate: float) -> StoredRow:
    row = _started(method, f"lr{rate:g}", "tuning", 1000, rate)
    best = 1e-2 if method["key"] == "quantum_peft" else 1e-3
    loss = BASE_LOSS - METHODS[method["key"]][7] + 0.1 * abs(math.log10(rate / best))
    row["quality"] = {"valid_loss": loss, "valid_loss_last": loss, "best_step": STEPS}
    row["train"] |= {"curve": _curve(loss, 1.0, 1.0), "seconds": 9.0}
    if method["key"] == "full" and rate == 1e-2:
        row |= {"status": "diverged", "quality": {}, "error_msg": "the loss is nan at step 12"}
    return row


def _cost(method: dict[str, Any]) -> StoredRow:
    row = _started(method, "cost", "cost", 0, 1e-3)
    ratio = {"qaa": 4.2, "qaa_linear": 1.3, "qpa": 1.15, "quantum_peft": 1.3, "full": 1.4}.get(method["key"], 1.0)
    step = 40 * ratio
    mergeable = method["method"] not in ("qaa", "prefix", "bottleneck")
    unmerged = 900 / ratio
    speeds = {"base": 900.0, "unmerged": unmerged, "merged": 900.0 if mergeable else None}
    row["cost"] = {
        "peak_mem_bytes": 350_000_000 + 8 * method["trainable"], "peak_mem_kind": "resident set of the process",
        "flops_per_token": 6_000_000, "step_ms": {"median": step, "p10": 0.9 * step, "p90": 1.2 * step},
        "reference_step_ms": {"median": 40.0, "p10": 36.0, "p90": 48.0}, "step_ratio": ratio,
        "infer_tok_s": {"batch_1": speeds, "batch_8": {name: x and 5 * x for name, x in speeds.items()}},
        "infer_overhead_pct": 100 * (900 / unmerged - 1),
    }  # fmt: skip
    if not mergeable:
        sizes = ("batch_1", "batch_8")
        row["null_reasons"] = {f"cost.infer_tok_s.{size}.merged": "it cannot be merged" for size in sizes}
    return row
