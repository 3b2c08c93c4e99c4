"""What the base's training says while it runs, and what it leaves for the model card."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qpeft.demo.pretrain import Progress
from qpeft.demo.score import score

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase


class TrainingLog:
    """Prints the loss and the time left; after each pass appends a row to the JSON-lines file `path`.

    A row has step, pass, train_loss (the pass's mean, with dropout), validation_loss, and the seconds
    since the beginning, as far as they led to a row.
    """

    def __init__(self, path: Path, tokenizer: "PreTrainedTokenizerBase", validation: list[str]):
        self._path, self._tokenizer, self._validation = path, tokenizer, validation
        self._losses: list[float] = []
        self._steps_here = 0
        self._began = time.monotonic()
        self._before = read_rows(path)[-1]["seconds"] if path.exists() else 0.0

    def __call__(self, progress: Progress, model: "GPT2LMHeadModel") -> None:
        """Take note of one step."""
        self._losses.append(progress.loss)
        self._steps_here += 1
        if progress.step % 50 == 0:
            left = (time.monotonic() - self._began) / self._steps_here * (progress.steps - progress.step)
            self._say(f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}  {left / 60:.0f} min left")
        if progress.step % progress.steps_a_pass == 0:
            self._record(progress, model)

    def _record(self, progress: Progress, model: "GPT2LMHeadModel") -> None:
        row = {
            "step": progress.step,
            "pass": progress.step // progress.steps_a_pass,
            "train_loss": sum(self._losses) / len(self._losses),
            "validation_loss": score(model, self._tokenizer, self._validation).loss,
            "seconds": self._before + time.monotonic() - self._began,
        }
        self._losses.clear()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._say(f"pass {row['pass']}: training {row['train_loss']:.3f}, validation {row['validation_loss']:.3f}")

    @staticmethod
    def _say(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - a script's own progress


def read_rows(path: Path) -> list[dict]:
    """The rows in order; a pass that was trained again after a kill counts once, with its last row."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return list({row["step"]: row for row in rows}.values())
