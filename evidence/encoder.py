"""Adapters of a real sentence encoder on SST-2: accuracy and bytes.

    python evidence/encoder.py TRAIN.tsv DEV.tsv FOLDER    # trains, or resumes, and writes the rows

The files have a sentence and a label in each line, and no header (SST-2: 6,920 and 872 sentences). The
base is MiniLM-L6, which `qpeft base minilm` builds. One seed: a first look, not a comparison.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

ROWS = Path(__file__).with_suffix(".jsonl")
DATA = "--model minilm --task text-classification --data {} --batch-size 16 --seq-len 64"
RUN = "--eval-data {} --steps 80 --eval-every 80"
FRAMED = "--r 1 --n-layers 1 --share type --bits 16 --lambda-bits 16"
RUNS = {  # label: options of `qpeft train`
    "head alone": "--method head --lr 0.02",
    "QPA, 2,000": "--method qpa --lr 0.001 --r 4 --budget 2000",
    "LoRA r=1": "--method lora --lr 0.002 --r 1",
    "framed Quantum-PEFT": f"--method quantum_peft --lr 0.004 {FRAMED} --frames frames.safetensors",
}


def qpeft(options: str, folder: str) -> dict:
    """What the command prints as JSON; `folder` has frames.safetensors."""
    words = [sys.executable, "-m", "qpeft", *shlex.split(options), "--json"]
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main(data: str, eval_data: str, folder: str) -> None:
    shared = DATA.format(Path(data).resolve())
    rows = []
    for label, options in RUNS.items():
        if "--frames" in options and not Path(folder, "frames.safetensors").exists():
            qpeft(f"frames {shared} {FRAMED} --out frames", folder)
        run = RUN.format(Path(eval_data).resolve())
        result = qpeft(f"train {shared} {run} {options} --out '{label}'", folder)
        fields = ("after", "trainable", "trainable_head", "stored_bytes", "seconds")
        rows.append({"label": label, "options": options, **{name: result[name] for name in fields}})
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
