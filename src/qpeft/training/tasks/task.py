"""What a run asks of a task: its data, its base model, its batches, its score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qpeft.training.accuracy import ClassificationScore
from qpeft.training.metrics import LanguageModelScore
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

Score = LanguageModelScore | ClassificationScore


class Task(ABC):
    """A task with the data of one run, read and checked when it is made.

    Raises InputError for data or a base that cannot be used; no weights are read before `load_base`.
    """

    score_class: ClassVar[type[Score]]
    compute_loss: ClassVar[Callable[..., Tensor] | None] = None  # for the Trainer; None: the model's own

    train: Sequence[Any]  # what `collate` takes
    evaluation: Sequence[Any]
    config: PretrainedConfig  # of the base
    head: Sequence[str] = ()  # modules of the loaded base that are trained whole, beside what the method trains

    @abstractmethod
    def __init__(self, settings: TrainSettings, reserved: int = 0):
        """`reserved`: positions of the model's context that an adapter takes."""

    @abstractmethod
    def sha256(self) -> str:
        """Hash of all that is trained and scored on, as the model sees it, in order."""

    @abstractmethod
    def load_base(self) -> PreTrainedModel:
        """The base model; a head that it lacks is drawn from the run's seed."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """What the model's forward takes, `labels` among it."""

    @abstractmethod
    def score(self, model: Any) -> Score:
        """How well `model` does on the evaluation data."""

    @abstractmethod
    def save_processor(self, folder: Path) -> None:
        """Write what makes inputs of raw data beside the model in `folder`."""

    def probe(self) -> Mapping[str, Tensor] | None:
        """Inputs on which an exported adapter is compared with the live one; None: any tokens."""
        return None

    def describe(self, folder: Path) -> None:  # noqa: B027
        """Add to an adapter folder what its reader must know of the task."""
