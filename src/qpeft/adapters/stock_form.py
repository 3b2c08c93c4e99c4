"""Which adapters stock PEFT can hold, and what the tuners of the others have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qpeft.errors import ConfigError


class OneAdapterABatch:
    """Mixed into a tuner whose layers apply the active adapters to every row of a batch."""

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ConfigError(
                "adapter_names gives each row of a batch its own adapter, which this method does not do; choose one "
                "for all with model.set_adapter(name)"
            )
        yield


def own_kind(model: Any) -> str | None:
    """What this PeftModel's adapter is called if stock PEFT has none like it; None if it has.

    Whoever writes the adapter's numbers: the tuner says it by its attribute `own_kind`.
    """
    return getattr(type(getattr(model, "base_model", None)), "own_kind", None)


def has_stock_form(model: Any) -> bool:
    """Whether stock PEFT has an adapter like this PeftModel's."""
    return own_kind(model) is None
