"""What a Trainer needs to train SoRA: the threshold, from the first step to the last, also through a resume."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from qpeft.errors import ConfigError
from qpeft.methods.sora.layer import sora_tuner
from qpeft.methods.sora.threshold import Threshold, attach


class SoRACallback(TrainerCallback, ExportableState):
    """Shrinks SoRA's gates after each optimiser step of a Trainer: `Trainer(callbacks=[SoRACallback()], ...)`.

    The threshold is settled once, from the whole schedule, and kept in the Trainer's checkpoints: a resumed run ends
    with the gates of the unbroken one. For a loop of your own, `SoRACallback.attach(optimizer, model, steps=...)`.

    Raises, as training begins:
        ConfigError: the model has no SoRA adapter, or its gates are in a group with weight decay.
    """

    attach = staticmethod(attach)

    def __init__(self) -> None:
        self.lambdas: dict[str, list[Any]] = {}  # adapter -> sora_lambda, planned_steps
        self._threshold: Threshold | None = None

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into trainer_state.json."""
        return {"args": {}, "attributes": {"lambdas": self.lambdas}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (tuner := sora_tuner(kwargs["model"])) is None:
            raise ConfigError("SoRACallback is for a model with a SoRA adapter: get_peft_model(base, SoRAConfig(...))")
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        for name, (sora_lambda, planned_steps) in saved["attributes"]["lambdas"].items():
            config: Any = tuner.peft_config[name]
            config.sora_lambda, config.planned_steps = sora_lambda, planned_steps
        self._threshold = attach(
            kwargs["optimizer"], kwargs["model"], steps=state.max_steps, schedule=kwargs["lr_scheduler"]
        )
        configs: dict[str, Any] = tuner.peft_config
        settled = {name: config for name, config in configs.items() if config.sora_lambda is not None}
        self.lambdas = {name: [config.sora_lambda, config.planned_steps] for name, config in settled.items()}

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._threshold is not None:
            self._threshold.remove()


def callbacks() -> list[SoRACallback]:
    """What a training run of SoRA needs."""
    return [SoRACallback()]
