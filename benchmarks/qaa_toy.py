"""Tasks that QAA and its classical controls learn: known changes of a zero layer, R^2 on unseen inputs.

    python benchmarks/qaa_toy.py                  # about 10 minutes on one core

Width 32 (5 qubits), 700 AdamW steps of 128 inputs, 5e-3 falling linearly, no weight decay, three seeds.

Inputs: "iso" is N(0, I); "lm" resembles those in a language model: a fixed mean, entries 1.5 N(0, 1), and noise whose
scale falls from 3 to 0.3 over the coordinates. Changes to learn: a linear map of rank 3; three random quadratic forms
of x / ||x||, mixed into 32 outputs; a `square` circuit with other angles.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import qpeft

WIDTH, STEPS, BATCH, LR, HELD_OUT, SEEDS = 32, 700, 128, 5e-3, 4000, (0, 1, 2)
RESULTS = Path(__file__).parent / "results" / "qaa_toy.json"
TASKS = ("iso linear", "lm linear", "iso quadratic", "lm quadratic", "iso circuit")
QAA = {
    "c only": {"feature_source": "none"},
    "square": {},
    "square, carry_norm": {"carry_norm": True},
    "square, frozen angles": {"train_circuit": False},
    "qaa": {"ansatz": "qaa"},
    "rxyz": {"ansatz": "rxyz"},
    "square, probs": {"readout": "probs", "allow_large": True},
    "Givens + squares": {"feature_source": "givens"},
    "random quadratic": {"feature_source": "quadratic"},
    "random linear": {"feature_source": "linear"},
}
ADAPTERS = (*QAA, "LoRA r = 2", "MLP h = 2")


def zero_layer() -> nn.Sequential:
    base = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False))
    nn.init.zeros_(base[0].weight)
    return base


def student(name: str, seed: int) -> nn.Module:
    if name.startswith("MLP"):
        mlp = nn.Sequential(nn.Linear(WIDTH, 2), nn.GELU(), nn.Linear(2, WIDTH))
        nn.init.zeros_(mlp[2].weight)
        nn.init.zeros_(mlp[2].bias)
        return mlp
    if name.startswith("LoRA"):
        return get_peft_model(zero_layer(), LoraConfig(r=2, lora_alpha=16, target_modules=["0"]))
    return get_peft_model(zero_layer(), qpeft.QAAConfig(target_modules=["0"], seed=seed, **QAA[name]))


def inputs(kind: str, draw: torch.Generator):
    if kind == "iso":
        return lambda n: torch.randn(n, WIDTH, generator=draw)
    mean = 1.5 * torch.randn(WIDTH, generator=draw)
    scales = torch.linspace(3, 0.3, WIDTH)
    return lambda n: mean + scales * torch.randn(n, WIDTH, generator=draw)


def change(kind: str, draw: torch.Generator):
    if kind == "linear":
        map_ = torch.randn(WIDTH, 3, generator=draw) @ torch.randn(3, WIDTH, generator=draw) / WIDTH
        return lambda x: x @ map_
    if kind == "quadratic":
        forms, mix = torch.randn(3, WIDTH, WIDTH, generator=draw), torch.randn(3, WIDTH, generator=draw)

        def target(x: Tensor) -> Tensor:
            a = nn.functional.normalize(x, dim=-1)
            return torch.einsum("td,fde,te->tf", a, forms, a) @ mix

        return target
    angles = (2 * torch.rand(1, 3, 5, generator=draw) - 1) * torch.pi
    mix = torch.randn(5, WIDTH, generator=draw)
    return lambda x: qpeft.circuits.amplitude_expectations(x, angles, "square") @ mix


def explained(name: str, task: str, seed: int) -> float:
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(1000 + seed)
    kind, what = task.split()
    sample, target, model = inputs(kind, draw), change(what, draw), student(name, seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for _ in range(STEPS):
        x = sample(BATCH)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), target(x)).backward()
        optimizer.step()
        schedule.step()
    x = sample(HELD_OUT)
    with torch.no_grad():
        y = target(x)
        return 1 - ((model(x) - y).square().sum() / (y - y.mean(0)).square().sum()).item()


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    print(f"| adapter | trained | {' | '.join(TASKS)} |")
    for name in ADAPTERS:
        trained = sum(p.numel() for p in student(name, 0).parameters() if p.requires_grad)
        found[name] = {task: [explained(name, task, seed) for seed in SEEDS] for task in TASKS}
        cells = [f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in found[name].values()]
        print(f"| {name} | {trained:,} | {' | '.join(cells)} |", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
