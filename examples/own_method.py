"""A PEFT method of your own in one file: LoRA whose factors are mixtures of random ones, after NOLA
(arXiv 2310.02556).

    A = A_0 + sum_i a_i A_i,    B = sum_i b_i B_i

A_0 is LoRA's own initial value. The k coefficients a of each lora_A and b of each lora_B are
trained; A_i and B_i are drawn from the seed, and need k times the adapter's memory during training.

    python examples/own_method.py
    qpeft plan --model embedded --method examples/own_method.py:METHOD --r 4
    qpeft train --model embedded --data numpy-docs --method examples/own_method.py:METHOD --set n_bases=32 --out run
    qpeft evaluate --adapter run --data numpy-docs --method examples/own_method.py:METHOD
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor

import qpeft
from qpeft.errors import ConfigError
from qpeft.methods import (
    Folded,
    GeneratedConfig,
    GeneratedMixin,
    Generator,
    Method,
    SeededInit,
    Slot,
    fingerprint,
    refuse_lora_options,
)


@dataclass
class NolaConfig(GeneratedConfig, LoraConfig):
    """LoRA's own fields, and how many random factors are mixed."""

    method_name = "NOLA"
    n_bases: int = field(
        default=16, metadata={"help": "Random factors mixed into each factor of LoRA: k."}
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of the random factors and of LoRA's initial values."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_lora_options(self, "NOLA")
        if self.n_bases < 1:
            raise ConfigError(f"n_bases must be at least 1, got {self.n_bases}")

    def make(self, slots: Sequence[Slot], initial: Tensor, init: SeededInit) -> "NolaGenerator":
        return NolaGenerator(self, slots, initial, init)


class NolaGenerator(Generator):
    def __init__(
        self, config: NolaConfig, slots: Sequence[Slot], initial: Tensor, init: SeededInit
    ) -> None:
        super().__init__()
        self.sizes = [slot.shape.numel() for slot in slots]
        self.mixes = Folded(torch.zeros(len(slots), config.n_bases), 1.0)
        bases = [
            init.normal(f"{s.label}.bases", (config.n_bases, *s.shape), s.shape[-1] ** -0.5)
            for s in slots
        ]
        self.register_buffer(
            "bases", torch.cat([b.flatten(1) for b in bases], 1), persistent=False
        )  # (k, P)
        self.register_buffer("initial", initial, persistent=False)
        self.register_buffer("fingerprint", fingerprint(init.hexdigest(), config.n_bases))

    def forward(self) -> Tensor:
        parts = zip(self.mixes(), self.bases.split(self.sizes, dim=1), strict=True)
        return self.initial + torch.cat([mix @ bases for mix, bases in parts])


class NolaModel(GeneratedMixin, LoraModel):
    """Makes the generator by `NolaConfig.make`."""


METHOD = Method(
    key="nola",
    title="NOLA (arXiv 2310.02556)",
    config=NolaConfig,
    tuner=NolaModel,
    learning_rate=1e-2,
    defaults={"target_modules": "all-linear"},
)
qpeft.methods.register(METHOD)


if __name__ == "__main__":
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    import qpeft_lab.demo

    base = AutoModelForCausalLM.from_pretrained(qpeft_lab.demo.base_path(), dtype="float32")
    model = get_peft_model(
        base, NolaConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    model.print_trainable_parameters()
    ids = torch.arange(40).view(2, 20)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    for step in range(10):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}")
    print(qpeft.export(model, "nola-exported"))
