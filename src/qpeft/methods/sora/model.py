"""SoRA (arXiv 2311.11696) as a PEFT tuner: LoRA with a gate on each rank, many of which become
exactly zero.

    y = W0 x + b0 + s B (g * (A D(x)))        A (r, d_in), g (r,), B (d_out, r), s = lora_alpha / r, D dropout

A generator computes a LoRA's A and B diag(g) from A, B and g. After each optimizer step the gates
are moved towards zero (`threshold.py`). An export leaves out the ranks whose gate is zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

from qpeft.checks import option
from qpeft.core.config import GeneratedConfig, refuse_lora_options
from qpeft.core.exact_rank import Ranks
from qpeft.core.generated_tuner import GeneratedMixin
from qpeft.core.generator import OTHER, Generator, ParameterGroup, fingerprint
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import Slot
from qpeft.errors import ConfigError, QpeftWarning
from qpeft.methods.sora import SoRASettings


@dataclass
class SoRAConfig(SoRASettings, GeneratedConfig, LoraConfig):
    """LoRA's settings (r, the rank to begin with, lora_alpha, target_modules, ...) and those of the
    gates.

    With gates g, many of which become 0, and dropout D::

        y = W0 x + b0 + s B (g * (A D(x)))

    Not without the callback below: no gate would become 0.

    Training needs `qpeft.SoRACallback`. Example::

        model = get_peft_model(base, SoRAConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        Trainer(model=model, callbacks=[SoRACallback()], ...).train()

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that cannot be gated.
    """

    lora_alpha: int = option(16, "The update is multiplied by lora_alpha / r.")
    sora_lambda: float | None = option(
        None,
        "Threshold divided by the learning rate; filled in when training begins.",
        filled_in=True,
    )
    method_name = "QPEFT_SORA"

    def __post_init__(self) -> None:
        GeneratedConfig.__post_init__(self)
        SoRASettings.__post_init__(self)
        refuse_lora_options(self, "SoRA", more=("lora_bias",))

    def make(self, slots: Sequence[Slot], initial: Tensor, init: SeededInit) -> SoRAGenerator:
        """As `GeneratorConfig.make`; `initial` is flat (P,), float32: LoRA's A and B."""
        return SoRAGenerator(slots, initial, init)


class Factor(NamedTuple):
    """A lora_A or lora_B that is generated."""

    module: str
    shape: torch.Size
    is_b: bool


class SoRAGenerator(Generator):
    """Generates lora_A and lora_B = B diag(g) of every module, as a flat float32 tensor (P,).

    Args:
        slots: The tensors in the order of the flat vector.
        initial: The initial values of A and B, those of a LoRA.
        init: Draws the initial gates.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {
        "factors": OTHER,
        "gates": ParameterGroup("gates"),
    }
    is_compression = False
    factors: nn.Parameter  # A and B of all modules, (P,)
    gates: nn.Parameter  # of all modules

    def __init__(self, slots: Sequence[Slot], initial: Tensor, init: SeededInit) -> None:
        super().__init__()
        self.tensors: list[Factor] = []
        for slot in slots:
            module, _, kind = slot.label.rpartition(".lora_")
            if kind not in ("A.weight", "B.weight") or len(slot.shape) != 2:
                raise ConfigError(f"SoRA adapts linear layers, and {module} is none; leave it out")
            self.tensors.append(Factor(module, slot.shape, kind == "B.weight"))
        self.ranks = {factor.module: factor.shape[-1] for factor in self.tensors if factor.is_b}
        drawn = [init.normal(f"{name}.sora_gate", (rank,)) for name, rank in self.ranks.items()]
        # not by register_parameter, see `Folded`
        self._parameters |= {
            "factors": nn.Parameter(initial.clone()),
            "gates": nn.Parameter(torch.cat(drawn)),
        }
        self.register_buffer("fingerprint", fingerprint(init.hexdigest(), self.tensors))

    def gates_by_module(self, gates: Tensor | None = None) -> dict[str, Tensor]:
        """The gates (r,) of each module, by its name; of all of them or a copy."""
        gates = self.gates if gates is None else gates
        return dict(zip(self.ranks, gates.split([*self.ranks.values()]), strict=True))

    def forward(self) -> Tensor:
        gates = self.gates_by_module(self.gates.clone())
        # of a copy: autograd refuses parts of a parameter that an optimizer steps in another thread
        values = self.factors.clone().split([factor.shape.numel() for factor in self.tensors])
        parts = []
        for factor, part in zip(self.tensors, values, strict=True):
            if factor.is_b:
                gated = part.view(factor.shape) * gates[factor.module]  # (d_out, r), B diag(g)
                part = gated.flatten()
            parts.append(part)
        return torch.cat(parts)

    @property
    def n_unused(self) -> int:  # type: ignore[override]
        zeros = {name: int((gates == 0).sum()) for name, gates in self.gates_by_module().items()}
        # a rank has a row of lora_A and a column of lora_B
        return sum(
            factor.shape.numel() // self.ranks[factor.module] * zeros[factor.module]
            for factor in self.tensors
        )

    def export(self, labels: Sequence[str], values: list[Tensor], config: Any) -> Ranks:
        """The ranks whose gate is not zero, and so is their column of lora_B. Raises ConfigError if
        there are none.
        """
        if not self.gates.any():
            raise ConfigError(
                "SoRA export: every gate is zero, so the adapter has no effect; train with a lower"
                " shrink_budget or sparse_lambda"
            )
        left = super().export(labels, values, config)
        return Ranks(left.tensors, left.by_module or self.ranks)


class Waiting:
    """A hook on an optimizer that has not stepped yet.

    Args:
        gates: Those that the hook will shrink.
    """

    def __init__(self, gates: Tensor) -> None:
        self._seen = gates.detach().clone()
        self._n_changes = 0

    def is_passed_over(self, gates: Tensor) -> bool:
        """Whether the gates were changed so often that something else steps; called before each
        forward pass.

        A checkpoint that is loaded changes them once, and so does SAM before its first step.
        """
        if not torch.equal(gates, self._seen):
            self._seen = gates.detach().clone()
            self._n_changes += 1
        return self._n_changes > 2


# The generators whose gates an optimizer's hook shrinks, or whose user was warned. It is not
# recorded in the generator, because a copy of that has no hook.
SHRUNK: WeakSet[nn.Module] = WeakSet()
WAITING: WeakKeyDictionary[nn.Module, Waiting] = WeakKeyDictionary()


class SoRAModel(GeneratedMixin, LoraModel):
    """The tuner that PEFT builds for a SoRAConfig."""

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        # of the base, which a PeftModel without a task_type calls itself
        hook: Any = self._warn_of_no_threshold
        self.generators.hooks.append(self.model.register_forward_pre_hook(hook))

    @torch.compiler.disable()
    def _warn_of_no_threshold(self, base: nn.Module, args: Any) -> None:
        if not (self.training and torch.is_grad_enabled()):
            return
        for name, generator in self.generators.items():
            config: Any = self.peft_config[name]
            gates: Any = generator.gates
            is_trained = gates.requires_grad
            is_wanted = config.sparse_lambda or config.shrink_budget
            waiting = WAITING.get(generator)
            if is_trained and waiting is not None and waiting.is_passed_over(gates):
                del WAITING[generator]  # warn once
                text = (
                    "SoRA: something else than the optimizer of SoRACallback changes the gates, and"
                    " that one does not step, so no gate will become zero. Attach the callback to"
                    " the optimizer that steps: of SAM, optimizer.base_optimizer"
                )
                warnings.warn(QpeftWarning(text), stacklevel=2)
            if is_trained and is_wanted and generator not in SHRUNK:
                SHRUNK.add(generator)  # warn once
                text = (
                    "SoRA: no threshold hook is attached; gates will not become zero. Use"
                    " qpeft.SoRACallback."
                )
                warnings.warn(QpeftWarning(text), stacklevel=2)
