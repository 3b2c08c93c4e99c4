"""Which scales to fold into QPA's parametrisation, so that an unchanged Trainer at LoRA's usual rates trains it well.

    python benchmarks/learning_rate_scales.py --out runs/scales                     # embedded base, NumPy's texts
    python benchmarks/learning_rate_scales.py --out runs/scales --model M --data D  # any other

A value is start + scale * tau, so under Adam the angles learn at angle_scale * lr and the MLP at mlp_scale * lr.
The table shows the validation loss in nats a token after training, stock LoRA beside it; "nan" is a run that
diverged. Run again, the same command goes on.
"""

from __future__ import annotations

from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from cells import parser, train_all

RATES = (2e-4, 1e-3, 2e-3)
SCALES = [(10.0, mlp) for mlp in (1.0, 5.0, 10.0, 20.0, 40.0)] + [(angle, 10.0) for angle in (1.0, 50.0)]
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("lora", {}),
    **{f"QPA, angles x{a:g}, MLP x{m:g}": ("qpa", {"angle_scale": a, "mlp_scale": m}) for a, m in SCALES},
}


def main() -> None:
    arguments = parser(__doc__, steps=100, seeds=[0]).parse_args()
    outcomes = train_all(arguments, ROWS, RATES)
    before = next(iter(outcomes.values())).before
    shown = Table(title=f"Validation loss after {arguments.steps} steps; {before:.4f} before")
    shown.add_column("method")
    for lr in RATES:
        shown.add_column(f"lr {lr:g}", justify="right")
    for row in ROWS:
        losses = [mean(outcomes[row, lr, seed].after for seed in arguments.seeds) for lr in RATES]
        shown.add_row(row, *(f"{loss:.4f}" for loss in losses))
    Console().print(shown)


if __name__ == "__main__":
    main()
