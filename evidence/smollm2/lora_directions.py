"""Write a frame file with the leading directions of the updates of several LoRAs.

    python evidence/smollm2/lora_directions.py BASE RUN ... --out frames/loras.safetensors

Each RUN is a folder of `qpeft train --method lora`. With dW_i = B_i A_i scaled to Frobenius norm 1
over the whole model, the left directions of a matrix are the R leading eigenvectors of
sum_i dW_i dW_i^T, the right ones those of sum_i dW_i^T dW_i. Both are rotated inside their spans so
that the mean update is diagonal with decreasing entries, as a gradient frame is for the gradient.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qpeft.core.frame_file import write_frame_file
from qpeft_lab.base_model import load_model

RANK = 32
SETTINGS = {
    "target_modules": "all-linear",
    "share": "type",
    "n_layers": 1,
    "r": 1,
    "frame_rank": RANK,
}


def updates_of(run: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """B (d_out, r) and A (r, d_in) of each module, scaled so that the whole update has norm 1."""
    state = load_file(run / "exported" / "adapter_model.safetensors")
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for key, a in state.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            factors[name] = state[key.replace(".lora_A.", ".lora_B.")].double(), a.double()
    squares = [((b.mT @ b) * (a @ a.mT)).sum() for b, a in factors.values()]  # of the norms
    norm = torch.stack(squares).sum().sqrt()
    return {name: (b / norm, a) for name, (b, a) in factors.items()}


def leading(grams: list[Tensor]) -> Tensor:
    """The R leading eigenvectors (d, R) of a sum of symmetric matrices (d, d)."""
    _, vectors = torch.linalg.eigh(torch.stack(grams).sum(0))  # increasing eigenvalues
    return vectors[:, -RANK:].flip(1)


def directions(updates: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The pair of frames (d_out, R) and (d_in, R) of one matrix, in float16."""
    left = leading([b @ (a @ a.mT) @ b.mT for b, a in updates])
    right = leading([a.mT @ (b.mT @ b) @ a for b, a in updates])
    mean = torch.stack([(left.mT @ b) @ (a @ right) for b, a in updates]).mean(0)  # (R, R)
    u, _, vt = torch.linalg.svd(mean)
    return (left @ u).half().cpu(), (right @ vt.mT).half().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    of_runs = [updates_of(run) for run in asked.runs]
    frames = {
        name: directions([(of[name][0].to(device), of[name][1].to(device)) for of in of_runs])
        for name in of_runs[0]
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    write_frame_file(asked.out, frames, SETTINGS, load_model(asked.base))


if __name__ == "__main__":
    main()
