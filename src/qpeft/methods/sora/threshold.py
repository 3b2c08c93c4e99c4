"""The proximal step of SoRA: each optimizer step is followed by a soft threshold on the gates.

    g <- S(g, lr_t lambda)    S(v, k) = sign(v) max(|v| - k, 0)    lambda = shrink_budget / (lr_0 + ... + lr_{T-1})

lr_t is the learning rate of step t. A gate without gradient therefore moves by shrink_budget in
total, for every height, shape and length of the schedule. The sum is over the whole schedule, also
in a resumed run, which thus ends with the gates of an uninterrupted one.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from accelerate.scheduler import AcceleratedScheduler
from torch import Tensor, nn
from torch.nn.functional import softshrink
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from qpeft.core.replication import n_processes
from qpeft.errors import ConfigError, QpeftWarning
from qpeft.methods.sora.model import SHRUNK, WAITING, SoRAModel, Waiting


class SoRACallback(TrainerCallback):
    """Shrinks SoRA's gates after each optimizer step of a Trainer:
    `Trainer(callbacks=[SoRACallback()], ...)`.

    Without a Trainer: `SoRACallback.attach(optimizer, model, steps=...)`.

    Raises ConfigError when training begins, as `attach` does.
    """

    @classmethod
    def attach(
        cls, optimizer: Any, model: nn.Module, *, steps: int | None = None, schedule: Any = None
    ) -> SoRACallback:
        """Shrink the gates that `model` trains after each step of `optimizer`, until `.remove()` is
        called.

        Args:
            optimizer: The torch optimizer that steps, also from accelerate's `prepare`: of SAM its
                `base_optimizer`. None that keeps parameters of its own, such as Lookahead or a
                schedule-free one.
            model: The PeftModel, wrapped or not.
            steps: Optimizer steps of the whole run, including those before a resume. Required with
                `shrink_budget`.
            schedule: The learning rate scheduler, if there is one; with `shrink_budget` a LambdaLR,
                such as transformers' schedules.

        Raises:
            ConfigError: no gates to train, gates outside the optimizer or with weight decay,
                another schedule, or a schedule-free optimizer.

        Warns with QpeftWarning if something else changes the gates and the optimizer does not step,
        or if gates that were zero change between its steps.
        """
        hook = cls()
        hook._begin(optimizer, model, steps, schedule)
        return hook

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(kwargs["optimizer"], kwargs["model"], state.max_steps, kwargs["lr_scheduler"])

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.remove()

    def _begin(self, optimizer: Any, model: nn.Module, steps: int | None, schedule: Any) -> None:
        tuners = (module for module in model.modules() if isinstance(module, SoRAModel))
        tuner: Any = next(tuners, None)
        if tuner is None:
            raise ConfigError(
                "the model has no SoRA adapter; make one with get_peft_model(base, SoRAConfig(...))"
            )
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's
        if hasattr(type(optimizer), "eval"):
            raise ConfigError(
                f"{type(optimizer).__name__} keeps parameters of its own, which SoRA's threshold"
                " does not reach, so no gate would become zero; take another optimizer"
            )
        self._generators = [g for g in tuner.generators.values() if g.gates.requires_grad]
        self._gates = [
            (generator.gates, tuner.peft_config[name])
            for name, generator in tuner.generators.items()
            if generator in self._generators
        ]
        self._group = _group_of(optimizer, {id(gates) for gates, _ in self._gates})
        for _, config in self._gates:
            config.sora_lambda = _lambda(config, optimizer, self._group, steps, schedule)
        for hook in list(optimizer._optimizer_step_post_hooks.values()):
            if isinstance(hook, SoRACallback):  # of an interrupted run; two would shrink twice
                hook.remove()
        self._left: list[Tensor] = []  # the gates after the last threshold
        self._handles = [
            optimizer.register_step_pre_hook(self._warn_of_undone),
            optimizer.register_step_post_hook(self),
        ]
        SHRUNK.update(self._generators)
        WAITING.update({generator: Waiting(generator.gates) for generator in self._generators})

    @torch.no_grad()
    def _warn_of_undone(self, *_: Any) -> None:
        """Warn once if gates that the threshold has made zero are not zero any more."""
        pairs = zip(self._left, self._gates, strict=False)  # none before the first step
        if any(((left == 0) & (gates != 0)).any() for left, (gates, _) in pairs):
            warnings.warn(
                "SoRA: gates that were zero were changed between two optimizer steps. What keeps"
                " parameters of its own, such as Lookahead, undoes the threshold so, and no gate"
                " will stay zero: take another optimizer. A checkpoint that was loaded does so once",
                QpeftWarning,
                stacklevel=2,
            )
            self._handles[0].remove()

    @torch.no_grad()
    def __call__(self, optimizer: Any, *_: Any) -> None:
        for generator in self._generators:
            WAITING.pop(generator, None)
        # a gradient scaler makes a fused optimizer skip the step
        skipped = getattr(optimizer, "found_inf", None)
        if isinstance(skipped, Tensor) and skipped.item():
            return
        learning_rate = float(optimizer.param_groups[self._group]["lr"])
        trained = (pair for pair in self._gates if pair[0].requires_grad)  # not frozen since
        for gates, config in trained:
            gates.copy_(softshrink(gates, learning_rate * config.sora_lambda))
        self._left = [gates.clone() for gates, _ in self._gates]

    def remove(self) -> None:
        """Stop shrinking."""
        for handle in self._handles:
            handle.remove()
        SHRUNK.difference_update(self._generators)
        for generator in self._generators:
            WAITING.pop(generator, None)


def _group_of(optimizer: Any, gates: set[int]) -> int:
    """The index of the parameter group of all `gates`, given by their ids."""
    if not gates:
        raise ConfigError(
            "no SoRA gate is trained; load the adapter with is_trainable=True, or activate it"
        )
    for index, group in enumerate(optimizer.param_groups):
        if gates <= {id(p) for p in group["params"]} and not group.get("weight_decay"):
            return index
    raise ConfigError(
        "SoRA's gates must be in one parameter group with weight_decay=0; use qpeft.param_groups"
    )


def _lambda(config: Any, optimizer: Any, group: int, steps: int | None, schedule: Any) -> float:
    """`sparse_lambda`, or `shrink_budget` divided by the sum of the planned learning rates."""
    if config.sparse_lambda is not None:
        return config.sparse_lambda
    if steps is None:
        raise ConfigError(
            "shrink_budget is distributed over the planned steps: give steps, or sparse_lambda"
        )
    # steps of the scheduler per step of the optimizer: with accelerate, one for each process
    stride = 1
    if isinstance(schedule, AcceleratedScheduler):
        stride = n_processes() if schedule.step_with_optimizer and not schedule.split_batches else 1
        schedule = schedule.scheduler
    if schedule is None:
        total = steps * float(optimizer.param_groups[group]["lr"])
    elif isinstance(schedule, LambdaLR):
        factor = schedule.lr_lambdas[group]
        sum_of_factors = math.fsum(factor(step * stride) for step in range(steps))
        total = float(schedule.base_lrs[group]) * sum_of_factors
    else:
        raise ConfigError(
            "shrink_budget needs the learning rate of every step in advance: a constant one or a"
            f" LambdaLR, got {type(schedule).__name__}; give sparse_lambda instead"
        )
    if not total > 0:
        raise ConfigError(
            "the learning rate of the gates is zero over the whole schedule, so lambda is undefined"
        )
    return config.shrink_budget / total
