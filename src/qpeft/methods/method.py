"""The record of a fine-tuning method, which the rest of the program reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib import import_module
from typing import Any, Literal

DEFAULT_LEARNING_RATE = 2e-4  # usual for LoRA; for methods that no study has tuned


class Trains(Enum):
    """What a training run of the method changes."""

    ADAPTER = "an adapter"
    HEAD = "a new classification head alone"
    MODEL = "every parameter of the base model"
    NOTHING = "nothing: the base model as it is"


@dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """A fine-tuning method. `qpeft.methods.register` makes it available everywhere.

    Classes and functions may be given as "module:Name"; they are then imported when first used, so that listing the
    methods imports neither torch nor peft. Only `key`, `title`, `config` and, for a method that PEFT does not have,
    `tuner` are required.
    """

    key: str  #: name in `--method` and in study files
    title: str  #: name for readers, with its paper
    config: type | str | None = None  #: PEFT config class; None: there is no adapter
    tuner: type | str | None = None  #: PEFT tuner class; None: one of PEFT's own methods
    kind: Literal["quantum", "classical"] = "classical"
    #: config fields of a quantum method, each with the values for which there is no circuit
    classical_values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    trains: Trains = Trains.ADAPTER
    learning_rate: float = DEFAULT_LEARNING_RATE  #: what our studies chose; the factor 1 of its grid in a study
    defaults: Mapping[str, Any] = field(default_factory=dict)  #: config fields with other defaults than in the config
    seed_field: str = "seed"  #: config field that gets the seed of the run, if the config has it
    #: the seed is multiplied by this for `seed_field`, for configs that also use the numbers after it as seeds
    seed_step: int = 1

    # -- command line
    options: type | str | None = None  #: dataclass of the method's own fields, free of torch
    panel: str = ""  #: heading of these options; the part before a colon is the method
    hidden: tuple[str, ...] = ("seed",)  #: fields of `options` that the command line does not offer
    option_notes: Mapping[str, str] = field(default_factory=dict)  #: of PEFT's fields: what differs for this method
    presets: tuple[str, ...] = ()  #: class methods of the config that return a published experiment
    circuit_role: str = ""  #: in a plan, next to the number of circuits

    # -- generated adapters
    is_host: bool = False  #: whether a generator can produce its tensors (`--host`)
    generator: type | str | None = None  #: GeneratorConfig for `qpeft.attach` to a host adapter
    own_hosts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: hosts that `config` itself generates
    #: (config, qubits) the circuit that a backend can run, an Ansatz, and whether its angles are trained; or None. The
    #: generator then evaluates it in a `CircuitModule`. If it evaluates several such circuits, their number is
    #: `CircuitModule.n_circuits` and the `n_circuits` of `count`.
    circuit: Callable[[Any, int], tuple[Any, bool] | None] | str | None = None
    #: raised when defaults of the config change: rows of studies with other defaults are not taken over
    revision: int = 1
    controls: Mapping[str, str] = field(default_factory=dict)  #: `feature_source` of each control, and its label

    # -- training
    check: Callable[[Any], None] | str | None = None  #: (settings) raises ConfigError for an unsupported run
    advice: Callable[[Any, Any], str | None] | str | None = None  #: (settings, config) a warning before the run
    #: (config) the function (base, config, batches) that completes `config` from training data, or prepares the base,
    #: before the adapter is added; None if neither is needed
    calibrate: Callable[[Any], Callable[[Any, Any, Any], None] | None] | str | None = None
    #: (config) the function (model, batches) that computes initial values before the first step; None if none is needed
    fit: Callable[[Any], Callable[[Any, Any], None] | None] | str | None = None
    #: (model, path) writes the frames of a fitted adapter to a file, to which the adapter then refers
    save_frames: Callable[[Any, Any], str] | str | None = None
    callbacks: Callable[[], Sequence[Any]] | str | None = None  #: () trainer callbacks of a run
    uses_param_groups: bool = False  #: whether the optimizer needs `qpeft.param_groups`

    adapter_holds: str = "the generator alone"  #: content of the saved adapter, if it needs qpeft
    no_export: str = "stock PEFT has no such adapter"  #: why a run may have no exported adapter

    # -- plans, diagnosis and reports
    count: Callable[[Any, Any], dict[str, Any]] | str | None = None  #: (config, adapted model on meta) fields of a Plan
    count_attached: Callable[[Any, Any], dict[str, Any]] | str | None = None  #: as `count`, of `generator` on a host
    untrained: Callable[[Any, Any], Any] | str | None = None  #: (config, plan) generator for a diagnosis of a config
    prunes_ranks: bool = False  #: whether reports show the remaining ranks
    report_note: str = ""  #: a sentence for reports of studies with this method

    @property
    def takes_backend(self) -> bool:
        """Whether its circuit can run on a backend in training."""
        return self.circuit is not None

    def takes_frame_file(self, settings: Mapping[str, Any]) -> bool:
        """Whether an adapter with these settings has gradient frames of its own, which a frame file can hold."""
        is_framed = settings.get("frame") == "gradient" and settings.get("frames") is None
        return self.save_frames is not None and is_framed

    def kind_with(self, settings: Mapping[str, Any]) -> Literal["quantum", "classical"]:
        """`kind`; classical for settings without a circuit."""
        is_classical = any(settings.get(name) in values for name, values in self.classical_values.items())
        return "classical" if is_classical else self.kind

    def leaves_out_frames(self, settings: Mapping[str, Any]) -> bool:
        """Whether an adapter with these settings is saved without its gradient frames, which a frame file can hold."""
        return self.takes_frame_file(settings) and settings.get("store_frames") is False

    @property
    def config_class(self) -> Any:
        """The PEFT config class."""
        return imported(self.config)

    @property
    def tuner_class(self) -> Any:
        """The PEFT tuner class; None for PEFT's own methods."""
        return imported(self.tuner)

    @property
    def generator_class(self) -> Any:
        """The GeneratorConfig class; None for methods without hosts."""
        return imported(self.generator)

    @property
    def options_class(self) -> Any:
        """The dataclass of the method's own options, or None."""
        return imported(self.options)

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call the function in field `name`; returns None if there is none."""
        function = imported(getattr(self, name))
        return None if function is None else function(*arguments)


def imported(target: Any) -> Any:
    """The object named by a string "module:Name"; anything else is returned unchanged."""
    if not isinstance(target, str):
        return target
    module, name = target.split(":")
    return getattr(import_module(module), name)
