"""The callback that applies SoRA's threshold in a Trainer, also after a resume."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from qpeft.errors import ConfigError
from qpeft.methods.sora.layer import sora_tuner
from qpeft.methods.sora.threshold import Threshold, attach


class SoRACallback(TrainerCallback, ExportableState):
    """Shrinks SoRA's gates after each optimizer step of a Trainer: `Trainer(callbacks=[SoRACallback()], ...)`.

    The threshold is computed once, from the whole schedule, and saved in the Trainer's checkpoints, so a resumed run
    ends with the gates of an uninterrupted one. Without a Trainer: `SoRACallback.attach(optimizer, model, steps=...)`.

    Raises, when training begins:
        ConfigError: the model has no SoRA adapter, or its gates are in a group with weight decay.
    """

    attach = staticmethod(attach)

    def __init__(self) -> None:
        self.lambdas: dict[str, list[Any]] = {}  # adapter -> sora_lambda, planned_steps
        self._threshold: Threshold | None = None

    def state(self) -> dict[str, Any]:
        """The content for trainer_state.json."""
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
        prepared = {name: config for name, config in configs.items() if config.sora_lambda is not None}
        self.lambdas = {name: [config.sora_lambda, config.planned_steps] for name, config in prepared.items()}

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._threshold is not None:
            self._threshold.remove()


def callbacks() -> list[SoRACallback]:
    """The callbacks of a training run."""
    return [SoRACallback()]
