"""Train adapters of six customers in one frame file, and serve them: the run of docs/small_adapters.md.

    python scripts/serve_run.py    # `make serve`; the base is in build/smollm2 (`qpeft base smollm2`)

Three texts are read from the folder `--data`, or downloaded. Run it again to resume: what is finished
is not repeated. With `--server URL` it asks a server that has the adapters of serve-run/users whether
it applies them. The result is results/serving.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import urllib.request
from pathlib import Path
from typing import Any

from jobs import Job, cost, run_stages
from qpeft.files import file_hash, read_json, write_json, write_text
from qpeft_lab.demo import corpus
from qpeft_lab.demo.packaged import PACKAGED

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "serving.json"
OUT = Path("serve-run")
STEPS = 40
LONGEST = 200_000  # characters of a customer's text
# what `qpeft plan --parameters 400 --mixed-batches --server vllm` suggests, in float16
ADAPTER = "--n-layers 1 --frame-rank 32 --share type --r 1 --bits 16 --lambda-bits 16"
BLOCKS = "--batch-size 4 --seq-len 64"
RATE = "--lr 2e-3"
# time of a job, in steps of training
FRAMES_TAKE, EXPORT_TAKES, POOL_TAKES, VERIFYING_TAKES = 25, 30, 60, 20
SOURCES = {  # of texts that are not in this repository, on GitHub
    "ben": "openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/grade_school_math/data/train.jsonl",
    "cleo": "karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
    "dora": "eniompw/DisneyGPT/375cf2bae0ad525e345670a0925c8e384c97d9d9/GrimmsFairyTales.txt",
}
CUSTOMERS = {
    "ana": "restaurants: facts and a sentence (E2E)",
    "ben": "exercises with solutions (GSM8K)",
    "cleo": "plays (Shakespeare)",
    "dora": "tales (Grimm)",
    "emil": "NumPy's documentation",
    "finn": "Python's documentation",
}


def source_file(source: str, data: Path) -> Path:
    """The file with a text, in `data` or a folder of it; it is downloaded if it is nowhere."""
    name = source.rpartition("/")[2]
    file = next(data.rglob(name), data / name)
    if not file.exists():
        data.mkdir(parents=True, exist_ok=True)
        url = f"https://raw.githubusercontent.com/{source}"
        try:
            partial, _ = urllib.request.urlretrieve(url)
        except OSError as error:
            advice = f"save it as {file}, and run this again"
            raise SystemExit(f"{url} cannot be downloaded ({error}); {advice}") from error
        shutil.move(partial, file)
    return file


def documents(customer: str, data: Path) -> list[str]:
    """The parts of a customer's text."""
    if customer == "emil":
        return corpus.numpy_docs()
    if customer == "finn":
        return corpus.stdlib_docs()
    if customer == "ana":
        lines = Path("examples/restaurants/train.jsonl").read_text(encoding="utf-8").splitlines()
        conversations = [json.loads(line)["messages"] for line in lines]
        return [
            f"{facts['content']}\n{sentence['content']}" for _, facts, sentence in conversations
        ]
    text = source_file(SOURCES[customer], data).read_text(encoding="utf-8")
    if customer == "ben":
        rows = [json.loads(line) for line in text.splitlines()]
        return [f"{row['question']}\n{row['answer']}" for row in rows]
    return [text]


def write_texts(out: Path, data: Path) -> None:
    """A file with the text of each customer."""
    for customer in CUSTOMERS:
        file = out / "texts" / f"{customer}.txt"
        if not file.exists():
            write_text(file, "\n\n".join(documents(customer, data))[:LONGEST])


def stages(out: Path, steps: int, server: str) -> list[list[list[Job]]]:
    """The frame file, the adapters, and what serves them."""
    frames = out / "frames.safetensors"
    base = "--model smollm2"
    fit = f"frames {base} --data {out}/texts {BLOCKS} {ADAPTER} --out {frames}"
    method = f"--method quantum_peft {ADAPTER} --frames {frames} {RATE}"

    def train(name: str, text: str, n: int) -> Job:
        data = f"--data {out}/texts/{text}.txt {BLOCKS} --eval-blocks 32 --eval-every {n}"
        command = f"train {base} {data} {method} --steps {n} --out {out}/{name}"
        return Job(name, command, out / name / "result.json", n)

    def verify(name: str) -> Job:
        file = out / "verified" / f"{name}.json"
        command = f"verify-served {server} --adapter {name} --run {out}/{name} --json"
        return Job(f"verify {name}", command, file, VERIFYING_TAKES, True)

    training = [train("replacement", "ana", 2 * steps)]  # the longest first
    training += [train(name, name, steps) for name in CUSTOMERS]
    gguf = out / "ana.gguf"
    export = Job("export", f"export {out}/ana --gguf {gguf}", gguf, EXPORT_TAKES)
    pool = Job("pool", f"examples/serve_customers.py {out}", out / "pool.json", POOL_TAKES, True)
    return [
        [[Job("frames", fit, frames, FRAMES_TAKE)]],
        [[job] for job in training],
        [[pool], [export]],
        [[verify(name)] for name in CUSTOMERS if server],
    ]


def run_all(out: Path, data: Path, steps: int = STEPS, server: str = "") -> None:
    """Run everything, and print what is being done and the time left."""
    (out / "verified").mkdir(parents=True, exist_ok=True)
    write_texts(out, data)
    run_stages(stages(out, steps, server), out)


def collected(out: Path) -> dict[str, Any]:
    """What the page shows: of each customer losses, bytes and answers, and what took how long."""
    customers = {}
    for name, text in CUSTOMERS.items():
        result = read_json(out / name / "result.json")
        files = (out / "users" / name).iterdir()
        customers[name] = {
            "text": text,
            **{part: result[part] for part in ("trainable", "stored_bytes", "exported_bytes")},
            "folder_bytes": sum(file.stat().st_size for file in files),
            "loss": {when: result[when]["loss"] for when in ("before", "after")},
        }
    frames = out / "frames.safetensors"
    return {
        "base": PACKAGED["smollm2"].about,
        "steps": STEPS,
        "environment": read_json(out / "ana" / "config.json")["environment"],
        "frames": {"bytes": frames.stat().st_size, "sha256": file_hash(frames)},
        "gguf_bytes": (out / "ana.gguf").stat().st_size,
        "customers": customers,
        "pool": read_json(out / "pool.json"),
        "verified": {file.stem: read_json(file) for file in sorted(out.glob("verified/*.json"))},
        **cost(out),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=OUT / "data", help="a folder with texts")
    parser.add_argument("--server", default="", help="address of a server with the adapters")
    asked = parser.parse_args()
    os.chdir(ROOT)
    run_all(OUT, asked.data, server=asked.server)
    write_json(RESULT, collected(OUT))
    print(f"{RESULT.relative_to(ROOT)} is written; evidence/page_tables.py shows it on the page")


if __name__ == "__main__":
    main()
