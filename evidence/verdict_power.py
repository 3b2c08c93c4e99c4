"""How often is the verdict on a planted effect right? Resampled runs of the study `margins`.

    python evidence/verdict_power.py

Each repetition takes the differences of QPA and one of its twins, centers them, and draws ten seeds
and all blocks again, with replacement. The twin is equal, or worse by twice the margin.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

import comparisons
from qpeft_lab.compare.paired import EQUIVALENT, Paired, decisions
from qpeft_lab.compare.stats import BETTER
from qpeft_lab.verdict import MARGIN
from winners import summaries_of

SEEDS = 10
TWINS = ("qpa_frozen", "qpa_random")


def rates(repetitions: int) -> Counter[str]:
    """The number of right decisions for a worse twin ("better": the circuit is) and an equal one."""
    draw = np.random.default_rng(0)
    tables = list(centered())
    right: Counter[str] = Counter()
    for repetition in range(repetitions):
        table = tables[repetition % len(tables)]  # (seeds, blocks), per cent of LoRA's gain
        n_seeds, n_blocks = table.shape
        seeds = draw.integers(n_seeds, size=SEEDS)
        blocks = draw.integers(n_blocks, size=n_blocks)
        sample = table[seeds][:, blocks]
        for expected, planted in ((BETTER, -2 * MARGIN), (EQUIVALENT, 0.0)):
            # as many questions as a verdict has, so that the correction is the same
            family = [Paired.of(sample + planted)] * 5
            right[expected] += decisions(family, MARGIN)[0].decision == expected
    return right


def centered():
    """The differences of QPA and its twins in each setup, without their mean."""
    for summary in summaries_of("margins").values():
        circuit = comparisons.block_losses(summary["qpa"])
        for key in TWINS:
            twin = comparisons.block_losses(summary[key])
            rows = [np.subtract(circuit[seed], twin[seed]) for seed in sorted(circuit)]
            table = np.array(rows) * 100 / comparisons.gain(summary)
            yield table - table.mean()


if __name__ == "__main__":
    print(dict(rates(repetitions=200)), "of 200")
