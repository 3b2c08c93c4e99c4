"""The record of a fine-tuning method, which the rest of the program reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from typing import Any, Literal, NamedTuple

from qpeft.errors import ConfigError


class Trains(Enum):
    """What a training run of the method changes."""

    ADAPTER = "an adapter"
    HEAD = "a new classification head alone"
    MODEL = "every parameter of the base model"
    NOTHING = "nothing: the base model as it is"


class MeasuredBase(NamedTuple):
    """A base model on which learning rates were tried."""

    name: str
    parameters: int


class MeasuredRate(NamedTuple):
    """Of the learning rates that were tried on a base, the one that learned most."""

    value: float
    base: MeasuredBase
    task: str = "causal-lm"


class Control(NamedTuple):
    """The method with something else in place of its trained circuit, and equal apart from that."""

    label: str
    settings: Mapping[str, Any]  #: fields of the config that make it


class LearningRate(NamedTuple):
    """A learning rate for a run."""

    value: float
    source: str  #: what it rests on, for readers


SMOLLM2 = MeasuredBase("SmolLM2-135M-Instruct", 134_515_008)
MINILM = MeasuredBase("all-MiniLM-L6-v2", 22_713_216)
#: those of the studies that chose `Method.learning_rate`; most have the size of the embedded one
_SMALL = MeasuredBase("bases of up to 10 million parameters", 1_548_672)
_LARGEST_SMALL = 10_000_000
_NEAR = 3  # a base of up to so many times the size of a measured one counts as measured


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """A fine-tuning method. `qpeft.methods.register` makes it available everywhere.

    Classes and functions may be given as "module:Name"; they are then imported when first used, so
    that listing the methods imports neither torch nor peft. Only `key`, `title`, `config` and, for
    a method that PEFT does not have, `tuner` are required.

    Raises ConfigError, when its config class is used, if the name of the PEFT type does not follow
    from `key`.
    """

    key: str  #: name in `--method` and in study files
    title: str  #: name for readers, with its paper
    config: type | str | None = None  #: PEFT config class; None: there is no adapter
    tuner: type | str | None = None  #: PEFT tuner class; None: one of PEFT's own methods
    kind: Literal["quantum", "classical"] = "classical"
    trains: Trains = Trains.ADAPTER
    #: what our studies chose on small bases, else the usual one of LoRA; `rate_for` has the one for
    #: a base, the factor 1 of a grid
    learning_rate: float = 2e-4
    measured_rates: Sequence[MeasuredRate] = ()  #: on larger bases
    #: config fields with other defaults than in the config
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: raised when `defaults` or those of the config change: rows of studies with others do not count
    revision: int = 1
    seed_field: str = "seed"  #: config field that gets the seed of the run, if the config has it
    #: the seed of a run is multiplied by it, for a `seed_field` that also uses the numbers after it
    seed_step: int = 1
    #: by config field, the values for which there is no circuit: the method is classical then
    without_circuit: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    #: by a key for studies, what its circuit is compared with by `qpeft verdict`; empty: nothing
    controls: Mapping[str, Control] = field(default_factory=dict)
    only_ansatz: str | None = (
        None  #: of its circuit; None: the config has a field `ansatz`, or none
    )
    #: dataclass of the method's own fields, free of torch, for the command line
    options: type | str | None = None
    is_host: bool = False  #: whether a generator can produce its tensors (`--host`)
    generator: type | str | None = None  #: GeneratorConfig for `qpeft.attach` to a host adapter
    #: hosts that the config itself generates, without `qpeft.attach`; by the host's key the fields
    #: of the config that it needs
    own_hosts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: whether its generator has a `CircuitModule`, whose circuit a backend can run
    takes_backend: bool = False
    #: (config) the function (model, batches) that computes initial values before the first step;
    #: None if none is needed
    fit: Callable[[Any], Callable[[Any, Any], None] | None] | str | None = None
    #: (model, path) writes what `fit` computed to a file, which adapters of one base can share
    save_fit: Callable[[Any, Any], None] | str | None = None
    callback: type | str | None = None  #: class of a trainer callback that every run has
    needs_param_groups: bool = False  #: whether its optimizer must have `qpeft.param_groups`
    #: of a tuner of its own with circuits whose angles are saved as `angles.tau`: an angle moved by
    #: this factor times the saved value, in radians
    angle_scale: float | None = None
    fills_cache: bool = False  #: whether it is handed over as `past_key_values` of each layer
    multiplies_weights: bool = False  #: whether it rotates weights instead of adding an update
    needs_text: bool = (
        False  #: whether it trains tokens, which the inputs of an image model are not
    )
    takes_gradient_checkpointing: bool = True

    def kind_with(self, settings: Mapping[str, Any]) -> Literal["quantum", "classical"]:
        """The kind of the method; classical for settings without a circuit."""
        for name, values in self.without_circuit.items():
            if settings.get(name) in values:
                return "classical"
        return self.kind

    def rate_for(self, task: str, parameters: int) -> LearningRate:
        """The learning rate for a base with so many parameters, and what it rests on.

        It is the one of the measured base whose size is nearest, by its ratio. No rule is continued
        beyond the bases that were measured; the source says if this base is.
        """
        on_task = [measured for measured in self.measured_rates if measured.task == task]
        nearest = min(
            (MeasuredRate(self.learning_rate, _SMALL), *on_task),
            key=lambda measured: abs(math.log(measured.base.parameters / max(parameters, 1))),
        )
        if nearest.base is _SMALL:
            is_measured = parameters <= _LARGEST_SMALL
        else:
            is_measured = 1 / _NEAR <= parameters / nearest.base.parameters <= _NEAR
        source = f"method {self.key} on {nearest.base.name}"
        if not is_measured:
            source += f"; this base has {parameters:,}, and none of its size was measured"
        return LearningRate(nearest.value, source)

    @property
    def config_class(self) -> Any:
        """The PEFT config class. Raises ConfigError if its `method_name` is not that of `key`."""
        config = imported(self.config)
        name = f"QPEFT_{self.key.upper()}"
        is_own = str(self.config).startswith("qpeft.methods.")
        if is_own and getattr(config, "method_name", None) != name:
            raise ConfigError(
                f"method_name of {config.__name__} must be {name!r}, as its METHOD has"
                f" key={self.key!r}"
            )
        return config

    @property
    def generator_class(self) -> Any:
        """The GeneratorConfig class; None for methods without hosts."""
        return imported(self.generator)


def imported(target: Any) -> Any:
    """The object named by a string "module:Name"; anything else is returned unchanged."""
    if not isinstance(target, str):
        return target
    module, name = target.split(":")
    return getattr(import_module(module), name)
