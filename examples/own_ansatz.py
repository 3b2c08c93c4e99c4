"""A custom ansatz: RX and RY on every wire, with a ring of CZ between the layers. QPA trains with
it.

python examples/own_ansatz.py qpeft circuits draw --ansatz examples/own_ansatz.py:cz_ring --n-qubits
4 --n-layers 2 qpeft train --model embedded --data numpy-docs --ansatz
examples/own_ansatz.py:cz_ring --r 4 --steps 70 --out run qpeft evaluate --adapter run --data
numpy-docs --ansatz examples/own_ansatz.py:cz_ring
"""

from collections.abc import Iterator

import torch

from qpeft.circuits import Ansatz, Gate, register_ansatz


def angle_shape(n_qubits: int, n_layers: int) -> tuple[int, ...]:
    """angles[layer, 0, wire] is the angle of RX, angles[layer, 1, wire] that of RY."""
    return (n_layers, 2, n_qubits)


def layers(n_qubits: int, n_layers: int) -> Iterator[list[Gate]]:
    pairs = n_qubits if n_qubits > 2 else n_qubits - 1  # two wires form one pair
    ring = [Gate("cz", (wire, (wire + 1) % n_qubits)) for wire in range(pairs)]
    for layer in range(n_layers):
        turns = [
            Gate(kind, (wire,), (layer, block, wire))
            for block, kind in enumerate(("rx", "ry"))
            for wire in range(n_qubits)
        ]
        yield turns + (
            ring if layer < n_layers - 1 else []
        )  # a last ring does not change the probabilities


register_ansatz("cz_ring", angle_shape, layers)


if __name__ == "__main__":
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    import qpeft
    import qpeft_lab.demo

    print(Ansatz("cz_ring", n_qubits=4, n_layers=2).draw(), end="\n\n")
    base = AutoModelForCausalLM.from_pretrained(qpeft_lab.demo.base_path(), dtype="float32")
    config = qpeft.QPAConfig(
        ansatz="cz_ring", n_layers=2, r=4, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    ids = torch.arange(40).view(2, 20)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    for step in range(10):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}")
    print(qpeft.export(model, "cz-ring-exported"))
