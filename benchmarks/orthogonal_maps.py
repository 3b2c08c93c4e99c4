"""Maps from parameters to orthonormal columns: orthogonality error, time, and how well updates made of them train.

    python benchmarks/orthogonal_maps.py           # about 10 minutes on one core; writes results/orthogonal_maps.json
    python benchmarks/orthogonal_maps.py --quick   # tiny sizes, to see that it runs; writes nothing

Each map gives K columns of width N from N K' - K' (K' + 1) / 2 parameters, the entries of a matrix B (N, K') below its
diagonal. Householder, Cayley and exponential are those of torch.nn.utils.parametrizations.orthogonal, with zeros in the
other columns if K' < K. "Low rank" are qpeft's forms of the last two, which never build an N x N matrix. Taylor adds
the first P powers of the exponential, applied to K columns. Givens is a rotation in one plane per parameter. The
circuit is Quantum-PEFT's, with the depth whose number of parameters is closest; "circuit, 2 layers", its default, has
far fewer.

Error: the largest entry of |U^T U - I| in float32, computed in float64; B is scaled to the spectral norm of the skew
matrix in the heading. Time: columns and gradient of one frame, processor time, every map once per round, median of the
ratios to the circuit. Loss: U diag(lambda) V^T is fitted to a matrix of width 64 and rank 4 with singular values 4, 3,
2, 1; lambda starts at 0; 400 steps of Adam with cosine decay, learning rate of lambda 0.05, of the others the better of
0.03 and 0.1; squared error / squared norm of the matrix, mean and standard deviation over 5 seeds. One thread.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from qpeft.circuits import basis_columns, lie_columns, orthogonal_columns
from qpeft.circuits.counting import count_orthogonal
from qpeft.circuits.lie import count_lie, lie_matrix
from qpeft.files import write_json
from speed.machine import turns

RESULTS = Path(__file__).parent / "results" / "orthogonal_maps.json"
TERMS = (3, 6, 18)
BASELINE = "circuit"
NORMS = (0.5, 1.0, 2.0, 4.0, 8.0)
SIZES = {"N=256, K'=1": (256, 8, 1), "N=256, K'=8": (256, 8, 8), "N=1024, K'=1": (1024, 8, 1)}  # N, K, K'
LAMBDA_RATE, RATES, STEPS, SEEDS = 0.05, (0.03, 0.1), 400, 5
TARGETS = ("random", "smooth")


class Map(NamedTuple):
    """`columns`: (M, count) -> (M, N, K). `std` of the initial parameters; None: uniform over the circle."""

    count: int
    columns: Callable[[Tensor], Tensor]
    std: float | None

    def draw(self, m: int, generator: torch.Generator) -> Tensor:
        if self.std is None:
            return (2 * torch.rand(m, self.count, generator=generator) - 1) * math.pi
        return self.std * torch.randn(m, self.count, generator=generator)


def maps(width: int, k: int, lie_rank: int) -> dict[str, Map]:
    """All maps to K columns of width N, a power of two."""
    count, std = count_lie(width, lie_rank), 1 / math.sqrt(width)

    def matrix(x: Tensor) -> Tensor:
        return lie_matrix(x, width, lie_rank)

    householder, cayley, exponential = (_torch_map(name, width, k) for name in ("householder", "cayley", "matrix_exp"))
    signs = torch.eye(width, k)  # torch's Householder map multiplies its columns by the diagonal
    found = {
        "Householder": lambda x: householder(_padded(matrix(x), k) + signs),
        "Cayley": lambda x: cayley(_padded(matrix(x), k)),
        "Cayley, low rank": lambda x: lie_columns(matrix(x), k, "cayley"),
        "exponential": lambda x: exponential(_padded(matrix(x), k)),
        "exponential, low rank": lambda x: lie_columns(matrix(x), k, "exp"),
        **{f"Taylor, {p} terms": lambda x, p=p: taylor(matrix(x), k, p) for p in TERMS},
        "Givens": lambda x: givens(x, width, k, lie_rank),
    }
    return {
        **{name: Map(count, columns, std) for name, columns in found.items()},
        BASELINE: circuit(width, k, depth(width, count)),
        "circuit, 2 layers": circuit(width, k, 2),
    }


def _torch_map(name: str, width: int, k: int) -> nn.Module:
    """torch's map of a matrix (M, N, K), without its trivialization."""
    layer = orthogonal(nn.Linear(k, width, bias=False), "weight", name, use_trivialization=False)
    return layer.parametrizations["weight"][0]


def _padded(b: Tensor, columns: int) -> Tensor:
    return nn.functional.pad(b, (0, columns - b.shape[-1]))


def taylor(b: Tensor, k: int, terms: int) -> Tensor:
    """The sum of A^p / p! up to p = `terms`, times the first k columns of the identity."""
    lower = _padded(b, b.shape[-2])
    skew = lower - lower.mT
    total = term = torch.eye(b.shape[-2], k, dtype=b.dtype)
    for power in range(1, terms + 1):
        term = skew @ term / power
        total = total + term
    return total


def givens(angles: Tensor, width: int, k: int, lie_rank: int) -> Tensor:
    """Rotations in the planes (j, i), j < K', i > j; those of j = 0 last."""
    rows = list(torch.eye(width, k, dtype=angles.dtype).expand(len(angles), -1, -1).unbind(1))
    planes = [(j, i) for j in reversed(range(lie_rank)) for i in range(j + 1, width)]
    for (j, i), c, s in zip(
        planes, angles.cos().unsqueeze(-1).unbind(1), angles.sin().unsqueeze(-1).unbind(1), strict=True
    ):
        rows[j], rows[i] = c * rows[j] - s * rows[i], s * rows[j] + c * rows[i]
    return torch.stack(rows, 1)


def circuit(width: int, k: int, n_layers: int) -> Map:
    basis = basis_columns("spread", width.bit_length() - 1, k)
    return Map(count_orthogonal(width, n_layers), lambda x: orthogonal_columns(x, width, n_layers, basis), None)


def depth(width: int, count: int) -> int:
    """The number of layers whose circuit has about `count` angles."""
    return min(range(1, count), key=lambda layers: abs(count_orthogonal(width, layers) - count))


# -- error


def errors(width: int, k: int) -> dict[str, list[float]]:
    """Of each map, by the spectral norm of A."""
    found: dict[str, list[float]] = {}
    for norm in NORMS:
        for name, one in maps(width, k, k).items():
            x = one.draw(1, torch.Generator().manual_seed(0))
            if one.std is not None:
                lower = _padded(lie_matrix(x, width, k), width)
                x = norm * x / torch.linalg.matrix_norm(lower - lower.mT, 2)
            found.setdefault(name, []).append(orthogonality_error(one.columns(x)))
    return found


def orthogonality_error(columns: Tensor) -> float:
    u = columns.double()
    return (u.mT @ u - torch.eye(u.shape[-1])).abs().max().item()


# -- time


def times(width: int, k: int, lie_rank: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the columns and their gradient, and the ratio to the circuit."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(1, width, k, generator=draw)

    def task(one: Map) -> Callable[[], object]:
        x = one.draw(1, draw).requires_grad_()
        return lambda: torch.autograd.grad(one.columns(x), x, weights)

    found = maps(width, k, lie_rank)
    seconds = turns({name: task(one) for name, one in found.items()}, rounds, process_time)
    return {
        name: {
            "parameters": found[name].count,
            "ms": 1e3 * median(samples),
            "ratio": median(a / b for a, b in zip(samples, seconds[BASELINE], strict=True)),
        }
        for name, samples in seconds.items()
    }


# -- loss


def target(kind: str, width: int, seeds: int) -> Tensor:
    """(seeds, N, N) of rank 4, singular values 4, 3, 2, 1: random directions, or sines of low frequency."""
    draw = torch.Generator().manual_seed(7)

    def columns() -> Tensor:
        if kind == "random":
            x = torch.randn(seeds, width, 4, generator=draw)
        else:
            place = torch.linspace(0, 1, width)[None, :, None]
            frequency, phase = (scale * torch.rand(seeds, 1, 4, generator=draw) for scale in (3, 2 * math.pi))
            x = torch.sin(2 * math.pi * frequency * place + phase)
        return torch.linalg.qr(x).Q

    return columns() @ torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])) @ columns().mT


def residuals(one: Map, wanted: Tensor, k: int, rate: float, steps: int) -> list[float]:
    """Of each seed, after training; the seeds are independent problems of one batch."""
    seeds = len(wanted)
    draw = torch.Generator().manual_seed(11)
    u, v = (one.draw(seeds, draw).requires_grad_() for _ in range(2))
    lam = torch.zeros(seeds, 1, k, requires_grad=True)
    groups = [{"params": [u, v], "lr": rate}, {"params": [lam], "lr": LAMBDA_RATE}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def residual() -> Tensor:
        made = (one.columns(u) * lam) @ one.columns(v).mT
        return (made - wanted).square().sum((1, 2)) / wanted.square().sum((1, 2))

    for _ in range(steps):
        optimizer.zero_grad()
        residual().sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return residual().tolist()


def losses(width: int, k: int, lie_rank: int, steps: int, seeds: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, one in maps(width, k, lie_rank).items():
        if name.endswith("low rank"):
            continue  # the same function
        found[name] = {"parameters": 2 * one.count + k}
        for kind in TARGETS:
            tried = {rate: residuals(one, target(kind, width, seeds), k, rate, steps) for rate in RATES}
            best = min(tried, key=lambda rate: mean(tried[rate]))
            found[name][kind] = {"rate": best, "residuals": tried[best]}
        print(f"K'={lie_rank}", name, *(f"{mean(found[name][kind]['residuals']):.3f}" for kind in TARGETS), flush=True)
    return found


# -- results


def measure(quick: bool) -> dict[str, Any]:
    sizes = {"N=32, K'=1": (32, 4, 1)} if quick else SIZES
    width, steps, seeds = (16, 2, 2) if quick else (64, STEPS, SEEDS)
    return {
        "norms": NORMS,
        "error": errors(32 if quick else 256, 4 if quick else 8),
        "time": {name: times(*size, rounds=2 if quick else 5) for name, size in sizes.items()},
        "loss": {f"K'={rank}": losses(width, 4, rank, steps, seeds) for rank in (1, 4)},
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables of the page, in Markdown."""
    ratios, fits = results["time"], results["loss"]
    first = next(iter(ratios.values()))
    return {
        "error": markdown(
            ["map", *(f"norm {norm:g}" for norm in results["norms"])],
            ([name, *(f"{value:.0e}" for value in row)] for name, row in results["error"].items()),
        ),
        "time": markdown(
            ["map", *(f"{size}, parameters | time, ratio" for size in ratios)],
            ([name, *(_timed(found[name]) for found in ratios.values())] for name in first),
        ),
        "loss": markdown(
            ["map", *(f"{rank}: parameters | {' | '.join(TARGETS)}" for rank in fits)],
            ([name, *(_fitted(found[name]) for found in fits.values())] for name in next(iter(fits.values()))),
        ),
    }


def _timed(found: dict[str, float]) -> str:
    return f"{found['parameters']:,} | {found['ratio']:.2f}"


def _fitted(found: dict[str, Any]) -> str:
    means = (found[kind]["residuals"] for kind in TARGETS)
    return " | ".join([f"{found['parameters']:,}", *(f"{mean(x):.3f} ± {stdev(x):.3f}" for x in means)])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; an entry of `head` may contain several columns, separated by |."""
    line = f"| {' | '.join(head)} |"
    ruler = "| --- |" + " ---: |" * (line.count("|") - 2)
    return "\n".join([line, ruler, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.quick)
    print(*tables(found).values(), sep="\n")
    if not options.quick:
        write_json(RESULTS, found)


if __name__ == "__main__":
    main()
