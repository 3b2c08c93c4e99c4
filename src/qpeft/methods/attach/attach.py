"""Put a generator over any stock adapter that is already on a model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import _prepare_prompt_learning_config
from torch import nn

from qpeft.errors import CheckpointError, ConfigError
from qpeft.generator_config import GeneratorConfig
from qpeft.methods.attach.bind import bind
from qpeft.methods.attach.folder import read_config
from qpeft.methods.attach.model import AttachedModel, attached_class


def attach(model: PeftModel, config: GeneratorConfig, adapter_name: str | None = None) -> PeftModel:
    """Let QPA, or another generator, compute every trainable tensor of an adapter that PEFT has put on `model`.

    With QPA's `init_mode="residual"` the outputs of the model do not change. `modules_to_save` and unfrozen biases
    remain ordinary parameters. PEFT drew the initial values of the adapter, so a compact checkpoint contains them as
    well, except with `init_mode="raw"`, which does not use them.

    Example::

        model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20))
        model = qpeft.attach(model, qpeft.QPAGeneratorConfig(budget=0.5))

    Args:
        model: A PeftModel; changed in place.
        config: A QPAGeneratorConfig, or the configuration of a generator registered with `qpeft.register_generator`.
        adapter_name: Which adapter; by default the active one.

    Returns:
        `model`. Its checkpoints contain the generator, and `qpeft.load` and `qpeft.export` support it.

    Raises:
        ConfigError: there is no such adapter, it is generated already, its tensors cannot be generated, or the
            configuration does not fit it.
    """
    made = bind(model, config, adapter_name)
    if not isinstance(model, AttachedModel):
        model.__class__ = attached_class(type(model))
    assert isinstance(model, AttachedModel)
    model.hold(*made)
    return model


def load_attached(
    base: nn.Module,
    folder: Path,
    *,
    is_trainable: bool = False,
    adapter_name: str = "default",
    autocast_adapter_dtype: bool = True,
    **options: Any,
) -> PeftModel:
    """The model saved in `folder`: the host adapter on `base`, with its generator.

    Raises:
        CheckpointError: the folder is damaged, or made for another base model; `base` is unchanged.
        ConfigError: an option does not apply.
    """
    if options:
        raise ConfigError(f"an attached adapter cannot be loaded with {', '.join(sorted(options))}; leave it out")
    saved = read_config(folder)
    host = saved.to_stock()
    host.inference_mode, host.base_model_name_or_path = False, None  # PEFT would warn of another name, not of weights
    _check_prompt_fits(host, base)
    try:
        model = get_peft_model(base, host, adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # from PEFT, for a base without the targets
        raise CheckpointError(f"this adapter is for another base model: {error}") from error
    try:
        attached: Any = attach(model, saved.to_generator(), adapter_name)
        attached.load_adapter(folder, adapter_name, is_trainable=is_trainable)
    except BaseException:
        if isinstance(model.base_model, BaseTuner):
            model.unload()
        raise
    if not is_trainable:
        attached.requires_grad_(False)
    return attached


def _check_prompt_fits(host: Any, base: Any) -> None:
    """PEFT builds a prompt from its config alone and fails only in a forward pass."""
    if not host.is_prompt_learning or not hasattr(base, "config"):
        return
    fitting = copy.deepcopy(host)
    fitting.num_layers = fitting.token_dim = fitting.num_attention_heads = None
    fitting = _prepare_prompt_learning_config(fitting, base.config)
    for name in ("num_layers", "token_dim", "num_attention_heads"):
        found, wanted = getattr(host, name), getattr(fitting, name)
        if found not in (None, wanted):
            raise CheckpointError(
                f"this adapter is for another base model: its prompt has {name}={found}, this one needs {wanted}"
            )


class AttachedTuner:
    """The tuner class registered for attached adapters, which only `qpeft.load` can build, not PEFT alone."""

    container = "qpeft_generator"
    load_folder = staticmethod(load_attached)

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ConfigError(
            "this is an adapter with a generator attached: load it with qpeft.load(base, folder), or make one with "
            "qpeft.attach(get_peft_model(base, host_config), generator_config)"
        )
