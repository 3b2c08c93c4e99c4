"""Four adapters of a real sentence encoder on SST-2: accuracy and bytes.

    python evidence/encoder.py TRAIN.tsv DEV.tsv FOLDER    # appends the rows that are missing
    python evidence/encoder.py                             # the table of evidence/encoder.jsonl

The files have a sentence and a label in each line, and no header (SST-2: 6,920 and 872 sentences). The
base is MiniLM-L6, which `qpeft base minilm` builds. One seed: a first look, not a comparison. The
learning rates of LoRA and QPA are those of `Method.measured_rates`.
"""

import json
import sys
from pathlib import Path

from qpeft import methods
from qpeft.methods.method import imported
from qpeft_lab import RunSettings, train
from qpeft_lab.demo import base_model
from qpeft_lab.progress import Progress
from qpeft_lab.training.fit import prepare

ROWS = Path(__file__).with_suffix(".jsonl")
FRAMED = {"r": 1, "n_layers": 1, "share": "type", "bits": 16, "lambda_bits": 16}
RUNS = {  # label: method, learning rate, settings
    "head alone": ("head", 0.02, {}),
    "QPA, 2,000": ("qpa", 1e-3, {"r": 4, "budget": 2000}),
    "framed Quantum-PEFT": ("quantum_peft", 4e-3, {**FRAMED, "frames": "frames.safetensors"}),
    "LoRA r=1": ("lora", 2e-3, {"r": 1}),
}


def run(data: str, eval_data: str, folder: Path) -> None:
    """Append a row for every adapter that has none."""
    shared = {
        "model": base_model("minilm"),
        "task": "text-classification",
        "data": data,
        "eval_data": eval_data,
        "steps": 80,
        "batch_size": 16,
        "seq_len": 64,
        "eval_every": 80,
    }
    frames = folder / "frames.safetensors"
    done = {row["label"] for row in rows()}
    for label, (method, lr, settings) in RUNS.items():
        if label in done:
            continue
        if "frames" in settings:
            if not frames.exists():
                fit_frames(shared, frames)
            settings = {**settings, "frames": str(frames)}
        own = {"method": method, "lr": lr, "method_settings": settings}
        result = train(RunSettings(**shared, **own, out=str(folder / label)))
        row = {"label": label, "method": method, "lr": lr, "settings": RUNS[label][2]}
        row |= {"loss": result.after.loss, **result.after.metrics}
        row |= {"trainable": result.trainable, "head": result.trainable_head}
        row |= {"bytes": result.stored_bytes}
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def fit_frames(shared: dict, path: Path) -> None:
    """Write a frame file, as `qpeft frames` does."""
    settings = {**FRAMED, "frame": "gradient"}
    own = {"method": "quantum_peft", "method_settings": settings, "lr": 1.0, "out": ""}
    model = prepare(RunSettings(**shared, **own), Progress()).model
    path.parent.mkdir(parents=True, exist_ok=True)
    imported(methods.get("quantum_peft").save_fit)(model, path)


def rows() -> list[dict]:
    """Those there are."""
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return [json.loads(line) for line in lines]


def table() -> None:
    """Print the table of the page."""
    print(
        "| adapter | learning rate | parameters | head | file, bytes | accuracy | 95 % interval |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for row in sorted(rows(), key=lambda row: row["accuracy"]):
        interval = f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}"
        adapter = row["trainable"] - row["head"]
        print(
            f"| {row['label']} | {row['lr']:g} | {adapter:,} | {row['head']:,} |"
            f" {row['bytes']:,} | {row['accuracy']:.1%} | {interval} |"
        )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    table()
