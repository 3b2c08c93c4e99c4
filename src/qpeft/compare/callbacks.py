"""Trainer callbacks of a cell: save the parameters with the lowest validation loss; record facts about the run."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback

from qpeft.errors import CheckpointError
from qpeft.files import replace_file
from qpeft.training.tasks import Task


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name; shared parameters once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class KeepBest(TrainerCallback):
    """Saves the trainable parameters each time the validation loss reaches a new minimum."""

    def __init__(self, path: Path):
        self._path = path
        self._lowest = best_of(path)[1] if path.exists() else float("inf")

    def on_log(self, args, state, control, **kwargs: Any) -> None:
        loss = kwargs["logs"].get("eval_loss")
        if loss is None or loss >= self._lowest:
            return
        self._lowest = loss
        metadata = {"step": str(state.global_step), "valid_loss": repr(loss)}
        parameters = {name: p.detach().cpu().contiguous() for name, p in _trainable(kwargs["model"]).items()}
        with replace_file(self._path) as temporary:
            save_file(parameters, temporary, metadata=metadata)


def best_of(path: Path) -> tuple[int, float]:
    """Step and validation loss of the file that KeepBest wrote. Raises CheckpointError for a damaged one."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata()
            return int(metadata["step"]), float(metadata["valid_loss"])
    except Exception as error:  # safetensors has no public error class
        raise CheckpointError(f"{path} is damaged ({error}); delete its folder, and the cell runs again") from error


def restore(model: nn.Module, path: Path) -> None:
    """Copy the saved parameters into the trained model. Raises CheckpointError if it has other parameters."""
    parameters = _trainable(model)
    with safe_open(path, framework="pt") as opened:
        if set(opened.keys()) != set(parameters):
            raise CheckpointError(f"{path} holds other parameters than those of this model; delete its folder")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(opened.get_tensor(name))


class RunFacts(TrainerCallback):
    """Data order, tokens seen, and bytes of the optimizer's state; set when training has ended."""

    order_sha256: str
    tokens_seen: int
    optimizer_bytes: int

    def __init__(self, task: Task):
        self._task = task

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        order = _order(kwargs["train_dataloader"], args.max_steps * args.gradient_accumulation_steps)
        targets = [
            getattr(example, "n_targets", 1) for example in self._task.train
        ]  # an example of a class counts as 1
        self.order_sha256 = hashlib.sha256(json.dumps(order).encode()).hexdigest()
        self.tokens_seen = sum(targets[place] for batch in order for place in batch)

    def on_train_end(self, args, state, control, **kwargs: Any) -> None:
        states = kwargs["optimizer"].state.values()
        tensors = [value for entry in states for value in entry.values() if isinstance(value, torch.Tensor)]
        self.optimizer_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _order(loader: Any, n_batches: int) -> list[list[int]]:
    """Positions of the examples in the run's batches. The loader itself is not advanced."""
    batches: list[list[int]] = []
    sampler = copy.deepcopy(loader.batch_sampler)
    epoch = 0
    while len(batches) < n_batches:
        if (set_epoch := getattr(getattr(sampler, "sampler", None), "set_epoch", None)) is not None:
            set_epoch(epoch)
        batches += [list(map(int, batch)) for batch in sampler]
        epoch += 1
    return batches[:n_batches]
