"""A custom generator: the probabilities of another circuit, multiplied by a fixed random matrix,
change an adapter.

    w = w0 + R (x - x0),    x = 2^N p,    R (P, 2^N) normal with variance 1 / P, drawn from the seed

p are the probabilities of the circuit in `own_ansatz.py`, w0 is the adapter's own initialization
and x0 the initial x. Only the 2 L N angles are trained; they change the adapter in 2^N - 1
directions. R needs 2^N times its memory.

    python examples/own_generator.py

Needs `own_ansatz.py` in the same folder.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

import own_ansatz  # noqa: F401  registers "cz_ring"
import qpeft
from qpeft.circuits import Ansatz, gate_probabilities
from qpeft.errors import ConfigError
from qpeft.methods import Folded, Generator, GeneratorConfig, SeededInit, Slot, fingerprint


@dataclass(kw_only=True)
class RingConfig(GeneratorConfig, name="ring"):
    """A ring of CZ with a random readout."""

    n_qubits: int = field(default=6, metadata={"help": "Wires of the circuit: N."})
    n_layers: int = field(default=4, metadata={"help": "Layers of the circuit: L."})
    angle_scale: float = field(
        default=10.0, metadata={"help": "Factor folded into the angles' learning rate, as QPA's."}
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of the initial angles and of the random matrix."}
    )

    def __post_init__(self) -> None:
        if self.angle_scale <= 0:
            raise ConfigError(f"angle_scale must be positive, got {self.angle_scale}")

    def make(self, slots: Sequence[Slot], initial: Tensor, init: SeededInit) -> "RingGenerator":
        return RingGenerator(self, initial, init)


class RingGenerator(Generator):
    def __init__(self, config: RingConfig, initial: Tensor, init: SeededInit) -> None:
        super().__init__()
        self.ansatz = Ansatz("cz_ring", config.n_qubits, config.n_layers)
        self.angles = Folded(
            init.uniform("angles", self.ansatz.angle_shape, math.pi), config.angle_scale
        )
        mixing = init.normal(
            "mixing", (initial.numel(), 2**config.n_qubits), std=initial.numel() ** -0.5
        )
        self.register_buffer("mixing", mixing, persistent=False)  # drawn again from the seed
        self.register_buffer("initial", initial)  # drawn by PEFT, so it is saved
        self.register_buffer("fingerprint", fingerprint(init.hexdigest(), asdict(config)))

    def forward(self) -> Tensor:
        moved = self._features() - self._features(initial=True)
        return self.initial + self.mixing @ moved

    def _features(self, *, initial: bool = False) -> Tensor:
        return 2**self.ansatz.n_qubits * gate_probabilities(
            self.ansatz, self.angles(initial=initial)
        )


if __name__ == "__main__":
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    import qpeft_lab.demo

    base = AutoModelForCausalLM.from_pretrained(qpeft_lab.demo.base_path(), dtype="float32")
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = qpeft.attach(get_peft_model(base, lora), RingConfig())
    model.print_trainable_parameters()
    ids = torch.arange(40).view(2, 20)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for step in range(10):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}")
