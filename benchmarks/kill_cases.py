"""The commands that are killed: trainings of every kind, and a study, on a base that takes no time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from tiny_study import make_base

STEPS = 8
_WORDS = ("the", "king", "queen", "golden", "bird", "went", "into", "wood", "and", "said", "how", "well", "it", "sings")
_METHODS = {
    "qpa": ("--method=qpa", "--r=4"),
    "quantum_peft": ("--method=quantum_peft", "--r=2"),
    "lora": ("--method=lora", "--r=4"),
    "sora": ("--method=sora", "--r=4"),
    "qaa": ("--method=qaa",),
    "shots": ("--method=qpa", "--r=4", "--shots=128", "--shot-budget=100000000"),
}
_STUDY = """
name: small
title: A small study
question: Is a killed run the same?
base: {base}
data: {text}
seeds: [0, 1]
tuning: {{grid: [1.0, 3.0]}}
training: {{steps: 4, batch_size: 2, seq_len: 32, eval_every: 2, eval_blocks: 4, save_every: 2}}
test_blocks: 4
capacity: false
costs: false
methods:
  - {{key: lora, method: lora, settings: {{r: 2}}, lr: 0.01}}
  - {{key: base, method: none}}
"""


@dataclass(frozen=True)
class Case:
    """A command without its run folder."""

    what: str  # train or compare
    name: str
    words: tuple[str, ...]

    def command(self, out: Path) -> list[str]:
        """What stands behind `qpeft`."""
        return [*self.words, f"--out={out}"]


def cases(what: list[str], inputs: Path) -> list[Case]:
    """Those of `what`, commands or names; base and data are made in the folder `inputs` if they are not there."""
    base, text, study = inputs / "base", inputs / "tale.txt", inputs / "small.yaml"
    if not study.exists():
        disable_progress_bar()  # it has a thread, and this process will be forked
        make_base(base)
        text.write_text(_tale())
        study.write_text(_STUDY.format(base=base, text=text))
    sizes = (f"--steps={STEPS}", "--batch-size=2", "--seq-len=32", "--lr=0.01", "--warmup=0.2")
    saving = ("--save-every=2", "--eval-every=3", "--eval-blocks=4")
    shared = ("train", f"--model={base}", f"--data={text}", *sizes, *saving)
    trained = [Case("train", name, (*shared, *words)) for name, words in _METHODS.items()]
    compared = Case("compare", "compare", ("compare", "run", str(study), "--workers=2"))
    return [case for case in (*trained, compared) if {case.what, case.name} & set(what)]


def _tale() -> str:
    draw = random.Random(0)
    return " ".join(draw.choice(_WORDS) + ("." if i % 9 == 8 else "") for i in range(800))
