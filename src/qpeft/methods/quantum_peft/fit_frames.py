"""Fit the frames or initial angles of a new adapter to the loss gradient of the adapted matrices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from qpeft.core.adapter_form import check_adapted
from qpeft.core.config import FORMAT_VERSION
from qpeft.core.frame_file import new_path, write_frame_file
from qpeft.core.targets import check_is_matrix
from qpeft.core.tuner import GeneratedMixin
from qpeft.errors import ConfigError, DataError, TrainingError, setting

_Call = tuple[str, Tensor, GradientEdge]  # of a layer: its name, input x, and the graph node of its output


def fit_frames(model: Any, batches: Iterable[Mapping[str, Any]], *, save_to: str | Path | None = None) -> None:
    """Fit gradient frames, or initial angles, of the model's Quantum-PEFT adapters; once, before training.

    64 blocks of the training text are sufficient. Nothing else in the model changes. This needs memory for one float32
    matrix per adapted module and for the activations of one batch, because activation checkpointing is off in
    evaluation mode.

    Example::

        model = get_peft_model(base, QuantumPeftConfig(frame="gradient", target_modules="all-linear"))
        qpeft.fit_frames(model, [tokenizer(text, return_tensors="pt") for text in texts[:64]])

    Args:
        model: A PeftModel with an adapter whose config has frame="gradient", frame="sign" or start="gradient".
        batches: Arguments of `model(**batch)`. Default `labels` of a language model are `input_ids`; with padding,
            give labels that are -100 there.
        save_to: A new frame file, to which the adapter refers from now on instead of storing its frames; ".safetensors"
            is added to the name. Other adapters use it with `QuantumPeftConfig(frames=...)`.

    Raises:
        ConfigError: no adapter needs a fit, or the adapter is merged, or `save_to` exists.
        DataError: no batch, or one without a loss.
        TrainingError: a loss or gradient is not finite, or the loss does not depend on an adapted module.
        CheckpointError: a loaded adapter was trained in other frames.
    """
    check_adapted(model)
    tuner: Any = model.base_model
    generators: Any = tuner.generators.items() if isinstance(tuner, GeneratedMixin) else ()
    unfitted = {name: generator for name, generator in generators if getattr(generator, "needs_fit", False)}
    if not unfitted:
        raise ConfigError(
            "no adapter of this model needs a fit; fit_frames is for a new QuantumPeftConfig with "
            "frame='gradient', frame='sign' or start='gradient', and is called once"
        )
    path = None if save_to is None else _path_for_frames(save_to, tuner, list(unfitted))
    modules = {adapter: _adapted_modules(tuner, adapter) for adapter in unfitted}
    gradients = collect_gradients(model, {name for names in modules.values() for name in names}, batches)
    for adapter, generator in unfitted.items():
        generator.fit({name: gradients[name] for name in modules[adapter]})
    tuner.invalidate()
    if path is not None:
        _move_frames(tuner, next(iter(unfitted)), path)


def save_frames(model: Any, path: str | Path) -> str:
    """Write the frames of the model's one adapter to a new frame file, to which it then refers; returns its SHA-256.

    Raises ConfigError if the file exists, or if the adapter has no gradient frames of its own.
    """
    tuner = model.base_model
    return _move_frames(tuner, "default", _path_for_frames(path, tuner, ["default"]))


def _path_for_frames(save_to: str | Path, tuner: Any, adapters: list[str]) -> Path:
    configs = [tuner.peft_config[name] for name in adapters]
    if len(configs) != 1 or getattr(configs[0], "frame", None) != "gradient" or configs[0].frames is not None:
        raise ConfigError(
            "a frame file is written for one adapter with frame='gradient' whose frames are not in a file yet; this "
            f"model has {', '.join(adapters)}"
        )
    return new_path(save_to)


def _move_frames(tuner: Any, adapter: str, path: Path) -> str:
    config, generator = tuner.peft_config[adapter], tuner.generators[adapter]
    file = write_frame_file(path, generator.matrix_frames(), config.shared_settings(), tuner.model)
    config.frames, config.format_version = str(file.path), FORMAT_VERSION
    config.read_files(tuner.model)
    generator.set_frame_file(dict(generator.frames.named_buffers()))
    return file.sha256


def fit_for(config: Any) -> Callable[[Any, Any], None] | None:
    """`fit_frames`, if frames or initial angles of `config` depend on the gradient, and are in no frame file."""
    wanted = config.follows_gradient or config.start == "gradient"
    return fit_frames if wanted and config.frames is None else None


def collect_gradients(model: Any, names: Collection[str], batches: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Loss gradient of base weights, (d_out, d_in) float32 by module name, the mean over the batches.

    The model runs in evaluation mode with disabled adapters. Afterwards both are restored, and no `grad` is set.

    Args:
        model: A PeftModel.
        names: Adapted modules (`nn.Linear` or `Conv1D`) by their names in the base model.
        batches: As for `fit_frames`.

    Raises:
        DataError, TrainingError: as for `fit_frames`.
        ConfigError: an adapter is merged into its layer.
        UnsupportedTypeError: a module is neither `nn.Linear` nor `Conv1D`.
    """
    layers = {name: _base_layer(model, name) for name in sorted(names)}
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    n = 0
    calls: list[_Call] = []
    with _untouched(model), _recorded(layers, calls), torch.inference_mode(False), torch.enable_grad():
        for n, batch in enumerate(batches, start=1):
            _add_gradients(sums, calls, _loss(model, batch, device, n))
            calls.clear()
    if n == 0:
        raise DataError("fit_frames got no batches; give it an iterable of dicts, such as a list or a DataLoader")
    for name in layers:
        _check_gradient(name, sums.get(name))
    return {name: sums[name].div_(n) for name in layers}


def _adapted_modules(tuner: Any, adapter_name: str) -> list[str]:
    return [
        name
        for name, layer in tuner.model.named_modules()
        if isinstance(layer, BaseTunerLayer) and adapter_name in getattr(layer, "lora_A", ())
    ]


def _base_layer(model: Any, name: str) -> nn.Module:
    module = model.base_model.model.get_submodule(name)
    layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    check_is_matrix(layer, name)
    return layer


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Within: evaluation mode with disabled adapters."""
    switches = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    if any(getattr(m, "merged", False) for m in switches):
        raise ConfigError("the adapter is merged into the weights; call model.unmerge_adapter() before fit_frames")
    modes = [(m, m.training) for m in model.modules()]
    off = [(m, m._disable_adapters) for m in switches]
    try:
        model.eval()
        for m in switches:  # not enable_adapters(), which also changes requires_grad
            m._disable_adapters = True
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        for m, was_off in off:
            m._disable_adapters = was_off


@contextmanager
def _recorded(layers: Mapping[str, nn.Module], calls: list[_Call]) -> Iterator[None]:
    """Within: every forward pass of a layer is appended to `calls`."""

    def hook_for(name: str) -> Any:
        def record(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output.requires_grad_()  # everything before is frozen: the graph begins here
            calls.append((name, args[0].detach(), get_gradient_edge(output)))
            return output.clone() if output.is_leaf else output  # a leaf cannot be modified in place

        return record

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(hook_for(name)).remove)
        yield


def _loss(model: Any, batch: Mapping[str, Any], device: torch.device, n: int) -> Tensor:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(batch, Mapping) or (isinstance(ids, Tensor) and ids.ndim < 2):
        raise DataError(
            f"batch {n} of fit_frames does not suit model(**batch); give a list of dicts such as {{'input_ids': ids}}, "
            "ids of shape (blocks, tokens)"
        )
    inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    if "labels" not in inputs and "input_ids" in inputs and model.get_output_embeddings() is not None:
        inputs["labels"] = inputs["input_ids"]
    loss = getattr(model(**inputs), "loss", None)
    if loss is None:
        raise DataError(f"no loss for batch {n} of fit_frames, which has {sorted(inputs)}; add 'labels'")
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss of batch {n} of fit_frames is {loss.item()}; check the batch and the base model")
    return loss


def _add_gradients(sums: dict[str, Tensor], calls: list[_Call], loss: Tensor) -> None:
    """Add g^T x of each call: dL/dW for y = x W^T, (d_out, d_in)."""
    if not calls or not loss.requires_grad:
        return
    edges = [edge for _, _, edge in calls]  # edges, because a model may modify the outputs in place
    found = torch.autograd.grad(loss, edges, allow_unused=True)
    for (name, x, _), g in zip(calls, found, strict=True):
        if g is not None:
            gradient = g.flatten(0, -2).float().mT @ x.flatten(0, -2).float()
            sums[name] = sums[name].add_(gradient) if name in sums else gradient


def _check_gradient(name: str, gradient: Tensor | None) -> None:
    if gradient is None:
        raise TrainingError(
            f"the loss does not depend on {name} in these batches; exclude it from "
            f"{setting('target_modules')}, or give batches "
            "that use it"
        )
    if not torch.isfinite(gradient).all():
        raise TrainingError(
            f"the loss gradient of {name} is not finite; load the base model in float32 or bfloat16, or use smaller "
            "batches"
        )
