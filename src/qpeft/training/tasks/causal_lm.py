"""Causal language modelling: each token of a block is predicted from those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.core import base_model as base
from qpeft.training.blocks import Padding, collate, load_blocks, load_evaluation, padding_token
from qpeft.training.encoding import Tokens, unknown_token, warn_of_unknown
from qpeft.training.metrics import LanguageModelScore, Watch, evaluate_language_model, language_model_loss
from qpeft.training.settings import TrainSettings
from qpeft.training.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class CausalLM(Task):
    """Blocks of texts, or prompts with their answers."""

    score_class = LanguageModelScore

    def __init__(self, settings: TrainSettings, reserved: int = 0, labels: Sequence[str] | None = None):
        self._settings = settings
        self.config = base.load_config(settings.model, settings.trust_remote_code)
        self.tokenizer = base.load_tokenizer(settings.model, settings.trust_remote_code)
        self.seq_len = base.block_length(settings.seq_len, self.config, reserved)
        self._padding = Padding(self.seq_len, padding_token(self.tokenizer)) if settings.pad_rows else None
        load = load_blocks if labels is None else load_evaluation
        self._blocks = load(settings, self.seq_len, self.tokenizer)
        self.train, self.evaluation = self._blocks.train, self._blocks.evaluation
        for blocks, source in ((self.train, settings.data), (self.evaluation, settings.eval_data or settings.data)):
            if blocks:
                base.check_vocabulary((block.ids for block in blocks), self.config)
                warn_of_unknown((block.ids for block in blocks), self.tokenizer, source)

    def loss(self, label_smoothing: float) -> Callable[..., Tensor] | None:
        return partial(language_model_loss, label_smoothing=label_smoothing) if label_smoothing else None

    def sha256(self) -> str:
        return self._blocks.sha256()

    def load_base(self) -> PreTrainedModel:
        return base.load_model(self._settings.model, self._settings.dtype, self._settings.trust_remote_code)

    def collate(self, examples: Sequence[Tokens]) -> dict[str, Tensor]:
        return collate(examples, self._padding)

    def score(self, model: Any, examples: Sequence[Tokens] | None = None, watch: Watch = iter) -> LanguageModelScore:
        blocks = self.evaluation if examples is None else examples
        score = evaluate_language_model(model, blocks, self._settings.batch_size, self._padding, watch)
        unknown = unknown_token(self.tokenizer)
        return replace(score, n_unknown=sum(int(block.scored[1:][block.ids[1:] == unknown].sum()) for block in blocks))

    def save_processor(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(str(folder))
