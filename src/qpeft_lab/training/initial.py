"""Methods that read training data before the first step: LoRA-GA (arXiv 2407.05000) and trainable
tokens.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraGAConfig, TrainableTokensConfig
from peft.tuners.lora.loraga import preprocess_loraga

from qpeft.checks import option
from qpeft.core.targets import set_target_names
from qpeft.errors import ConfigError

_Batches = Iterable[Mapping[str, Any]]
_INITIAL = "qpeft_initial_adapter"  # attribute of a model: the folder of its initial adapter


def read_data(
    base: Any, config: Any, batches: Callable[[], _Batches]
) -> Callable[[Any], None] | None:
    """Complete a config, or prepare the base, from the training data that `batches()` returns,
    before the adapter is made.

    Returns a function to call with the model before the first step, or None.
    Raises ConfigError as the functions for the two kinds of configs that read data.
    """
    if isinstance(config, TokensConfig):
        choose_tokens(base, config, batches)
    elif str(init := getattr(config, "init_lora_weights", None)).startswith("pissa_niter"):
        raise ConfigError(
            f"init_lora_weights={init!r} changes the base by a decomposition that PEFT draws at"
            " random, and draws anew when the adapter is loaded; use pissa, which is exact"
        )
    elif init == "lora_ga":
        attach_gradients(base, config, batches)
        return _keep_initial
    return None


def attach_gradients(base: Any, config: Any, batches: Callable[[], _Batches]) -> None:
    """For LoRA-GA, give the base's target modules the gradients that PEFT decomposes.

    Raises ConfigError for DoRA, whose magnitudes the saved adapter could not restore.
    """
    if config.use_dora:
        raise ConfigError(
            "init_lora_weights='lora_ga' changes the base weights, to which DoRA's magnitudes"
            " refer; use it without use_dora"
        )

    def backward() -> None:
        device = next(base.parameters()).device
        for batch in batches():
            base(**{name: part.to(device) for name, part in batch.items()}).loss.backward()

    config.lora_ga_config = config.lora_ga_config or LoraGAConfig()
    base.to("cuda" if torch.cuda.is_available() else "cpu")
    # PEFT expands this name only when it adds the adapter
    if str(config.target_modules).lower() == "all-linear":
        set_target_names(base, config, dict(base.named_modules()))
    with warnings.catch_warnings():
        # from the hooks by which PEFT counts; the gradients of the weights are not affected
        warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
        preprocess_loraga(base, config, backward)


def _keep_initial(model: Any) -> None:
    """Keep the initial adapter, with which `qpeft.save` makes the adapter independent of the
    changed base weights.
    """
    folder = tempfile.mkdtemp(prefix="qpeft-initial-")
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    initial = str(Path(folder) / "initial")
    model.save_pretrained(initial, save_embedding_layers=False)
    vars(model)[_INITIAL] = initial


def saving_options(model: Any) -> dict[str, str]:
    """Options of `qpeft.save` for this model: PEFT subtracts an initial adapter, which doubles the
    rank.
    """
    return (
        {"path_initial_model_for_weight_conversion": vars(model)[_INITIAL]}
        if _INITIAL in vars(model)
        else {}
    )


@dataclass
class TokensConfig(TrainableTokensConfig):
    """PEFT's config; without `token_indices`, the `n_tokens` tokens that are most frequent in 64
    examples of the training data are trained.

    It is saved as PEFT's own config, with the indices.
    """

    n_tokens: int = option(2, "Number of tokens, the most frequent ones in 64 training examples.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_chosen = bool(self.token_indices)
        if not self.is_chosen:
            if not isinstance(self.n_tokens, int) or self.n_tokens < 1:
                raise ConfigError(
                    f"n_tokens must be an integer of at least 1, got {self.n_tokens!r}"
                )
            self.token_indices = list(range(self.n_tokens))  # as many as there will be, for counts

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "n_tokens"}


def choose_tokens(base: Any, config: Any, batches: Callable[[], _Batches]) -> None:
    """Unless the indices are given, set them to the most frequent tokens; among equally frequent
    ones, to the lowest.

    Raises ConfigError if the batches contain fewer different tokens.
    """
    if config.is_chosen:
        return
    counts = torch.zeros(base.get_input_embeddings().weight.shape[0], dtype=torch.int64)
    for batch in batches():
        ids = batch["input_ids"]
        present = ids[batch.get("attention_mask", torch.ones_like(ids)).bool()]
        counts += torch.bincount(present.cpu(), minlength=len(counts))
    if config.n_tokens > (n_found := int((counts > 0).sum())):
        raise ConfigError(
            f"n_tokens={config.n_tokens}, but the training data has {n_found} different tokens;"
            " lower it"
        )
    config.token_indices = sorted(
        counts.argsort(descending=True, stable=True)[: config.n_tokens].tolist()
    )
    config.is_chosen = True
