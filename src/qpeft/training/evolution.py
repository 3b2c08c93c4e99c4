"""Training with forward passes alone: an evolution strategy estimates the gradient from losses.

Each pair of forward passes has a direction e of independent standard normal values. The loss is computed at the
parameters plus and minus sigma e, on the same batch and without dropout, and the estimate is the mean over the pairs of
e (loss+ - loss-) / (2 sigma). Its expectation is the gradient of the loss, averaged over normal perturbations of
standard deviation sigma. With n parameters and few pairs the cosine between estimate and gradient is about
sqrt(pairs / n), so few parameters are needed.

A direction is a function of seed, step and pair, so a checkpoint of the Trainer is complete. All parameters are
perturbed by the same sigma. Where a factor between learning rates is part of the parametrization (`Folded`), it
multiplies the perturbation too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer

from qpeft.training.metrics import evaluation_mode


class EvolutionTrainer(Trainer):
    """A Trainer whose gradients are estimates. Optimizer, schedule, logging and checkpoints are the Trainer's own."""

    def __init__(self, *arguments: Any, pairs: int, sigma: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pairs, self._sigma = pairs, sigma

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of the perturbed parameters. Its gradient is the estimate; it has no other graph."""
        forward: Any = super().compute_loss
        if return_outputs:
            return forward(model, inputs, return_outputs, num_items_in_batch)
        parameters = [p for p in model.parameters() if p.requires_grad]
        with evaluation_mode(model):
            loss, gradient = estimate_gradient(
                lambda: forward(model, dict(inputs), num_items_in_batch=num_items_in_batch).mean(),
                parameters,
                pairs=self._pairs,
                sigma=self._sigma,
                seed=self.args.seed,
                step=self.state.global_step,  # the micro-batches of a step have the same directions
            )
        linear = torch.stack([(p * g).sum().to(loss) for p, g in zip(parameters, gradient, strict=True)]).sum()
        return loss + (linear - linear.detach())


@torch.no_grad()
def estimate_gradient(
    loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], *, pairs: int, sigma: float, seed: int, step: int
) -> tuple[Tensor, list[Tensor]]:
    """The mean of all losses, scalar, and the estimated gradient of each parameter.

    `loss` is called `2 * pairs` times, while the parameters are perturbed and do not require gradients. Afterwards they
    have their old values, bit for bit.
    """
    before = [p.clone() for p in parameters]
    gradient = [torch.zeros_like(p) for p in parameters]
    losses = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for pair in range(pairs):
            direction = _direction(parameters, seed, step, pair)
            for change in (sigma, -sigma):
                for parameter, value, e in zip(parameters, before, direction, strict=True):
                    parameter.copy_(torch.add(value, e, alpha=change))
                losses.append(loss().detach())
            slope = (losses[-2] - losses[-1]) / (2 * sigma * pairs)
            for total, e in zip(gradient, direction, strict=True):
                total.add_(slope * e)
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
            parameter.requires_grad_()
    return torch.stack(losses).mean(), gradient


def _direction(parameters: Sequence[nn.Parameter], seed: int, step: int, pair: int) -> list[Tensor]:
    """Standard normal values for each parameter, with its shape, dtype and device; equal on every device."""
    draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, pair, step]))
    values = (draw.standard_normal(p.numel(), dtype=np.float32) for p in parameters)
    return [torch.from_numpy(e).view(p.shape).to(p) for e, p in zip(values, parameters, strict=True)]
