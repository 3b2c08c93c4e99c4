"""Train adapters of six customers in one frame file, and serve them: the run of docs/small_adapters.md.

    python scripts/serve_run.py     # `make serve`; the base is in build/smollm2

Run it again to resume: what is finished is not repeated. The result is results/serving.json.
Environment variables: DATA, a folder with the three texts that are not in this repository; SERVER, the
address of a server that has the adapters of serve-run/users, to ask whether it applies them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from jobs import Job, cost, run_stages
from qpeft.files import file_hash, read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "serving.json"
OUT = Path("serve-run")
STEPS = 40
LONGEST = 200_000  # characters of a customer's text
# framed circuits, which `qpeft plan --parameters 400 --mixed-batches` lists second, in float16
ADAPTER = "--n-layers 1 --frame-rank 32 --share type --r 1 --bits 16 --lambda-bits 16"
BLOCKS = "--model smollm2 --batch-size 4 --seq-len 64"
# time of a job, in steps of training
FRAMES_TAKE = 25
EXPORT_TAKES = 30
POOL_TAKES = 60
VERIFYING_TAKES = 20
CUSTOMERS = {  # and their texts, as evidence/smollm2/texts.py names them
    "ana": "restaurants",
    "ben": "gsm8k",
    "cleo": "shakespeare",
    "dora": "grimm",
    "emil": "numpy",
    "finn": "python",
}


def documents(name: str, data: Path) -> list[str]:
    """The parts of a text. Those that end without a line break are separated by a blank line."""
    if name == "restaurants":
        lines = Path("examples/restaurants/train.jsonl").read_text(encoding="utf-8").splitlines()
        conversations = [json.loads(line)["messages"] for line in lines]
        return [f"{facts['content']}\n{answer['content']}" for _, facts, answer in conversations]
    sys.path.append(str(ROOT / "evidence" / "smollm2"))
    texts = importlib.import_module("texts")
    file = texts.SOURCES.get(name)
    if file and not any(data.rglob(file)):
        raise SystemExit(
            f"{data} has no {file} with the text {name}; docs/small_adapters.md names its source."
            " Download it, and give the folder as DATA"
        )
    return texts.documents(name, data)


def write_texts(out: Path, data: Path) -> None:
    """A file with the text of each customer."""
    for customer, name in CUSTOMERS.items():
        file = out / "texts" / f"{customer}.txt"
        if not file.exists():
            parts = documents(name, data)
            text = "".join(part if part.endswith("\n") else f"{part}\n\n" for part in parts)
            write_text(file, text[:LONGEST])


def stages(out: Path, steps: int, server: str) -> list[list[list[Job]]]:
    """The frame file, the adapters, and what serves them."""
    file = out / "frames.safetensors"
    fit = f"frames {BLOCKS} --data {out}/texts {ADAPTER} --out {file}"

    def train(name: str, customer: str, n: int) -> list[Job]:
        data = f"--data {out}/texts/{customer}.txt --eval-blocks 32 --eval-every {n}"
        method = f"--method quantum_peft {ADAPTER} --frames {file} --lr 2e-3 --steps {n}"
        command = f"train {BLOCKS} {data} {method} --out {out}/{name}"
        return [Job(name, command, out / name / "result.json", n)]

    def verify(name: str) -> list[Job]:
        command = f"verify-served {server} --adapter {name} --run {out}/{name} --json"
        product = out / f"verified-{name}.json"
        return [Job(f"verify {name}", command, product, VERIFYING_TAKES, True)]

    gguf = out / "ana.gguf"
    pool = Job("pool", f"examples/serve_customers.py {out}", out / "pool.json", POOL_TAKES, True)
    return [
        [[Job("frames", fit, file, FRAMES_TAKE)]],
        # the longest first
        [train("replacement", "ana", 2 * steps), *(train(name, name, steps) for name in CUSTOMERS)],
        [[pool], [Job("export", f"export {out}/ana --gguf {gguf}", gguf, EXPORT_TAKES)]],
        [verify(name) for name in CUSTOMERS if server],
    ]


def run_all(out: Path, data: Path, steps: int = STEPS, server: str = "") -> None:
    """Run everything, and print what is being done and the time left."""
    write_texts(out, data)
    run_stages(stages(out, steps, server), out)


def collected(out: Path) -> dict[str, Any]:
    """What the page shows: of each customer losses, bytes and answers, and what it took."""
    customers = {}
    for name, text in CUSTOMERS.items():
        result = read_json(out / name / "result.json")
        files = (out / "users" / name).iterdir()
        sizes = ("trainable", "stored_bytes", "exported_bytes")
        customers[name] = {
            "text": text,
            **{part: result[part] for part in sizes},
            "folder_bytes": sum(file.stat().st_size for file in files),
            "loss": {when: result[when]["loss"] for when in ("before", "after")},
        }
    frames = out / "frames.safetensors"
    return {
        "steps": STEPS,
        "frames": {"bytes": frames.stat().st_size, "sha256": file_hash(frames)},
        "customers": customers,
        **read_json(out / "pool.json"),
        "verified": {file.stem: read_json(file) for file in sorted(out.glob("verified-*.json"))},
        **cost(out),
    }


def main() -> None:
    os.chdir(ROOT)
    data = Path(os.environ.get("DATA", OUT / "data"))
    run_all(OUT, data, server=os.environ.get("SERVER", ""))
    write_json(RESULT, collected(OUT))
    print(f"{RESULT.relative_to(ROOT)} is written; evidence/page_tables.py shows it on the page")


if __name__ == "__main__":
    main()
