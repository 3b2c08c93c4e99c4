"""Cells that train nothing: they write checkpoints and rows as real ones do, or fail as a test demands.

Processes of cells import this module by its name, so it has no heavy imports.
"""

import json
import math
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from qpeft.compare.cell import Cell, Setup, SplitData, started_row, work_folder
from qpeft.compare.resolved import ResolvedMethod
from qpeft.compare.rows import Base, Data, MethodConfig, Quality, Row, Train, cell_id, read_rows
from qpeft.compare.study import Training
from qpeft.files import write_json

STEPS = 6
SECONDS = 0.02  # a step
TINY_STUDY = """
name: small
title: A small study
question: Is a killed run the same?
base: {base}
data: {data}
seeds: [0, 1]
tuning: {{grid: [1.0, 3.0]}}
training: {{steps: 12, batch_size: 2, seq_len: 32, eval_every: 4, eval_blocks: 4, save_every: 1}}
test_blocks: 4
capacity: false
methods:
  - {{key: lora, method: lora, settings: {{r: 2}}, lr: 0.01}}
  - {{key: sora, method: sora, settings: {{r: 2}}, lr: 0.01}}
"""  # of real cells


@dataclass(frozen=True)
class PlantedPlan:
    """Two learning rates, two seeds and one cost cell for each method; the first phase selects the learning rate."""

    folder: Path
    methods: tuple[str, ...] = ("lora", "qpa")
    name: str = "planted"

    def claim(self):
        """There is no study.json of planted cells."""

    def most_tuning_cells(self, rows):
        return len(self.tuning_cells(rows))

    def tuning_cells(self, rows):
        return [self.cell(method, "tuning", f"lr{lr:g}", 1000, lr) for method in self.methods for lr in (0.1, 0.2)]

    def final_cells(self, rows):
        return [
            self.cell(method, "main", f"seed{seed}", seed, None, rows) for seed in (0, 1) for method in self.methods
        ]

    def cost_cells(self, rows):
        return [self.cell(method, "cost", "cost", 0, None, rows) for method in self.methods]

    def cell(self, method, role, name, seed, lr, rows=None):
        impossible = None
        if role != "tuning":
            trials = {lr: rows.get(self.cell_id(method, f"lr{lr:g}")) for lr in (0.1, 0.2)}
            losses = {lr: row.quality.valid_loss for lr, row in trials.items() if row and row.succeeded}
            lr = min(losses, key=losses.__getitem__, default=None)
            impossible = None if losses else "no trial ended well"
        spec = ResolvedMethod(
            key=method, label=method.upper(), role="main", method=method, rates=[0.1, 0.2], hash=hash_of(method),
            trainable=1, deployed=1,
        )  # fmt: skip
        return Cell(
            study=self.name, spec=spec, role=role, name=name, seed=seed, lr=lr, setup=SETUP, impossible=impossible
        )

    def cell_id(self, method, name):
        return cell_id(self.name, method, hash_of(method), name)

    def row(self, method, name):
        return self.rows()[self.cell_id(method, name)]

    def rows(self):
        """Every row there is."""
        return read_rows(self.folder)


def hash_of(method):
    return f"{sum(method.encode()):012x}"


SETUP = Setup(
    model="none",
    base=Base(id="none", sha256="0", dtype="float32", params_total=1, tokenizer_sha256="0"),
    data=SplitData(id="none", sha256="0", train=Path(), validation=Path(), test=Path()),
    task="causal-lm",
    training=Training(steps=STEPS, batch_size=1, seq_len=8),
)


def timeless_rows(folder: Path) -> dict:
    """Real rows as JSON, without times and memory."""
    rows = {row.cell_id: row.to_json() for row in read_rows(folder).values()}
    for row in rows.values():
        row["train"].pop("seconds", None)
        row["train"]["curve"] = [point[:3] for point in row["train"].get("curve", [])]
        row.pop("created_at")
        row["cost"].pop("peak_mem_bytes", None)
    return rows


def untimed_plan(folder, study):
    """A real plan of a study file, without cells that measure time."""
    from qpeft.compare.plan import Plan, make_plan
    from qpeft.compare.study_file import load_study

    class Untimed(Plan):
        def cost_cells(self, rows):
            return []

    plan = make_plan(load_study(str(study)), Path(folder), "qpeft compare run")
    return Untimed(plan.folder, plan.study, plan.setup)


def run_cell(cell, folder, on_step=lambda done, planned: None):
    """Count to STEPS, a checkpoint a step; the loss depends on the checkpoint that each step found."""
    journal(folder, f"begin {cell.cell_id}")
    checkpoint = work_folder(cell, folder) / "checkpoint.json"
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "loss": 4.0 + (cell.lr or 0)}
    while state["step"] < STEPS:
        time.sleep(SECONDS)
        state = {"step": state["step"] + 1, "loss": state["loss"] * 0.9 + 0.01 * cell.seed}
        write_json(checkpoint, state)
        on_step(state["step"], STEPS)
    journal(folder, f"end {cell.cell_id}")
    return planted_row(cell, status="success", quality=Quality(valid_loss=state["loss"]))


def run_in_company(cell, folder, on_step):
    """`run_cell`, but no cell that trains ends before a second one has started."""
    journal(folder, f"waiting {cell.cell_id}")
    while not cell.cell_id.endswith("cost") and (folder / "journal").read_text().count("waiting ") < 2:
        time.sleep(SECONDS)
    return run_cell(cell, folder, on_step)


def run_forever(cell, folder, on_step):
    """Until the process is ended."""
    journal(folder, f"begin {cell.cell_id}")
    threading.Event().wait()


def run_with_semaphore(cell, folder, on_step):
    """`run_cell` in a process that holds a semaphore, as a progress bar does, and needs time to end."""
    process_lock = multiprocessing.RLock()
    multiprocessing.util.Finalize(None, lambda _: time.sleep(0.3), (process_lock,), exitpriority=1000)
    return run_cell(cell, folder, on_step)


def planted_row(cell, **fields):
    """A row of `cell` with the fields that the runner reads."""
    spec, setup = cell.spec, cell.setup
    same = {name: getattr(spec, name) for name in ("method", "host", "settings", "backend", "hash")}
    identity = {"cell_id": cell.cell_id, "study": cell.study, "method": cell.method, "label": spec.label}
    identity |= {"base": setup.base, "data": Data(sha256=setup.data.sha256), "method_config": MethodConfig(**same)}
    return Row(**identity, role=cell.role, seed=cell.seed, train=Train(lr=cell.lr), **fields)


def run_or_fail(cell, folder, on_step):
    """`run_cell`, except for methods that are named after a failure."""
    sys.stdout.write("a word of a library")
    disaster = DISASTERS.get(cell.method)
    if disaster is not None:
        journal(folder, f"disaster {cell.method}")
        disaster()
    return run_cell(cell, folder, on_step)


def journal(folder, line):
    """Append an event of a cell's process."""
    with (folder / "journal").open("a") as file:
        file.write(line + "\n")


def _raises():
    raise RuntimeError("planted")


def _has_no_memory():
    raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")


def _hangs():
    time.sleep(600)


DISASTERS = {
    "raises": _raises,
    "no-memory": _has_no_memory,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "ends": lambda: os._exit(7),
    "exits": lambda: sys.exit(9),
    "hangs": _hangs,
}


def run_after_losing_a_worker(cell, folder, on_step):
    """The first time, kill the process of Ray that waits for this one."""
    if not (folder / "journal").exists():
        journal(folder, "lost")
        os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
        time.sleep(600)
    return run_cell(cell, folder, on_step)


def crash_in_ia3(threads, cell, folder, on_step):
    from qpeft.compare.runner import run_in_threads

    if cell.method == "ia3":
        raise RuntimeError("planted")
    return run_in_threads(threads, cell, folder, on_step)


def run_convex(cell, folder, on_step):
    """A loss that is convex in the logarithm of the learning rate, with its minimum beyond the grids but for `lora`."""
    minimum = {"lora": 0.015, "high": 9.0}.get(cell.method, 1e-9)
    loss = 1 + abs(math.log10(cell.lr / minimum))
    return started_row(cell).updated(status="success", quality=Quality(valid_loss=loss, test_loss=loss))


class KilledWhenItStarts:
    """A `run_cell` whose process is killed while it reads what it shall run."""

    def __call__(self, cell, folder, on_step):
        raise AssertionError("the process is killed before")

    def __reduce__(self):
        return kill_this_process, (), {"more than a pipe holds": bytes(1_000_000)}


def kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


def run_without_fork_server(cell, folder, on_step):
    """The first time, kill the process that starts the cells."""
    if not (folder / "journal").exists():
        journal(folder, "lost")
        os.kill(os.getppid(), signal.SIGKILL)
    return run_cell(cell, folder, on_step)
