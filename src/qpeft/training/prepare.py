"""Everything a run needs, loaded and checked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import set_seed
from transformers.integrations.integration_utils import get_available_reporting_integrations

from qpeft.errors import ConfigError, InputError
from qpeft.training import base
from qpeft.training.blocks import Blocks, load_blocks
from qpeft.training.calibration import fit_to_gradient, warn_of_a_short_way
from qpeft.training.methods import build_adapter, build_config
from qpeft.training.progress import Progress
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """A model at its start, what it is trained and scored on, and what a resumed run must find unchanged."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    blocks: Blocks
    identity: dict[str, Any]


def prepare(settings: TrainSettings, progress: Progress) -> Prepared:
    """Load data and base, build the adapter. Raises InputError for whatever is not usable; writes nothing."""
    _check_single_process()
    _check_reporters(settings.report_to)
    method = None if settings.method == "full" else build_config(settings)
    warn_of_a_short_way(settings, method)
    progress.on_stage("Reading the data")
    config = base.load_config(settings.model)
    tokenizer = base.load_tokenizer(settings.model)
    blocks = load_blocks(
        settings, base.block_length(settings.seq_len, config, getattr(method, "num_virtual_tokens", 0)), tokenizer
    )
    _check_vocabulary(blocks, config)
    progress.on_stage("Loading the base model")
    identity = {"data": blocks.sha256(), "base": base.fingerprint(settings.model, config)}
    set_seed(settings.seed)
    model = build_adapter(settings, base.load_model(settings.model, settings.dtype))
    fit_to_gradient(model, blocks.train, settings.batch_size, progress)
    return Prepared(model, tokenizer, blocks, identity)


def _check_single_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a run folder belongs to one process; start it without torchrun or accelerate launch")


def _check_reporters(names: list[str]) -> None:
    known = get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise ConfigError(
                f"cannot report to {name!r}: it is unknown, or its package is not installed; here are "
                f"{', '.join(known) or 'none'}"
            )


def _check_vocabulary(blocks: Blocks, config: PretrainedConfig) -> None:
    size = config.get_text_config().vocab_size
    highest = max(int(block.ids.max()) for block in (*blocks.train, *blocks.evaluation))
    if highest >= size:
        raise InputError(f"the tokenizer gives token {highest}, the model knows {size}; they do not belong together")
