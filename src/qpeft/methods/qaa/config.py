"""The PEFT config of QAA."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qpeft.checks import option
from qpeft.core import model_card
from qpeft.core.config import MethodName, OwnTunerConfig
from qpeft.methods.qaa.settings import QAASettings

QAA = MethodName("QPEFT_QAA")


@dataclass
class QAAConfig(QAASettings, OwnTunerConfig):
    """QAA; angles, (features) x (outputs) and (outputs) parameters for each target module.

    Example::

        model = get_peft_model(base, QAAConfig(task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a setting is out of range.
    """

    target_modules: Collection[str] | str | None = option(
        None,
        "Linear maps to adapt: ends of names, a pattern of whole names, or all-linear. "
        "Default: the query and value projections.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = QAA  # type: ignore[assignment]
        self.check()
        self.check_targets("q_proj")

    def card(self) -> model_card.Card:
        names = ("ansatz", "n_layers", "readout", "feature_source", "carry_norm", "alpha", "seed")
        return model_card.Card(
            "QAA adapter",
            tag="qaa",
            what="To the output of each of its target modules this adapter adds `alpha / n (V f(x) + c)`, with f read "
            "from a small circuit that starts in x; circuits are simulated exactly on classical hardware.\n"
            + model_card.NOT_STOCK,
            settings={name: getattr(self, name) for name in names},
        )
