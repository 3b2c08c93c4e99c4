"""Fine-tune SmolLM2-135M-Instruct with four adapters: the run of docs/real_model.md.

    python scripts/real_run.py     # `make real`; the base is in build/smollm2 (`qpeft base smollm2`)

It runs the commands of that page, two at a time with one thread each. Run it again to resume: what
is finished is not repeated. The result is results/real_model.json.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jobs import Job, cost, run_stages, times_of
from qpeft.files import read_json, write_json
from qpeft_lab.demo.packaged import PACKAGED
from qpeft_lab.training.run_folder import read_rows

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "real_model.json"
OUT = Path("real-run")
STEPS = 40
KEPT = 4  # every fourth answer is stored
DATA = "examples/restaurants"
TRAINING = f"--model smollm2 --data {DATA}/train.jsonl --batch-size 4 --seq-len 160"
ANSWERS = "--generate --eval-blocks 32 --batch-size 16 --max-new-tokens 48 --json"
FRAMES = "frames.safetensors"
ADAPTERS = {  # options of `qpeft train`; FRAMES is in the folder of the run
    "lora_r8": "--method lora --r 8",
    "qpa": "--method qpa --r 8 --budget 0.5",
    "lora_r1": "--method lora --r 1",
    "suggested": f"--method auto --parameters 1300 --frames {OUT / FRAMES}",
}
# time of a job, in steps of training: measured once on one core
FRAMES_TAKE = 20
ANSWERS_TAKE = 12


def jobs_of(adapter: str, out: Path, steps: int) -> list[Job]:
    """The commands of an adapter, one after the other."""
    run = out / adapter
    options = ADAPTERS[adapter].replace(str(OUT / FRAMES), str(out / FRAMES))
    train = f"train {TRAINING} --steps {steps} {options} --out {run}"
    answer = f"evaluate --adapter {run} --data {DATA}/test.jsonl {ANSWERS}"
    jobs = [
        Job(adapter, train, run / "result.json", steps),
        Job(f"answers of {adapter}", answer, out / f"{adapter}.json", ANSWERS_TAKE, True),
    ]
    if FRAMES in options:
        fields = "--family lie --share type --frame-rank 64 --r 1"
        frames = f"frames {TRAINING} {fields} --out {out / FRAMES}"
        jobs.insert(0, Job("frames", frames, out / FRAMES, FRAMES_TAKE))
    return jobs


def run_all(out: Path, steps: int = STEPS) -> None:
    """Run everything, and print what is being done and the time left."""
    chains = [jobs_of(name, out, steps) for name in reversed(ADAPTERS)]  # the longest first
    run_stages([chains], out)


def collected(out: Path) -> dict[str, Any]:
    """What the page shows: of each adapter its size, losses, answers and times."""
    times = times_of(out)

    def processor_seconds(job: str) -> float:
        return sum(row["processor_seconds"] for row in times if row["job"] == job)

    adapters = {}
    for name in ADAPTERS:
        result = read_json(out / name / "result.json")
        answers = read_json(out / f"{name}.json")
        losses = [row["loss"] for row in read_rows(out / name / "metrics.jsonl") if "loss" in row]
        config = read_json(out / name / "config.json")
        adapters[name] = {
            "options": ADAPTERS[name],
            "learning_rate": config["settings"]["lr"],
            **{part: result[part] for part in ("trainable", "stored_bytes", "exported_bytes")},
            "loss": {when: result[when]["loss"] for when in ("before", "after")},
            "losses": [round(loss, 4) for loss in losses],
            "bleu": {who: answers[who]["bleu"] for who in ("base", "adapted")},
            "texts": answers["adapted"]["texts"][::KEPT],
            "processor_seconds": processor_seconds(name),
        }
    return {
        "base": PACKAGED["smollm2"].about,
        "steps": STEPS,
        "environment": config["environment"],
        **cost(out),
        "frames": {
            "bytes": (out / "frames.safetensors").stat().st_size,
            "processor_seconds": processor_seconds("frames"),
        },
        "n_prompts": len(answers["prompts"]),
        "prompts": answers["prompts"][::KEPT],
        "references": [own[0] for own in answers["references"][::KEPT]],
        "base_texts": answers["base"]["texts"][::KEPT],
        "adapters": adapters,
    }


def main() -> None:
    os.chdir(ROOT)
    OUT.mkdir(exist_ok=True)
    run_all(OUT)
    write_json(RESULT, collected(OUT))
    print(f"{RESULT.relative_to(ROOT)} is written; evidence/page_tables.py shows it on the page")


if __name__ == "__main__":
    main()
