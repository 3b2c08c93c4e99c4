"""Fit the frames of a new adapter to the loss gradient of the adapted matrices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qpeft.core.frame_file import new_path, write_frame_file
from qpeft.core.generator_holder import holder_of
from qpeft.core.meta_model import peft_model_of
from qpeft.core.replication import add_over_processes
from qpeft.errors import ConfigError, DataError, TrainingError


def fit_frames(
    model: Any, batches: Iterable[Mapping[str, Any]], *, save_to: str | Path | None = None
) -> None:
    """Fit gradient frames of the model's Quantum-PEFT adapters; once, before training.

    Give at least 64 blocks of the training text; with fewer, the adapter learns less. Nothing else
    in the model changes. This needs memory for one float32 matrix per adapted module and for the
    activations of one batch, because activation checkpointing is off in evaluation mode: batches of
    128 tokens are as fast as larger ones on a CPU.

    In several processes: under FSDP2 the gradients are averaged. Under DDP all processes get the
    frames of the first one in the first training step.

    Example::

        model = get_peft_model(base, QuantumPeftConfig(frame="gradient", target_modules="all-linear"))
        qpeft.fit_frames(model, [tokenizer(text, return_tensors="pt") for text in texts[:64]])

    Args:
        model: A PeftModel with an adapter whose config has frame="gradient" or frame="sign".
        batches: Arguments of `model(**batch)`. Default `labels` of a language model are
            `input_ids`; with padding, give labels that are -100 there.
        save_to: A new frame file, to which the adapter refers from now on instead of storing its
            frames; ".safetensors" is added to the name. Other adapters use it with
            `QuantumPeftConfig(frames=...)`.

    Raises:
        ConfigError: no adapter needs a fit, or the adapter is merged, or `save_to` exists, or is
            given for several adapters or an attached one.
        DataError: no batch, one without a loss, or `input_ids` that are no tensor (sequences, tokens).
        TrainingError: a loss or gradient is not finite, or the loss does not depend on an adapted
            module.
    """
    model = peft_model_of(model)
    generators: Any = holder_of(model) or {}
    unfitted = [
        generator for generator in generators.values() if getattr(generator, "needs_fit", False)
    ]
    if not unfitted:
        raise ConfigError(
            "no adapter of this model needs a fit; fit_frames is for a new QuantumPeftConfig with "
            "frame='gradient' or frame='sign', and is called once"
        )
    if save_to is not None:  # raise before the work
        new_path(save_to)
        _config_to_store(model)
    modules = {name for generator in unfitted for part in generator.parts for name in part.names}
    gradients = collect_gradients(model, modules, batches)
    for generator in unfitted:
        generator.fit(gradients)
    generators.invalidate()
    if save_to is not None:
        save_frames(model, save_to)


def save_frames(model: Any, path: str | Path) -> None:
    """Write the frames of the model's one adapter to a new frame file, to which it then refers.

    Raises ConfigError if the file exists, or if the adapter has no gradient frames of its own.
    """
    path = new_path(path)
    tuner = model.base_model
    config = _config_to_store(model)
    (generator,) = tuner.generators.values()
    frames = generator.matrix_frames()
    file = write_frame_file(path, frames, config.settings_beyond({}), tuner.model)
    config.frames = str(file.path)
    config.held_frame_file = file
    config.fill_from_frame_file(tuner.model)
    config.take_frame_file()  # to forget it: the generator has its frames
    generator.identify()


def _config_to_store(model: Any) -> Any:
    """The config of the model's adapter, whose frames a file can store. Raises ConfigError for any
    other model.
    """
    configs = list(model.peft_config.values())
    if len(configs) != 1 or fit_for(configs[0]) is None:
        raise ConfigError(
            "a frame file is written for one adapter with gradient frames that are not in a"
            " file yet"
        )
    return configs[0]


def fit_for(config: Any) -> Callable[[Any, Any], None] | None:
    """`fit_frames`, if the frames of `config` depend on the gradient, and are in no frame file."""
    return fit_frames if getattr(config, "stores_frames", False) else None


def collect_gradients(
    model: Any, names: Collection[str], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Loss gradient of base weights, (d_out, d_in) float32 by module name, the mean over the
    batches, under FSDP2 over those of all processes.

    The model runs in evaluation mode with disabled adapters. Afterwards both are restored, and no
    `grad` is set. `names` are those of adapted modules (`nn.Linear` or `Conv1D`) in the base model.
    Raises as `fit_frames`.
    """
    sums: dict[str, Tensor] = {}
    n = 0
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _untouched(model),
        _observed(model, names, sums) as switch,
    ):
        for n, batch in enumerate(batches, start=1):
            loss = _loss(model, batch, n)
            if loss.requires_grad:
                torch.autograd.grad(loss, switch, allow_unused=True)
    if n == 0:
        raise DataError(
            "fit_frames got no batches; give it an iterable of dicts, such as a list or a"
            " DataLoader"
        )
    for name in sorted(names):
        if name not in sums or not torch.isfinite(sums[name]).all():
            raise TrainingError(
                f"the loss gradient of {name} is not finite, or the loss does not depend on it:"
                " load the base model in float32 or bfloat16, give batches that use it, or exclude"
                " it from target_modules"
            )
    n_batches = torch.tensor(float(n), device=next(model.parameters()).device)
    # in one order in every process; frames of its own would be those of another adapter
    add_over_processes(model, [n_batches, *(sums[name] for name in sorted(names))])
    return {name: sums[name].div_(n_batches.item()) for name in names}


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Within: evaluation mode with disabled adapters."""
    switches = [
        m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    ]
    before = [(m, "training", m.training) for m in model.modules()]
    before += [(m, "_disable_adapters", m._disable_adapters) for m in switches]
    try:
        model.eval()
        for m in switches:  # not enable_adapters(), which also changes requires_grad
            m._disable_adapters = True
        yield
    finally:
        for m, name, value in before:
            setattr(m, name, value)


class _Observe(torch.autograd.Function):
    """The identity of a layer's output, whose backward adds the gradient of the layer's weight.

    The base is frozen, so autograd itself would not compute it. Adding to one matrix for each layer
    needs neither a second product in the forward pass nor a second matrix.
    """

    @staticmethod
    def forward(
        ctx: Any, switch: Tensor, output: Tensor, x: Tensor, sums: dict[str, Tensor], name: str
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.sums = sums
        ctx.name = name
        return output.clone()  # a view must not be changed in place by what follows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        rows = x.flatten(0, -2).float()  # (B T, d_in)
        columns = gradient.flatten(0, -2).float().mT  # (d_out, B T)
        if ctx.name in ctx.sums:
            ctx.sums[ctx.name].addmm_(columns, rows)
        else:
            ctx.sums[ctx.name] = columns @ rows
        return None, gradient, None, None, None


@contextmanager
def _observed(model: Any, names: Collection[str], sums: dict[str, Tensor]) -> Iterator[Tensor]:
    """Within: a backward pass adds the gradients of these layers' weights to `sums`, also those of
    quantized ones.

    Yields a scalar, on which every observed output seems to depend, so that it has a gradient.
    """
    switch = torch.zeros((), requires_grad=True)

    def observe(name: str, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _Observe.apply(switch, output, args[0].detach(), sums, name)  # type: ignore[return-value]

    with ExitStack() as stack:
        for name in names:
            layer = model.base_model.model.get_submodule(name).get_base_layer()
            stack.callback(layer.register_forward_hook(partial(observe, name)).remove)
        yield switch


def _loss(model: Any, batch: Mapping[str, Any], n: int) -> Tensor:
    if not isinstance(batch, Mapping):
        raise DataError(
            f"batch {n} of fit_frames is no dict; give a list of dicts such as {{'input_ids': ids}}"
        )
    ids = batch.get("input_ids")
    if ids is not None and getattr(ids, "ndim", 0) < 2:
        raise DataError(
            f"input_ids of batch {n} of fit_frames are no tensor (sequences, tokens); give what"
            " tokenizer(text, return_tensors='pt') gives"
        )
    device = next(model.parameters()).device
    inputs = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
    if "input_ids" in inputs and model.get_output_embeddings() is not None:
        inputs.setdefault("labels", inputs["input_ids"])
    loss = getattr(model(**inputs), "loss", None)
    if loss is None:
        raise DataError(
            f"no loss for batch {n} of fit_frames, which has {sorted(inputs)}; add 'labels'"
        )
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss of batch {n} of fit_frames is {loss.item()}; check the batch and the base"
            " model"
        )
    return loss
