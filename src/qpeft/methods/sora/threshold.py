"""The proximal step of SoRA: each optimizer step is followed by a soft threshold on the gates.

    g <- S(g, lr_t lambda)    S(v, k) = sign(v) max(|v| - k, 0)    lambda = shrink_budget / (lr_0 + ... + lr_{T-1})

lr_t is the learning rate of step t. A gate without gradient therefore moves by shrink_budget in total, for every
height, shape and length of the schedule.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.functional import softshrink
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from qpeft.core.replication import local, sharded_by
from qpeft.errors import ConfigError, QpeftWarning, TrainingError, setting
from qpeft.methods.sora.config import SoRAConfig
from qpeft.methods.sora.layer import GatedTuner, sora_tuner


class _Gate(NamedTuple):
    """A trained gate vector (r,), and its group of the optimizer."""

    name: str
    adapter: str
    value: nn.Parameter
    group: int


class Threshold:
    """The hook that the optimizer calls after each step."""

    def __init__(self, tuner: GatedTuner, optimizer: Optimizer, gates: Sequence[_Gate], first_step: int) -> None:
        self._tuner, self._gates, self._step = tuner, gates, first_step
        self._lambdas = {name: config.sora_lambda for name, config in tuner.peft_config.items()}  # type: ignore[attr-defined]
        for key, hook in list(optimizer._optimizer_step_post_hooks.items()):  # type: ignore[attr-defined]
            if isinstance(hook, Threshold):  # of an interrupted run; two would shrink twice
                del optimizer._optimizer_step_post_hooks[key]  # type: ignore[attr-defined]
        self._handle = optimizer.register_step_post_hook(self)
        tuner.shrinks = True

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        self._step += 1
        skipped = getattr(optimizer, "found_inf", None)  # a gradient scaler makes a fused optimizer skip the step
        if isinstance(skipped, Tensor) and skipped.item():
            return
        for gate in self._gates:
            lr = float(optimizer.param_groups[gate.group]["lr"])
            value = local(gate.value)
            value.copy_(softshrink(value, lr * self._lambdas[gate.adapter]))
        self._check_finite()

    def _check_finite(self) -> None:
        """Transfer one value from the device, and all gates only if it is not finite."""
        device = self._gates[0].value.device
        if torch.stack([local(gate.value).sum().to(device) for gate in self._gates]).sum().isfinite():
            return
        for gate in self._gates:
            if not local(gate.value).isfinite().all():
                raise TrainingError(f"SoRA gate {gate.name} is not finite at step {self._step}.")

    def remove(self) -> None:
        """Stop shrinking."""
        self._handle.remove()
        self._tuner.shrinks = False


def attach(optimizer: Any, model: nn.Module, *, steps: int | None = None, schedule: Any = None) -> Threshold:
    """Shrink the gates that `model` trains after each step of `optimizer`, until `.remove()` is called.

    Args:
        optimizer: Any torch optimizer, also from accelerate's `prepare`.
        model: The PeftModel, wrapped or not.
        steps: Optimizer steps of the whole run, including those before a resume. Required with `shrink_budget`.
        schedule: The learning rate scheduler, if there is one. In a resumed run its state must be loaded already; the
            saved lambda of the adapter is kept.

    Raises:
        ConfigError: no gates to train, gates outside the optimizer or with weight decay, or a schedule that cannot be
            evaluated in advance.
        TrainingError: the gates are sharded; later, a gate that is not finite.
    """
    tuner, optimizer = sora_tuner(model), getattr(optimizer, "optimizer", optimizer)
    if tuner is None:
        raise ConfigError("the model has no SoRA adapter; make one with get_peft_model(base, qpeft.SoRAConfig(...))")
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"{type(optimizer).__name__} is not a torch optimizer, so the gates cannot follow its steps")
    gates = _find_gates(tuner, optimizer)
    done = getattr(_unwrap(schedule), "last_epoch", 0)
    for name in dict.fromkeys(gate.adapter for gate in gates):
        own = [gate for gate in gates if gate.adapter == name]
        _check_groups(own, tuner.peft_config[name], optimizer)  # type: ignore[arg-type]
        _set_lambda(tuner.peft_config[name], optimizer, own[0].group, steps, schedule, done)
    return Threshold(tuner, optimizer, gates, done)


def _find_gates(tuner: GatedTuner, optimizer: Optimizer) -> list[_Gate]:
    containers: list[Any] = [module for name, module in tuner.named_modules() if name.endswith(".sora_gate")]
    if any(sharded_by(m) and not all(hasattr(gate, "to_local") for gate in m.values()) for m in containers):
        raise TrainingError(
            "SoRA gates are sharded by the optimizer wrapper; exclude parameters named 'sora_gate' from sharding."
        )
    groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    gates = []
    for site, adapter, value in tuner.gates():
        name = f"{site}.sora_gate.{adapter}"
        if not value.requires_grad:
            continue
        if id(value) not in groups:
            raise ConfigError(f"SoRA gate {name} is not in the optimizer; give it the parameters of the model")
        gates.append(_Gate(name, adapter, value, groups[id(value)]))
    if not gates:
        raise ConfigError("no SoRA gate is trained; load the adapter with is_trainable=True, or activate it")
    return gates


def _check_groups(gates: list[_Gate], config: SoRAConfig, optimizer: Optimizer) -> None:
    for gate in gates:
        if decay := optimizer.param_groups[gate.group].get("weight_decay", 0):
            raise ConfigError(
                f"SoRA gate {gate.name} is in a parameter group with weight_decay={decay}; gates need their own group "
                "with weight_decay=0; use qpeft.param_groups"
            )
    groups = {gate.group for gate in gates}
    mine = {id(gate.value) for gate in gates}
    alone = all(id(p) in mine for p in optimizer.param_groups[gates[0].group]["params"])
    if len(groups) > 1 or (config.gate_lr_mult != 1 and not alone):
        raise ConfigError(
            f"the gates of an adapter must be in one parameter group, and with gate_lr_mult={config.gate_lr_mult} "
            "alone in it; use qpeft.param_groups"
        )


def _set_lambda(config: Any, optimizer: Optimizer, group: int, steps: int | None, schedule: Any, done: int) -> None:
    """Set `sora_lambda` and `planned_steps` of the config, or keep those of a checkpoint."""
    kept = config.sora_lambda if done > 0 and config.sparse_lambda is None else None
    if kept is not None:
        if steps != config.planned_steps:
            warnings.warn(
                f"SoRA: planned steps changed from {config.planned_steps} to {steps}; keeping lambda={kept} from the "
                "checkpoint.",
                stacklevel=1,  # attributed to qpeft, whose warnings the command line shows
            )
        return
    if config.sparse_lambda is not None:
        config.sora_lambda = config.sparse_lambda
    else:
        config.sora_lambda = config.shrink_budget and _spread(config.shrink_budget, optimizer, group, steps, schedule)
    config.planned_steps = steps
    if (config.sparse_lambda or 0) > 1 and "adam" in type(optimizer).__name__.lower():
        warnings.warn(
            f"SoRA: {setting('sparse_lambda')}={config.sparse_lambda:.4g} exceeds 1; with Adam-type optimizers the "
            "threshold can outweigh any gradient and remove every rank.",
            QpeftWarning,
            stacklevel=1,
        )


def _spread(shrink_budget: float, optimizer: Optimizer, group: int, steps: int | None, schedule: Any) -> float:
    if steps is None:
        raise ConfigError(
            f"{setting('shrink_budget')} is distributed over the planned steps: give steps=..., or set "
            f"{setting('sparse_lambda')}"
        )
    total = math.fsum(planned_learning_rates(optimizer, group, steps, schedule))
    if not total > 0:
        raise ConfigError("The gate learning rate is zero over the whole schedule; lambda is undefined.")
    return shrink_budget / total


def planned_learning_rates(optimizer: Optimizer, group: int, steps: int, schedule: Any) -> list[float]:
    """The learning rate of each of `steps` optimizer steps, from the first of the whole run."""
    stride = _stride(schedule)
    schedule = _unwrap(schedule)
    if schedule is None:
        return [float(optimizer.param_groups[group]["lr"])] * steps
    if isinstance(schedule, LambdaLR):
        base, factor = float(schedule.base_lrs[group]), schedule.lr_lambdas[group]
        return [base * factor(step * stride) for step in range(steps)]
    try:
        return _simulate(schedule, group, steps, stride)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            "shrink_budget needs a schedule that can be evaluated in advance; pass sparse_lambda instead."
        ) from error


def _simulate(schedule: Any, group: int, steps: int, stride: int) -> list[float]:
    """Step through a copy of the schedule, on an optimizer with the same options and without parameters."""
    if schedule.last_epoch > 0:
        raise ValueError("the schedule has begun")
    optimizer = torch.optim.SGD([torch.zeros(1)])
    settings = [{k: v for k, v in g.items() if k != "params"} for g in schedule.optimizer.param_groups]
    optimizer.param_groups = [{**copy.deepcopy(kept), "params": []} for kept in settings]
    copied = copy.deepcopy(schedule, {id(schedule.optimizer): optimizer})
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the optimizer makes no steps
        for _ in range(steps):
            rates.append(float(optimizer.param_groups[group]["lr"]))
            for _ in range(stride):
                copied.step()
    return rates


def _unwrap(schedule: Any) -> Any:
    return schedule.scheduler if isinstance(schedule, AcceleratedScheduler) else schedule


def _stride(schedule: Any) -> int:
    """Steps of the scheduler per step of the optimizer: with accelerate, one for each process."""
    if not isinstance(schedule, AcceleratedScheduler) or schedule.split_batches:
        return 1
    return AcceleratorState().num_processes if schedule.step_with_optimizer else 1
