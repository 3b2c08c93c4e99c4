"""TorchQuantum: gates in complex64 with torch's own backpropagation.

Its release asks for old pins of programs that its gates never call. While it is imported, empty modules stand for them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from speed.case import Task

UNUSED = {"qiskit", "qiskit_aer", "qiskit_ibm_runtime", "pathos", "torchdiffeq", "torchpack", "torchvision"}


class _Empty(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - of a module, not of a class
    __file__ = ""

    def __getattr__(self, name: str) -> MagicMock:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if _unused(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _unused(name: str) -> bool:
    return name.partition(".")[0] in UNUSED


def _forget() -> dict[str, ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _unused(name)}


def _torchquantum() -> ModuleType:
    if importlib.util.find_spec("torchquantum") is None:
        raise ImportError("torchquantum")
    kept, finder = _forget(), _Finder()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("torchquantum")
    finally:
        sys.meta_path.remove(finder)
        _forget()
        sys.modules.update(kept)


def gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor) -> Task:
    tq = _torchquantum()
    gates = {"ry": tq.functional.ry, "cx": tq.functional.cnot}

    def run() -> tuple[Tensor, ...]:
        device = tq.QuantumDevice(n_wires=ansatz.n_qubits, bsz=1)
        for gate in ansatz.gates():
            angle = {} if gate.slot is None else {"params": angles[gate.slot]}
            gates[gate.name](device, wires=list(gate.wires), **angle)
        return torch.autograd.grad(device.get_states_1d()[0].abs().square(), angles, weights)

    return run
