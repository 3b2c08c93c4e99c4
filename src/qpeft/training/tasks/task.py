"""The interface of a task: its data, base model, batches and score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qpeft.training.metrics import ClassificationScore, LanguageModelScore, RegressionScore, Watch
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

Score = LanguageModelScore | ClassificationScore | RegressionScore


class Task(ABC):
    """A task with the data of one run, which is read and checked in the constructor.

    The constructor raises InputError for unusable data or an unusable base; weights are only read by `load_base`.
    """

    score_class: ClassVar[type[Score]]
    train: Sequence[Any]  # arguments of `collate`
    evaluation: Sequence[Any]
    config: PretrainedConfig  # of the base
    head: Sequence[str] = ()  # modules of the loaded base that are trained in full, in addition to the adapter
    has_new_head: bool = False  # set by load_base

    @abstractmethod
    def __init__(self, settings: TrainSettings, reserved: int = 0, labels: Sequence[str] | None = None):
        """Read and check the data.

        Args:
            settings: The run.
            reserved: Positions of the model's context that the adapter occupies.
            labels: The outputs of a trained adapter: its classes, one name for a regression, none for a language
                model. All of the data is then evaluated and none trained on.
        """

    @abstractmethod
    def loss(self, label_smoothing: float) -> Callable[..., Tensor] | None:
        """The loss function for the Trainer; None: the loss of the model."""

    @abstractmethod
    def sha256(self) -> str:
        """Hash of the training and evaluation data, as the model receives it, in order."""

    @abstractmethod
    def load_base(self) -> PreTrainedModel:
        """The base model; a head that it lacks is initialized from the seed of the run."""

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """The arguments of the model's forward, including `labels`."""

    @abstractmethod
    def score(self, model: Any, examples: Sequence[Any] | None = None, watch: Watch = iter) -> Score:
        """The score of `model` on `examples`, by default the evaluation data; `watch` may show progress."""

    @abstractmethod
    def save_processor(self, folder: Path) -> None:
        """Save the tokenizer or image processor next to the model in `folder`."""

    def probe(self) -> Mapping[str, Tensor] | None:
        """Inputs on which an exported adapter is compared with the trained one; None: random tokens."""
        return None

    def describe(self, folder: Path) -> None:  # noqa: B027
        """Add to an adapter folder the information about the task that loading it requires."""
