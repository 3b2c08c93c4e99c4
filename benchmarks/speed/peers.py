"""Other programs that run QPA's circuit.

A `..._gradient(ansatz, angles, weights)` returns a function for the gradient of the sum of the probabilities
weighted by `weights` with respect to the angles; a `..._forward(ansatz, angles)` one for the probabilities.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

import numpy
import torch
from scipy.sparse import diags
from torch import Tensor

from qpeft.circuits import Ansatz
from speed.measure import Task

# packages that TorchQuantum pins in conflicting versions and that its gates never call
UNUSED = {"qiskit", "qiskit_aer", "qiskit_ibm_runtime", "pathos", "torchdiffeq", "torchpack", "torchvision"}


def default_qubit_gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor) -> Task:
    circuit = _pennylane(ansatz, "default.qubit", "backprop")
    return lambda: torch.autograd.grad(p := circuit(angles), angles, weights.to(p.dtype))


def default_qubit_forward(ansatz: Ansatz, angles: Tensor) -> Task:
    circuit, fixed = _pennylane(ansatz, "default.qubit", "backprop"), angles.detach()
    return lambda: (circuit(fixed),)


def lightning_qubit_gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor) -> Task:
    """The adjoint method; the weighted sum is the mean of a diagonal observable."""
    import pennylane as qml

    gates = ansatz.to_pennylane()
    observable = qml.SparseHamiltonian(diags(weights.numpy()).tocsr(), wires=range(ansatz.n_qubits))

    @qml.qnode(qml.device("lightning.qubit", wires=ansatz.n_qubits), interface="torch", diff_method="adjoint")
    def circuit(angles):
        gates(angles)
        return qml.expval(observable)

    return lambda: torch.autograd.grad(circuit(angles), angles)


def lightning_qubit_forward(ansatz: Ansatz, angles: Tensor) -> Task:
    circuit, fixed = _pennylane(ansatz, "lightning.qubit", None), angles.detach().numpy()
    return lambda: (torch.as_tensor(circuit(fixed)),)


def _pennylane(ansatz: Ansatz, device: str, diff_method: str | None):
    import pennylane as qml

    gates = ansatz.to_pennylane()

    @qml.qnode(qml.device(device, wires=ansatz.n_qubits), interface="torch", diff_method=diff_method)
    def circuit(angles):
        gates(angles)
        return qml.probs(wires=range(ansatz.n_qubits))

    return circuit


def qiskit_forward(ansatz: Ansatz, angles: Tensor) -> Task:
    from qiskit.quantum_info import Statevector

    circuit = ansatz.to_qiskit(angles.detach()).reverse_bits()  # wire 0 is the most significant bit
    return lambda: (torch.as_tensor(Statevector(circuit).probabilities()),)


def tensor_circuit_gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor, scan: bool) -> Task:
    """Compiled by JAX: all gates as one program, or one layer in a scan, which compiles faster."""
    import jax
    import tensorcircuit as tc

    bits = 64 if angles.dtype == torch.float64 else 32
    tc.set_backend("jax")
    tc.set_dtype(f"complex{2 * bits}")
    layers = 1 if scan else ansatz.n_layers
    gates = list(Ansatz(ansatz.name, ansatz.n_qubits, layers).gates())

    def apply(state, layer):  # (D,), (layers, N)
        circuit = tc.Circuit(ansatz.n_qubits, inputs=state)
        for gate in gates:
            if gate.slot is None:
                circuit.cnot(*gate.wires)
            else:
                circuit.ry(*gate.wires, theta=layer[gate.slot])
        return circuit.state(), None

    def weighted_sum(angles, weights):
        start = jax.numpy.zeros(2**ansatz.n_qubits, f"complex{2 * bits}").at[0].set(1)
        blocks = angles.reshape(-1, layers, ansatz.n_qubits)
        state = jax.lax.scan(apply, start, blocks)[0] if scan else apply(start, blocks[0])[0]
        return jax.numpy.vdot(jax.numpy.abs(state) ** 2, weights)

    compiled = jax.jit(jax.grad(weighted_sum))
    given = [jax.numpy.asarray(tensor.detach().numpy()) for tensor in (angles, weights)]
    return lambda: (torch.tensor(numpy.asarray(compiled(*given))),)


def torch_quantum_gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor) -> Task:
    """Gates in complex64 with torch's backpropagation."""
    tq = _torchquantum()
    gates = {"ry": tq.functional.ry, "cx": tq.functional.cnot}

    def run() -> tuple[Tensor, ...]:
        device = tq.QuantumDevice(n_wires=ansatz.n_qubits, bsz=1)
        for gate in ansatz.gates():
            angle = {} if gate.slot is None else {"params": angles[gate.slot]}
            gates[gate.name](device, wires=list(gate.wires), **angle)
        return torch.autograd.grad(device.get_states_1d()[0].abs().square(), angles, weights)

    return run


class _Empty(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - of a module, not of a class
    __file__ = ""

    def __getattr__(self, name: str) -> MagicMock:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class _EmptyModules(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if _is_unused(name) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _is_unused(name: str) -> bool:
    return name.partition(".")[0] in UNUSED


def _torchquantum() -> ModuleType:
    """TorchQuantum, imported with empty modules for `UNUSED`."""
    if importlib.util.find_spec("torchquantum") is None:
        raise ImportError("torchquantum")
    real, finder = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_unused(name)}, _EmptyModules()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("torchquantum")
    finally:
        sys.meta_path.remove(finder)
        for name in filter(_is_unused, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(real)
