"""Does the circuit matter? QPA with its circuit, and with a classical control in the circuit's place.

    python benchmarks/feature_sources.py --out runs/features                     # embedded base, NumPy's texts
    python benchmarks/feature_sources.py --out runs/features --model M --data D  # any other

Half of a rank-4 LoRA's numbers on all linear maps, everything else equal: MLP start, data order, learning rate.
LoRA of rank 4 (what QPA generates) and of rank 1 stand beside. The table shows the validation loss in nats a token,
mean and standard deviation over the seeds. Run again, the same command goes on.
"""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from cells import parser, train_all
from qpeft.methods.qpa.settings import FEATURE_SOURCES

RATE = 2e-3
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA, rank 4": ("lora", {}),
    "LoRA, rank 1": ("lora", {"r": 1, "lora_alpha": 2}),
    **{f"QPA, {source}": ("qpa", {"budget": 0.5, "feature_source": source}) for source in FEATURE_SOURCES},
    **{f"QPA, affine MLP, {s}": ("qpa", {"activation": "identity", "feature_source": s}) for s in ("qnn", "none")},
}


def main() -> None:
    arguments = parser(__doc__, steps=100, seeds=[0, 1, 2]).parse_args()
    outcomes = train_all(arguments, ROWS, (RATE,))
    first = outcomes[next(iter(ROWS)), RATE, arguments.seeds[0]]
    shown = Table(title=f"Validation loss after {arguments.steps} steps at {RATE:g}; {first.before:.4f} before")
    for heading in ("method", "trained parameters", "loss", "s.d."):
        shown.add_column(heading, justify="left" if heading == "method" else "right")
    for row in ROWS:
        losses = [outcomes[row, RATE, seed].after for seed in arguments.seeds]
        spread = f"{stdev(losses):.4f}" if len(losses) > 1 else ""
        trainable = outcomes[row, RATE, arguments.seeds[0]].trainable
        shown.add_row(row, f"{trainable:,}", f"{mean(losses):.4f}", spread)
    Console().print(shown)


if __name__ == "__main__":
    main()
