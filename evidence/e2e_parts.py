"""Divide E2E's development data by meaning representation, for the recipes of docs/reproducing.md.

    python evidence/e2e_parts.py devset.csv FOLDER     # e2e-train.csv, e2e-validation.csv, e2e-test.csv

For those who have no other part of E2E. The facts are ordered by their SHA-256: the first 50 are
the test data, as in examples/restaurants, the next 50 the validation data.
"""

import csv
import hashlib
import sys
from pathlib import Path

N_TEST = N_VALIDATION = 50


def main(source: str, folder: str) -> None:
    with Path(source).open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    facts = sorted({row["mr"] for row in rows}, key=lambda mr: hashlib.sha256(mr.encode()).digest())
    ends = {"test": N_TEST, "validation": N_TEST + N_VALIDATION, "train": len(facts)}
    start = 0
    for name, end in ends.items():
        chosen = set(facts[start:end])
        start = end
        file = Path(folder, f"e2e-{name}.csv")
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(row for row in rows if row["mr"] in chosen)


if __name__ == "__main__":
    main(*sys.argv[1:])
