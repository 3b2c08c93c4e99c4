"""Divide a text for the studies of evidence/PROTOCOL.md: train.txt, validation.txt and test.txt in a
folder.

    python evidence/split_text.py numpy --skip 0.6 --out texts/numpy
    python evidence/split_text.py shakespeare.txt --out texts/shakespeare

The words in their order: 80 % for training, 10 % for validation, 10 % for tests. `--skip` leaves
out the beginning of the test part, which earlier studies have evaluated. The first 400,000
characters of train.txt are also in epoch.txt.
"""

from __future__ import annotations

import argparse
import re
from itertools import pairwise
from pathlib import Path

from qpeft.files import write_text
from qpeft_lab.demo import corpus

EPOCH = 400_000  # characters


def divided(text: str, skip: float) -> dict[str, str]:
    """The parts, by their names."""
    words = re.findall(r"\s*\S+", text)
    ends = [round(len(words) * share) for share in (0, 0.8, 0.9, 0.9 + 0.1 * skip, 1)]
    train, validation, _, test = ("".join(words[start:end]) for start, end in pairwise(ends))
    return {"train": train, "epoch": train[:EPOCH], "validation": validation, "test": test}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="a file, or numpy: its documentation")
    parser.add_argument("--skip", type=float, default=0.0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    file = Path(asked.text)
    text = (
        "\n\n".join(corpus.numpy_docs())
        if asked.text == "numpy"
        else file.read_text(encoding="utf-8")
    )
    for name, part in divided(text, asked.skip).items():
        write_text(asked.out / f"{name}.txt", part)


if __name__ == "__main__":
    main()
