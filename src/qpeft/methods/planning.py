"""`qpeft.plan`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PretrainedConfig

from qpeft.backends.forecast import forecast
from qpeft.backends.jobs import Jobs
from qpeft.backends.named import as_backend
from qpeft.backends.run import CircuitRun
from qpeft.backends.settings import BackendSettings, backend_settings
from qpeft.core.config import GeneratedConfig, GeneratedLoraConfig
from qpeft.core.config_limits import check_sizes_fit
from qpeft.core.meta_model import on_meta
from qpeft.core.targets import check_target_modules, exclude_classifier_head
from qpeft.errors import ConfigError, QpeftError
from qpeft.generator_config import GeneratorConfig
from qpeft.methods.counting import Plan, count_live
from qpeft.methods.method import Method, imported
from qpeft.methods.registry import find_by_config, records


def plan(
    base: nn.Module | PretrainedConfig | str | Path,
    config: PeftConfig,
    generator: GeneratorConfig | None = None,
    *,
    backend: Any = "exact",
    shots: int | None = None,
    gradient: str = "auto",
    noise: float = 0.0,
    shot_budget: int | None = None,
    smoothing: float = 0.0,
    steps: int = 500,
    trust_remote_code: bool = False,
) -> Plan:
    """Count the parameters and bytes that `config` would train, deploy and store on `base`.

    Args:
        base: A model (not changed), a hub id, a local folder, or a transformers config; no weights are read.
        config: The config of any registered method, or a stock PEFT config.
        generator: The generator that `qpeft.attach` would put on the adapter of a stock `config`.
        backend: With shots, or with another backend than "exact", `Plan.circuits` contains the cost of the
            method's circuits. A few small jobs are sent to measure the seconds.
        shots, gradient, noise, shot_budget, smoothing: As in `qpeft.set_backend`.
        steps: Optimizer steps for which circuits are counted.
        trust_remote_code: Execute Python code that the folder or repository of `base` contains.

    Raises:
        ConfigError: the base is not found or has an adapter already, a target matches no module, or the options do not
            fit.
        UnsupportedTypeError: the method cannot adapt a target of this type.
    """
    if not isinstance(config, PeftConfig):
        raise ConfigError(f"plan takes the config of an adapter, such as QPAConfig(), got {type(config).__name__}")
    model = on_meta(base, config.task_type, trust_remote_code)
    base_parameters = sum(p.numel() for p in model.parameters())
    config = copy.deepcopy(config)
    config.inference_mode = False  # as in a config that was read from a folder
    method = find_by_config(config)
    if isinstance(config, GeneratedConfig):
        config.read_files(model)
    if method is not None:
        exclude_classifier_head(model, config)
    check_target_modules(model, config)
    check_sizes_fit(config, model)
    count = (method and imported(method.count)) or count_live
    # a method with its own count needs only the stock adapter, not the generator
    is_generated = isinstance(config, GeneratedLoraConfig) and count is not count_live
    adapted = _adapt(model, cast(GeneratedLoraConfig, config).to_stock() if is_generated else config)
    tuner = adapted.base_model
    targets = [*tuner.targeted_module_names, *tuner.targeted_parameter_names] if isinstance(tuner, BaseTuner) else []
    if generator is None:
        counts = count(config, adapted)
    else:
        method = _method_of(generator)
        counts = method.ask("count_attached", generator, adapted)
    given = {"shots": shots, "gradient": gradient, "noise": noise, "shot_budget": shot_budget, "smoothing": smoothing}
    chosen = backend_settings({"backend": backend, **given})
    circuits = None if chosen.is_usual else _circuits(method, generator or config, counts, chosen, steps)
    return Plan(base_parameters=base_parameters, target_modules=targets, circuits=circuits, **counts)


def _method_of(generator: GeneratorConfig) -> Method:
    for method in records():
        if method.count_attached is not None and type(generator) is method.generator_class:
            return method
    raise ConfigError(
        f"plan does not support {type(generator).__name__}; after attach use model.print_trainable_parameters()"
    )


def _circuits(
    method: Method | None, config: Any, counts: dict[str, Any], chosen: BackendSettings, steps: int
) -> dict[str, Any]:
    circuit = None if method is None else method.ask("circuit", config, counts.get("n_qubits"))
    if circuit is None:
        raise ConfigError("this method has no circuit that a backend can run; QPA has one with feature_source 'qnn'")
    ansatz, trained = circuit
    backend = as_backend(chosen.backend, ansatz.n_qubits, chosen.noise)
    jobs = Jobs(backend, chosen.shots, shot_budget=chosen.shot_budget)
    n_circuits = counts.get("n_circuits") or 1
    run = CircuitRun(ansatz, jobs, chosen.gradient, chosen.smoothing, trained=trained, n_circuits=n_circuits)
    run.check_budget(steps)
    return forecast(run, steps).to_dict()


def _adapt(model: nn.Module, config: Any) -> Any:
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config = copy.copy(config)  # `count_stock` asks for the initialization
        config.init_lora_weights = True  # PiSSA and others need weights; the sizes are the same
    try:
        return get_peft_model(model, config)  # type: ignore[arg-type]
    except NotImplementedError as error:
        raise ConfigError(
            f"{type(config).__name__} needs the weights of the base to build its adapter, so it cannot be planned"
        ) from error
    except (ValueError, TypeError, IndexError, OverflowError) as error:  # raised by PEFT
        raise error if isinstance(error, QpeftError) else ConfigError(str(error).partition("\n")[0]) from error
