"""How long a whole study takes where training costs next to nothing: every method of `survey`, tuned, three seeds.

    python benchmarks/tiny_study.py --out runs/tiny      # within five minutes on two cores

The base is a random GPT-2 with two layers, width 64 and a token for each byte; the text is that of the demo. Each run
has 30 steps. What is timed is `qpeft compare run` from start to report; its losses mean nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

import tiny_bases

SIZES = ("--steps", "30", "--seq-len", "64", "--seeds", "0,1,2", "--workers", "2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    base = make_base(out / "base")
    began = time.perf_counter()
    command = [sys.executable, "-m", "qpeft", "compare", "run", "survey", "--base", str(base), *SIZES]
    done = subprocess.run([*command, "--out", str(out / "survey")], check=False)
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes, exit code {done.returncode}")


def make_base(folder: Path) -> Path:
    """Random weights, and a tokenizer of bytes."""
    torch.manual_seed(0)
    model = tiny_bases.gpt2(vocab_size=257, n_embd=64, n_head=4, n_positions=256)
    return tiny_bases.save_base(folder, model)


if __name__ == "__main__":
    main()
