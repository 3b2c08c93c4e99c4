"""The interface of adapters that are trained in another form than the stock PEFT adapter that is exported."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from peft import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTuner,
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
)
from torch import Tensor, nn

from qpeft.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was exported, and how far its logits are from the live model's."""

    path: str
    n_trained: int  # trained parameters of the adapter
    n_deployed: int  # parameters of the stock adapter
    ranks: dict[str, int] | None  # of each module, if training chose them; the exported tensors have other shapes then
    n_bytes: int  # size of adapter_model.safetensors
    max_logit_difference: float | None  # from the live model; None: the base model has no weights to compare with

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


class StockAdapter(NamedTuple):
    """A stock PEFT adapter equal to a trained one, and what its folder records; counts as in `ExportReport`."""

    tensors: dict[str, Tensor]  # by their keys in a stock file
    config: PeftConfig
    settings: dict[str, Any]  # for qpeft.json: the method and its options
    n_trained: int
    n_deployed: int
    ranks: dict[str, int] | None = None


class AdapterForm:
    """Mixed in before a PEFT tuner whose saved adapters stock PEFT cannot load.

    The defaults suit an adapter that is used as it is trained and has no stock form.
    """

    def count_deployed(self, model: Any) -> int:
        """Parameters needed at inference, in addition to the base; `model` is the PeftModel."""
        return count_trainable(model)

    def plan_sizes(self) -> dict[str, Any]:
        """As `Generator.plan_sizes`; called on the meta device."""
        return {}

    def stock_adapter(self, model: Any, adapter_name: str) -> StockAdapter:
        """The stock adapter to export; `model` is the PeftModel."""
        raise NotImplementedError

    def exact(self) -> AbstractContextManager[None]:
        """Within: every computation is exact, whatever backend trains the adapter."""
        return nullcontext()


def complete_state(model: Any, adapter_name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with all tensors of the adapter, by their names in `model`.

    PEFT leaves out those with a part of their names that is the name of another adapter, such as "mlp" or "c".
    """
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name)
    if _filter_state_dict_by_key_prefixes(dict(model.named_parameters()), prefixes).keys() <= state.keys():
        return state  # a state dict of a sharded model would need all processes
    return _filter_state_dict_by_key_prefixes(model.state_dict(), prefixes) | state


def check_adapted(model: Any) -> None:
    """Raise ConfigError for anything but a PeftModel, which may be compiled."""
    check_model(model)
    if not hasattr(model, "get_base_model"):
        raise ConfigError(
            f"{type(model).__name__} has no adapter; give the PeftModel that peft.get_peft_model(base, config) or "
            "qpeft.load(base, folder) returns"
        )


def check_model(model: Any) -> None:
    """Raise ConfigError for anything but a torch model, such as its name."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a torch model is needed, got {type(model).__name__}; load it first")


def form_of(model: Any) -> AdapterForm | None:
    """The `AdapterForm` of a PeftModel: its generators or its tuner; None if its adapters are stock adapters."""
    parts = (getattr(model, "qpeft_generator", None), getattr(model, "base_model", None))
    return next((part for part in parts if isinstance(part, AdapterForm)), None)


def has_stock_form(model: Any) -> bool:
    """Whether a stock PEFT adapter is equal to that of this PeftModel.

    Not if its form, or a tuner from outside PEFT, does not define `stock_adapter`.
    """
    tuner, default = type(model.base_model), AdapterForm.stock_adapter
    for part in (tuner, type(form_of(model))):  # a tuner first: it may be the host of a generator
        if issubclass(part, AdapterForm):
            return part.stock_adapter is not default
    return not issubclass(tuner, BaseTuner) or tuner.__module__.startswith("peft.")


def count_trainable(model: Any) -> int:
    """Trainable parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
