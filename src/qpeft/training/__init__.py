"""Fine-tuning in a run folder: data, scores, resume. Light until `train` is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from qpeft.training.result import TrainResult
    from qpeft.training.run import train

__all__ = ["TrainResult", "TrainSettings", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":
        from qpeft.training.run import train

        return train
    if name == "TrainResult":
        from qpeft.training.result import TrainResult

        return TrainResult
    raise AttributeError(f"module 'qpeft.training' has no attribute '{name}'")
