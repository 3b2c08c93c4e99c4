"""Cells that train nothing: they write checkpoints and rows as real ones do, or fail as a test
demands.

Processes of cells import this module by its name.
"""

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

from qpeft.files import write_json
from qpeft_lab.compare.cell import Setup, started_row, work_folder
from qpeft_lab.compare.cell import run_cell as run_real_cell
from qpeft_lab.compare.cell_progress import ProgressFile
from qpeft_lab.compare.plan import Plan
from qpeft_lab.compare.rows import read_rows
from qpeft_lab.compare.study import PlannedMethod, PlannedStudy
from qpeft_lab.settings import RunSettings

STEPS = 6
SECONDS = 0.02  # a step
TINY_STUDY = """
name: small
title: A small study
question: Is a killed run the same?
seeds: [0, 1]
tuning: {{grid: [1.0, 3.0]}}
run: {{model: "{base}", data: "{data}", steps: 12, batch_size: 2, seq_len: 32, eval_every: 4, save_every: 1}}
test_blocks: 4
methods:
  - {{key: lora, method: lora, settings: {{r: 2}}, lr: 0.01}}
  - {{key: sora, method: sora, settings: {{r: 2}}, lr: 0.01}}
"""  # of real cells


def planned(method):
    key = {
        "key": method,
        "label": method.upper(),
        "method": method,
        "hash": f"{sum(method.encode()):012x}",
    }
    return PlannedMethod(**key, rates=[0.1, 0.2, 0.4], trainable=1, deployed=1)


SETUP = Setup(
    run=RunSettings(
        model="none", data="none", out="", method="none", steps=STEPS, batch_size=1, seq_len=8
    ),
    test=Path(),
    test_blocks=0,
    generation=None,
    reference=planned("lora"),
    base_sha256="",
)


class PlantedPlan(Plan):
    """Three learning rates, of which the second is the best, two seeds and one cost cell for each
    method.
    """

    def __init__(self, folder, methods=("lora", "qpa")):
        of: dict = {
            "name": "planted",
            "title": "Planted",
            "question": "?",
            "base_sha256": "",
            "data_sha256": "",
        }
        of |= {"run": SETUP.run, "reference": methods[0], "seeds": [0, 1]}
        study = PlannedStudy(**of, methods=[planned(key) for key in methods])
        super().__init__(folder, study, SETUP)

    def row(self, method, name):
        return self.study.row_of(planned(method), self.rows(), name)

    def rows(self):
        """Every row there is."""
        return read_rows(self.folder)


def timeless_rows(folder: Path) -> dict:
    """Real rows without times and memory."""
    rows = read_rows(folder)
    for row in rows.values():
        row["curve"] = [point[:2] for point in row.get("curve", [])]
        for name in ("seconds", "created_at", "peak_mem_bytes"):
            row.pop(name, None)
    return rows


def run_cell(cell, folder):
    """Count to STEPS, a checkpoint a step; the loss depends on the checkpoint that each step found."""
    checkpoint = work_folder(cell, folder) / "checkpoint.json"
    state = (
        json.loads(checkpoint.read_text())
        if checkpoint.exists()
        else {"step": 0, "loss": 4.0 + abs(cell.lr - 0.2)}
    )
    journal(folder, f"{'resume' if state['step'] else 'begin'} {cell.cell_id}")
    while state["step"] < STEPS:
        time.sleep(SECONDS)
        state = {"step": state["step"] + 1, "loss": state["loss"] * 0.9 + 0.01 * cell.seed}
        write_json(checkpoint, state)
    journal(folder, f"end {cell.cell_id}")
    reference = {"reference": cell.setup.reference.hash} if cell.role == "cost" else {}
    return planted_row(cell, status="success", valid_loss=state["loss"], **reference)


def run_in_company(cell, folder):
    """`run_cell`, but no cell that trains ends before a second one has started."""
    journal(folder, f"waiting {cell.cell_id}")
    while (
        not cell.cell_id.endswith("cost") and (folder / "journal").read_text().count("waiting ") < 2
    ):
        time.sleep(SECONDS)
    return run_cell(cell, folder)


def run_until_seen(cell, folder):
    """Report a step, and end when the runner has seen it."""
    work = work_folder(cell, folder)
    work.mkdir(parents=True, exist_ok=True)
    journal(folder, f"begin {cell.cell_id}")
    ProgressFile(work).on_start(8, 5)
    while f"seen {cell.cell_id} 5 of 8" not in (folder / "journal").read_text():
        time.sleep(SECONDS)
    return planted_row(cell, status="success", valid_loss=1.0)


def run_forever(cell, folder):
    """Until the process is ended."""
    journal(folder, f"begin {cell.cell_id}")
    threading.Event().wait()


def planted_row(cell, **fields):
    """A row of `cell` with the fields that the runner reads."""
    identity = {
        "study": cell.study,
        "method": cell.method,
        "hash": cell.spec.hash,
        "name": cell.name,
    }
    return identity | {"role": cell.role, "seed": cell.seed, "lr": cell.lr, **fields}


def run_or_fail(cell, folder):
    """`run_cell`, except for methods that are named after a failure."""
    sys.stdout.write("a word of a library")
    disaster = DISASTERS.get(cell.method)
    if disaster is not None:
        journal(folder, f"disaster {cell.method}")
        disaster()
    return run_cell(cell, folder)


def journal(folder, line):
    """Append an event of a cell's process."""
    with (folder / "journal").open("a") as file:
        file.write(line + "\n")


def _raises():
    raise RuntimeError("planted")


DISASTERS = {
    "raises": _raises,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "ends": lambda: os._exit(7),
    "exits": lambda: sys.exit(9),
}


def run_after_losing_a_worker(cell, folder):
    """The first time, kill the process of Ray that waits for this one."""
    if not (folder / "journal").exists():
        journal(folder, "lost")
        os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
        time.sleep(600)
    return run_cell(cell, folder)


def crash_in_ia3(cell, folder):
    if cell.method == "ia3":
        raise RuntimeError("planted")
    return run_real_cell(cell, folder)


def run_convex(cell, folder):
    """A loss that is convex in the logarithm of the learning rate, with its minimum beyond the
    grids but for `lora`.
    """
    minimum = {"lora": 0.2, "high": 9.0}.get(cell.method, 1e-9)
    loss = 1 + abs(math.log10(cell.lr / minimum))
    return started_row(cell) | {"status": "success", "valid_loss": loss, "test_loss": loss}
