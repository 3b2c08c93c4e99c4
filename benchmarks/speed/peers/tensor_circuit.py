"""TensorCircuit-NG over JAX, compiled: all gates as one program, or one layer in a scan, which compiles sooner."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from qpeft.circuits import Ansatz
from speed.case import Task


def gradient(ansatz: Ansatz, angles: Tensor, weights: Tensor, scan: bool) -> Task:
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
