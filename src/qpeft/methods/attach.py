"""Put a generator over a stock adapter that is already on a model.

PEFT builds and runs such an adapter as usual. Only the origin of its tensors differs, and therefore
saving, loading and merging: the PeftModel gets a class for these.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import AdaLoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from qpeft.checks import option
from qpeft.circuits.numerics import Float32ByDefault
from qpeft.core.base_digest import check_base, name_of, record_or_check_base
from qpeft.core.compact_state import CompactState
from qpeft.core.config import GeneratedConfig
from qpeft.core.generator_holder import GeneratorHolder, described_by, holder_in, holder_of
from qpeft.core.meta_model import peft_model_of, refuse_merged
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import DRAWN_INITS, Slot, find_slots, slots_in
from qpeft.core.targets import check_called, check_order
from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import as_json
from qpeft.generator_config import GeneratorConfig, generator_config, generator_name
from qpeft.methods.registry import get, keys

_PROMPT_SIZES = ("num_layers", "token_dim", "num_attention_heads")


def attach(model: PeftModel, config: GeneratorConfig) -> PeftModel:
    """Let QPA, or another generator, compute every trainable tensor of the adapter that PEFT has
    put on `model`.

    With QPA's `init_mode="residual"` the outputs of the model do not change. `modules_to_save` and
    unfrozen biases remain ordinary parameters. PEFT drew the initial values of the adapter, so a
    compact adapter contains them as well, except with `init_mode="raw"`, which does not use
    them.

    Example::

        model = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20))
        model = qpeft.attach(model, qpeft.QPAGeneratorConfig(budget=0.5))

    Args:
        model: A PeftModel with one adapter; changed in place. It cannot have another one.
        config: A QPAGeneratorConfig, or another `qpeft.methods.GeneratorConfig` with a name.

    Returns:
        `model`. Its checkpoints contain the generator, and `qpeft.load` and `qpeft.export` support
        it.

    Raises:
        ConfigError: the adapter is not the only one, or generated already; its tensors cannot be
            generated; or the configuration does not fit it.
    """
    model = peft_model_of(model)
    registered = generator_name(config)
    _check_host(model)
    (name,) = model.peft_config
    host: Any = model.peft_config[name]
    slots = config.order(generated_slots(model, name))
    initial = [_tensor(slot).detach().float().flatten().cpu() for slot in slots]
    with Float32ByDefault():
        generator = config.make(slots, torch.cat(initial), SeededInit(config.seed))
    keys_of_parts = [*generator.state_dict(), *dict(generator.named_parameters())]
    parts = {key.partition(".")[0] for key in keys_of_parts}
    if name in parts:
        raise ConfigError(
            f"an adapter with a generator attached cannot be called {name!r}, the name of a part of the"
            " generator; choose another adapter_name"
        )
    attached = AttachedConfig(
        task_type=host.task_type,
        # for None PEFT would look for a tuner
        base_model_name_or_path=host.base_model_name_or_path or "",
        host=_host_settings(host),
        generator=as_json(asdict(config)),  # type: ignore[call-overload]
        generator_name=registered,
    )
    record_or_check_base(attached, model.get_base_model(), name)
    model.__class__ = attached_class(AttachedModel, type(model))
    base = model.get_base_model()
    if model._is_prompt_learning:  # it is read before the base model's forward pass
        holder = GeneratorHolder(model, base, model.prompt_encoder[name], saved_path="")
    else:
        model.base_model.__class__ = attached_class(AttachedHost, type(model.base_model))
        holder = GeneratorHolder(model.base_model, base, base, saved_path="")
        holder.serve_layers(base)
    holder.hold(name, attached, generator, slots)
    holder.train_only([name])
    return model


def _host_settings(host: Any) -> dict[str, Any]:
    """The host's config as JSON, from which `AttachedConfig.to_stock` makes it again."""
    settings = host.to_dict()
    settings.pop("base_digest", None)
    settings["peft_type"] = host.peft_type
    settings["inference_mode"] = False
    if settings.get("modules_to_save"):
        # PEFT adds heads each time it builds a model
        settings["modules_to_save"] = sorted(set(settings["modules_to_save"]))
    return as_json(settings)


def _numbers(host: dict[str, Any]) -> dict[str, Any]:
    """What a host's config says in numbers and flags, such as the scale `lora_alpha`, without the
    sizes that PEFT takes from the base.
    """
    return {
        name: value
        for name, value in host.items()
        if isinstance(value, int | float) and name not in (*_PROMPT_SIZES, "inference_mode")
    }


def _check_host(model: Any) -> None:
    """Raise ConfigError unless a generator can produce the only adapter of this PeftModel."""
    if holder_of(model) is not None:
        raise ConfigError("the adapter is generated already; attach is for stock adapters")
    if len(model.peft_config) > 1:
        raise ConfigError(
            f"the model has the adapters {', '.join(model.peft_config)}; attach needs a model with"
            " one adapter"
        )
    (host,) = model.peft_config.values()
    init = getattr(host, "init_lora_weights", True)
    if init not in DRAWN_INITS:
        raise ConfigError(f"init_lora_weights={init!r} is not supported; use one of {DRAWN_INITS}")
    changes = [name for name in ("coft", "use_asa") if getattr(host, name, False)]
    if isinstance(host, AdaLoraConfig) or changes:
        raise ConfigError(
            f"{' '.join([type(host).__name__, *changes])} changes parameters outside of the"
            " optimizer; use another"
        )
    check_order(host, dict(model.get_base_model().named_modules()))
    refuse_merged(model.modules())


def generated_slots(model: PeftModel, adapter_name: str) -> list[Slot]:
    """The trainable tensors of an adapter, which `attach` generates, in PEFT's order.

    Raises ConfigError if no tensor is trainable, several modules share one, or one is never used.
    """
    if model._is_prompt_learning:
        slots = slots_in(model.prompt_encoder, adapter_name, "prompt_encoder")
    else:
        # PEFT's adaption prompts name no modules
        targets = getattr(model.base_model, "targeted_module_names", ())
        check_called(model.get_base_model(), targets)
        # trained copies of modules (modules_to_save) remain ordinary parameters
        wrappers = [m for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper)]
        copied = {id(module) for wrapper in wrappers for module in wrapper.modules()}
        layers = find_slots(model.get_base_model(), adapter_name, BaseTunerLayer)
        slots = [slot for slot, layer in layers if id(layer) not in copied]
    trained = [slot for slot in slots if _tensor(slot).requires_grad]
    if not trained:
        raise ConfigError(
            f"no tensor of adapter '{adapter_name}' is trainable; if it was loaded, load it with"
            " is_trainable=True"
        )
    # PEFT can make a prompt of which a part is frozen; of a layer somebody has frozen it
    frozen = [] if model._is_prompt_learning else [s.label for s in slots if s not in trained]
    if frozen:
        raise ConfigError(
            f"{frozen[0]} is frozen, and a saved adapter would not contain it; attach the generator"
            " before, or let all tensors of the adapter be trainable"
        )
    for slot in trained:
        if _tensor(slot)._backward_hooks:
            raise ConfigError(
                f"{slot.label} has a hook that changes its gradient, as those of OSF and CPT have;"
                " a generated tensor has none. Use another host"
            )
    _refuse_shared(model, trained)
    return trained


def _refuse_shared(model: nn.Module, slots: list[Slot]) -> None:
    """Raise ConfigError if other places read these tensors: one view cannot replace them there."""
    owners = {_tensor(slot).untyped_storage()._cdata: (slot.owner, slot.name) for slot in slots}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            place = (module, name)
            if owners.get(parameter.untyped_storage()._cdata, place) != place:
                raise ConfigError(
                    f"the adapter shares {path}.{name} between layers, so it cannot be generated;"
                    " use another host, or an option without shared tensors"
                )


def _tensor(slot: Slot) -> Any:
    return slot.owner._parameters[slot.name]


def load_attached(
    base: nn.Module,
    folder: Path,
    *,
    config: AttachedConfig,
    is_trainable: bool = False,
    adapter_name: str = "default",
) -> PeftModel:
    """The model saved in `folder` with this `config`: the host adapter on `base`, with its
    generator.

    Raises CheckpointError if the folder is damaged, or made for another base model; `base` is
    unchanged.
    """
    host = config.to_stock()
    if host.is_prompt_learning and hasattr(base, "config"):
        # then PEFT takes the sizes of `base`, and `load_values` compares them
        for name in _PROMPT_SIZES:
            setattr(host, name, None)
    host.base_model_name_or_path = None  # PEFT would warn of another name, not of weights
    model: Any = get_peft_model(base, host, adapter_name)
    try:
        attach(model, config.to_generator())
        model.load_values(folder, config, adapter_name, is_trainable=is_trainable)
    except BaseException:
        if not host.is_prompt_learning:
            model.unload()
        raise
    if is_trainable:
        return model
    # it belongs to the base that it was trained on, not to this one
    own = model.generators.configs[adapter_name]
    own.base_digest = config.base_digest
    own.base_model_name_or_path = config.base_model_name_or_path
    return model.requires_grad_(False)


class AttachedTuner(CompactState, BaseTuner):
    """The tuner class registered for attached adapters, which only `qpeft.load` can build, not PEFT
    alone.
    """

    load_folder = staticmethod(load_attached)

    def __new__(cls, *_: Any, **__: Any) -> AttachedTuner:
        raise ConfigError(
            "this is an adapter with a generator attached: load it with qpeft.load(base, folder),"
            " or make one with qpeft.attach(get_peft_model(base, host_config), generator_config)"
        )


@dataclass
class AttachedConfig(GeneratedConfig):
    """The content of an attached adapter's adapter_config.json."""

    host: dict[str, Any] = option(dict, "The stock adapter's config.")
    generator: dict[str, Any] = option(dict, "The generator's settings.")
    generator_name: str = option("qpa", "The registered name of the generator.")
    method_name = "QPEFT_ATTACHED"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.to_generator()  # raises an error for invalid settings

    def to_stock(self) -> PeftConfig:
        return PeftConfig.from_peft_type(**copy.deepcopy(self.host))

    def to_generator(self) -> GeneratorConfig:
        """The generator's configuration. Raises CheckpointError if the generator is not
        registered.
        """
        name = self.generator_name
        # the table of methods imports the class if necessary
        of_method = get(name).generator_class if name in keys() else None
        config_class = of_method or generator_config(name)
        return config_class(**self.generator)


class Attached:
    """Of a class that `attach` makes of a mixin and of one of PEFT's classes."""

    made_of: tuple[type, type]  # both

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # pickle cannot find a class that was made at run time
        _, _, *state = super().__reduce_ex__(protocol)
        return (_new, self.made_of, *state)


class AttachedHost(Attached, BaseTuner if TYPE_CHECKING else object):
    """Mixed in before the tuner of the host by `attach`: its generator is frozen with it."""

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        generators: Any = holder_in(self)
        with generators.detached():  # PEFT sets requires_grad of the tensors, which views refuse
            super().set_adapter(adapter_name, inference_mode=inference_mode)
        generators.train_only(self.active_adapters, inference_mode)

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        generators: Any = holder_in(self)
        with generators.detached():
            super().set_requires_grad(adapter_names, requires_grad)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in generators.keys() & set(names):
            generators[name].requires_grad_(requires_grad)

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        generators: Any = holder_in(self)
        if not enabled:
            generators.unmerge_exactly(self)
        with generators.detached():
            super()._enable_adapter_layers(enabled)
            generators.enable(enabled)


class AttachedModel(Attached, PeftModel if TYPE_CHECKING else object):
    """Mixed in before a PeftModel class by `attach`."""

    @property
    def generators(self) -> GeneratorHolder:
        """The generator of the adapter, by its name."""
        generators: Any = holder_of(self)
        return generators

    def get_base_model(self) -> Any:
        """The base model. PEFT finds it by the config, which is the generator's in a save."""
        return self.base_model.model if isinstance(self.base_model, BaseTuner) else self.base_model

    def _compact(self) -> AttachedModel:
        """This model as one of which PEFT saves and loads the generator."""
        ((name, config),) = self.generators.configs.items()
        return described_by(self, name, config)

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; the folder contains the generator, for `qpeft.load`."""
        kwargs.setdefault("save_embedding_layers", False)
        super(AttachedModel, self._compact()).save_pretrained(save_directory, *args, **kwargs)

    def load_adapter(
        self, model_id: Any, adapter_name: str, is_trainable: bool = False, *_: Any, **kwargs: Any
    ) -> Any:
        """Load the values of a folder of this adapter; ConfigError for any other adapter."""
        if adapter_name not in self.generators:
            self.add_adapter()
        folder = Path(model_id, kwargs.get("subfolder") or "")
        saved = AttachedConfig.from_pretrained(folder)
        if not isinstance(saved, AttachedConfig):
            raise CheckpointError(
                f"{folder} contains no attached adapter; load it on a base model of its own"
            )
        return self.load_values(folder, saved, adapter_name, is_trainable=is_trainable)

    def load_values(
        self, folder: Path, saved: AttachedConfig, adapter_name: str, *, is_trainable: bool
    ) -> Any:
        """Load the values of a folder with the config `saved`; what PEFT's `load_adapter` returns.

        Raises CheckpointError if they are of other tensors, or damaged.
        """
        live: Any = self.generators.configs[adapter_name]
        if saved.generated != live.generated or _numbers(saved.host) != _numbers(live.host):
            raise CheckpointError(
                f"{folder} generates other tensors than this adapter, or scales them otherwise: it"
                " is for another base model or adapter, or its adapter_config.json was edited"
            )
        check_base(saved, live.base_digest, name_of(self.get_base_model()))
        loaded = super(AttachedModel, self._compact()).load_adapter(
            folder, adapter_name, is_trainable, autocast_adapter_dtype=False
        )
        if not is_trainable:
            self.eval()  # PEFT does it with the described model
        return loaded

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        with self.generators.detached():  # as in `AttachedHost`
            super().set_adapter(adapter_name, inference_mode=inference_mode)
        self.generators.train_only(self.active_adapters, inference_mode)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        with self.generators.detached():  # as in `set_adapter`
            self.generators.enable(self._is_prompt_learning)  # PEFT does not freeze a prompt
            try:
                with super().disable_adapter():
                    yield
            finally:
                self.generators.enable(True)

    def add_adapter(self, *_: Any, **__: Any) -> None:
        raise ConfigError(
            "a model with an attached generator has one adapter; use another base model for another"
            " adapter, or qpeft.export this one, and load the stock adapters on one model"
        )

    delete_adapter = add_weighted_adapter = add_adapter

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        with self.generators.merging(self._tuner):
            self._tuner.merge_adapter(*args, **kwargs)

    def unmerge_adapter(self) -> None:
        with self.generators.merging(self._tuner):
            self._tuner.unmerge_adapter()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> Any:
        # PEFT can refuse, also in the middle; then the generator is still there
        with self.generators.merging(self._tuner):
            merged = self._tuner.merge_and_unload(*args, **kwargs)
        self.generators.release()
        return merged

    def unload(self) -> Any:
        tuner = self._tuner
        self.generators.release()
        return tuner.unload()

    @property
    def _tuner(self) -> Any:
        if not isinstance(self.base_model, BaseTuner):
            raise ConfigError(
                "a prompt is not part of the base weights, so it cannot be merged or unloaded"
            )
        return self.base_model


def _new(mixin: type, plain: type) -> Any:
    """An attached model, or its tuner, without content, for pickle."""
    made = attached_class(mixin, plain)
    return made.__new__(made)


@cache
def attached_class(mixin: type, plain: type) -> Any:
    """The class `plain` of PEFT with AttachedModel or AttachedHost mixed in."""
    # of a module of PEFT, as a stock tuner is, whose adapter PEFT alone can load
    members = {"made_of": (mixin, plain), "__module__": plain.__module__}
    return type(f"Attached{plain.__name__}", (mixin, plain), members)
