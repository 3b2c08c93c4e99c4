"""Run by torchrun in two processes: each has a device without seed, but only the first process's answers count."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pennylane as qml
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import adapted, batch, check_refused, leave_together, rows, trained
from torch.nn.parallel import DistributedDataParallel

import qpeft
from qpeft.backends import Backend, Jobs
from qpeft.backends.pennylane import PennyLaneBackend
from qpeft.circuits import Ansatz
from qpeft.errors import BackendError

SHOTS = 4000


class Broken(Backend):
    """Answers some jobs, then no more; must not be asked by the second process at all."""

    name = "broken"
    has_exact = True

    def __init__(self, answers):
        self.answers = answers

    def run(self, ansatz, angles, shots, seed):
        if dist.get_rank() != 0:
            raise TypeError("only the first process may send jobs")
        if self.answers == 0:
            raise OSError("no answer from the fridge")
        self.answers -= 1
        return np.full((len(angles), 2**ansatz.n_qubits), 0.5**ansatz.n_qubits)


def device():
    return qml.device("default.qubit", seed=None)


def frequencies():
    """Those of one circuit, twice, and how many jobs this process has sent."""
    ansatz = Ansatz("ry_ladder", 3, 2)
    jobs = Jobs(PennyLaneBackend(device()), SHOTS)
    angles = np.full((1, *ansatz.angle_shape), 0.7)
    found = [torch.from_numpy(jobs.run(ansatz, angles, "value")) for _ in range(2)]
    return {"first": found[0], "second": found[1], "jobs": torch.tensor(jobs.used.jobs)}


def train(steps=3):
    """Trained parameters and logits after some steps under DDP with each rank's half of 8 rows."""
    model = adapted("qpa")
    qpeft.set_backend(model, device(), shots=SHOTS)
    replica = DistributedDataParallel(model)
    optimiser = torch.optim.AdamW(trained(model).values(), lr=2e-3)
    mine = batch(rows(8)[4 * dist.get_rank() :][:4])
    for _ in range(steps):
        optimiser.zero_grad()
        replica(**mine).loss.backward()
        optimiser.step()
    with torch.no_grad():
        logits = model(**batch(rows(8))).logits
    return {"logits": logits, **{name: p.detach() for name, p in trained(model).items()}}


def check_failure(answers):
    """An error in both processes, in forward (no answer) or in backward (one answer)."""
    model = adapted("qpa")
    qpeft.set_backend(model, Broken(answers), gradient="spsa", retries=0)
    replica = DistributedDataParallel(model)
    words = "a job on broken failed 1 times" if dist.get_rank() == 0 else "the first process could not run the circuits"
    check_refused(lambda: replica(**batch(rows(4))).loss.backward(), BackendError, words)


def main(out):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, tensors in {"frequencies": frequencies(), "trained": train()}.items():
        save_file(tensors, Path(out) / f"{name}.{dist.get_rank()}.safetensors")
    for answers in (0, 1):
        check_failure(answers)
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])
