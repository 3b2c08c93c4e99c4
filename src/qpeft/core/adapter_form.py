"""What the program asks of an adapter that is not a stock PEFT adapter as it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

if TYPE_CHECKING:
    _Module = nn.Module
else:
    _Module = object


class AdapterForm(_Module):
    """Mixed in before a PEFT tuner, or a PeftModel, whose adapters stock PEFT cannot load as they are saved.

    The defaults are those of an adapter that is used as it is trained.
    """

    own_kind: ClassVar[str | None] = None  # what it is called, if no stock PEFT adapter is equal to it
    empty_warning: ClassVar[str] = ""  # of an adapter of which training left nothing

    def count_deployed(self, model: Any) -> int:
        """Parameters needed at inference, in addition to the base; `model` is the PeftModel."""
        return count_trainable(model)

    def is_empty(self) -> bool:
        """Whether training left nothing of the active adapters."""
        return False

    def export_adapter(self, model: Any, target: Path, adapter_name: str, probe: Mapping[str, Tensor] | None) -> Any:
        """Write the adapter as a stock PEFT folder, for `qpeft.export`; return its report."""
        raise NotImplementedError

    def prune(self, adapter_name: str) -> bool:
        """Set to zero what an export leaves out; whether an export has tensors of other shapes."""
        return False

    def on_optimizer(self, optimizer: Any, steps: int) -> None:
        """Take part in a training loop without callbacks, of so many steps of `optimizer`."""

    def own_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups that need options of their own, see `qpeft.param_groups`."""
        return []


def form_of(model: Any) -> AdapterForm | None:
    """What answers for the adapters of a PeftModel; None if they are stock ones."""
    for candidate in (model, getattr(model, "base_model", None)):
        if isinstance(candidate, AdapterForm):
            return candidate
    return None


def own_kind(model: Any) -> str | None:
    """What this PeftModel's adapter is called if stock PEFT has none equal to it; None if it has.

    Whoever generates the adapter, the tuner declares it by its attribute `own_kind`. A tuner from outside PEFT that is
    no `AdapterForm` declares nothing, so plain PEFT cannot be assumed to load its adapters.
    """
    tuner = type(getattr(model, "base_model", None))
    is_foreign = issubclass(tuner, BaseTuner) and tuner.__module__.partition(".")[0] != "peft"
    if is_foreign and not issubclass(tuner, AdapterForm):
        return f"an adapter of {tuner.__name__}"
    return getattr(tuner, "own_kind", None)


def has_stock_form(model: Any) -> bool:
    """Whether stock PEFT has an adapter equal to this PeftModel's."""
    return own_kind(model) is None


def count_trainable(model: Any) -> int:
    """Parameters that training changes, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
