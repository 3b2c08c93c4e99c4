"""The folder of an exported adapter: its target, its config, and the comparison with the live model."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qpeft.core.tied_weights import check_not_tied
from qpeft.core.weights_hash import sets_in_order
from qpeft.errors import ConfigError, TiedWeightError, VerificationError
from qpeft.files import output_folder

RECORD = "qpeft.json"  # how an exported adapter was made
_WRITTEN = (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, RECORD, "README.md", "task.json")
FLOAT32_TOLERANCE = 1e-6


def check_free(target: Path) -> Path:
    """The folder to replace, links followed. Raises ConfigError if anything but an earlier export would be lost."""
    output_folder(target)
    if target.is_dir() and any(target.iterdir()) and not (target / RECORD).is_file():
        raise ConfigError(f"{target} is not empty and not an earlier export; give another folder")
    return refuse_others(target, _WRITTEN)


def refuse_others(target: Path, names: Collection[str]) -> Path:
    """The folder to replace, links followed. Raises ConfigError if it is none, or has anything but these `names`."""
    real = output_folder(target)
    if real.exists() and (real.is_mount() or real.samefile(os.curdir)):
        what = "a mount point" if real.is_mount() else "the current folder"
        raise ConfigError(f"{target} is {what}, which cannot be replaced; give a folder inside it")
    output_folder(real.parent)  # the new folder is made there
    others = sorted(path.name for path in target.iterdir() if path.name not in names) if target.is_dir() else []
    if others:
        raise ConfigError(
            f"{target} contains other files ({', '.join(others[:3])}), which would be lost; give another folder"
        )
    return real


def check_not_merged(model: nn.Module) -> None:
    """Raise ConfigError if an adapter is merged into the base weights."""
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise ConfigError("the adapter is merged into the base model; call model.unmerge_adapter() before exporting")


def to_file(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors saves them. Raises ConfigError for values that are not finite."""
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise ConfigError(f"non-finite adapter parameter in {key}; export an earlier checkpoint")
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def write_config(config: PeftConfig, model: Any, folder: Path) -> None:
    """adapter_config.json, as stock PEFT would have saved it for this model."""
    config.inference_mode = True
    known = model.get_base_model().__dict__.get("name_or_path") or None
    config.base_model_name_or_path = config.base_model_name_or_path or known
    auto_mapping = None
    if config.task_type is None:
        base = model.get_base_model()
        auto_mapping = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    with sets_in_order(config):
        config.save_pretrained(str(folder), auto_mapping_dict=auto_mapping)


def tied_target(model: Any) -> str | None:
    """The adapted module that shares its weight with the input embedding; None without one."""
    tuner = model.base_model
    if not isinstance(tuner, BaseTuner):
        return None
    try:
        check_not_tied(tuner.model, tuner.targeted_module_names)
    except TiedWeightError as error:
        return str(error).split(" ", 1)[0]
    return None


def load_stock(model: Any, folder: Path, inputs: Mapping[str, Tensor], *, autocast_adapter_dtype: bool = True) -> Any:
    """The folder's adapter under stock PEFT, on a base that shares every weight with the live model's."""
    if any(getattr(parameter, "CB", None) is not None for parameter in model.parameters()):
        scores(model, inputs)  # bitsandbytes moves 8-bit weights at their first use, which a copy would not notice
    config = PeftConfig.from_pretrained(str(folder))
    if isinstance(getattr(config, "init_lora_weights", None), str):
        # an initialization such as PiSSA or OLoRA would subtract its part from the base again
        config.init_lora_weights = True  # type: ignore[attr-defined]
    if getattr(config, "layer_replication", None):
        config.layer_replication = None  # type: ignore[attr-defined]  the live model's layers are replicated already
    base = _base_sharing_weights(model)
    loaded = PeftModel.from_pretrained(base, str(folder), config=config, autocast_adapter_dtype=autocast_adapter_dtype)
    return loaded.eval()


def scores(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits, or the first output of a model without a head, in the precision of the weights."""
    device = next(model.parameters()).device.type
    with torch.no_grad(), _without_mixed_precision(model), torch.autocast(device, enabled=False):
        output = model(**inputs)
    return output.logits if hasattr(output, "logits") else output[0]


@contextmanager
def _without_mixed_precision(model: nn.Module) -> Iterator[None]:
    """Within: the model's own forward, without the autocast that accelerate wraps around it for bf16."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.__dict__["forward"] = wrapped


def tolerance(live: Tensor, *, same_shapes: bool = True) -> float:
    """The allowed difference of logits: 1e-6, or several roundings of the largest logit.

    Equal values in tensors of equal shapes are summed in the same order: no rounding in float32, one in half precision.
    In tensors of other shapes, for example with fewer ranks, the order of sums differs: 64 and 8 roundings.
    """
    single = live.dtype == torch.float32
    roundings = (0 if single else 1) if same_shapes else (64 if single else 8)
    return max(FLOAT32_TOLERANCE, roundings * torch.finfo(live.dtype).eps * live.abs().max().item())


def check_equal(live: Tensor, reloaded: Tensor, allowed: float) -> float:
    """The largest difference. Raises VerificationError if it is more than `allowed`."""
    difference = (live.float() - reloaded.float()).abs().max().item()
    if not difference <= allowed:
        raise VerificationError(
            f"the exported adapter's logits differ from the live model's by {difference:.3g}, more than "
            f"{allowed:.1g}; nothing was saved. Stock PEFT may be unable to rebuild the state of this base model"
        )
    return difference


@contextmanager
def same_mode_after(model: nn.Module) -> Iterator[None]:
    """Afterwards the same parameters are trainable and the mode is the same.

    The stock copy shares parameters with the live model, and loading its adapter freezes them.
    """
    training = model.training
    wants = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        yield
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wants[name])


def _base_sharing_weights(model: Any) -> nn.Module:
    """A copy of the base model without adapters that shares every weight."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    for name, module in list(copied.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):  # tuners other than LoRA's cannot unload a block of modules
            copied.set_submodule(name, module.original_module)
    return copied.unload() if isinstance(model.base_model, BaseTuner) else copied.base_model
