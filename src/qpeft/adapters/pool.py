"""Many compact adapters of one base model: a few at a time in slots, the others in their folders.

    folder/<name>/ --> CompactReader --> tensors --> a slot, an adapter of stock PEFT --> model

A slot is injected once. To put another adapter into it is to copy numbers into its tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from qpeft.adapters.checkpoint import CONFIG, WEIGHTS, check_folder, load
from qpeft.adapters.compact_reader import CompactReader
from qpeft.adapters.generated import GeneratedMixin
from qpeft.errors import CheckpointError, ConfigError

BASE = "__base__"  # PEFT's word in adapter_names


class _Slot(NamedTuple):
    """An adapter of stock PEFT, by the keys of a stock file."""

    name: str
    tensors: dict[str, Tensor]


class _Resident(NamedTuple):
    slot: _Slot
    stamp: tuple[int, ...]  # of the files it was read from


class AdapterPool:
    """Serves the compact adapters of a folder, each from a folder of its own, on one base model.

    Example::

        pool = qpeft.AdapterPool(base, "users")
        pool.activate("user-17")
        pool.model.generate(**inputs)
        pool.model.generate(**inputs, adapter_names=pool.place(["user-1", "user-2", "__base__"]))

    The adapters are QPA's or Quantum-PEFT's, with one configuration and any seeds. Files are looked at whenever an
    adapter is asked for, so one that was trained again is read again. A pool serves one request at a time: what
    `activate` and `place` answer holds until the next call of either.

    Args:
        base: The model that the adapters were trained on; it is changed in place, as by PEFT.
        folder: Holds an adapter folder, as `qpeft.save` writes it, for each name. The first one that is whole, in
            alphabetical order, sets the configuration.
        capacity: How many adapters are in memory at a time, which is also how many a batch can mix.

    Attributes:
        model: A PeftModel with `capacity` stock LoRA adapters in evaluation mode; none is active at first.

    Raises:
        CheckpointError: there is no adapter, or the first is for another base model.
        ConfigError: adapters of another kind, a base under PEFT already, or a capacity below 1.
    """

    model: PeftModel

    def __init__(self, base: nn.Module, folder: str | Path, capacity: int = 8) -> None:
        if not isinstance(capacity, int) or capacity < 1:
            raise ConfigError(f"capacity must be a whole number from 1, got {capacity!r}")
        if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
            raise ConfigError("the base model has an adapter already; give the model without it")
        self.folder, self.capacity, self.active = Path(folder), capacity, BASE
        first = self.folder / self._first_whole()
        loaded: Any = load(base, first)
        self._reader = CompactReader(loaded, first, capacity)
        config = loaded.base_model.generated_config("default")
        _switch(_switches(loaded), [])  # or a module that was trained whole would stay in the base
        self.model = _with_slots(loaded.unload(), config, capacity)
        self._switched = _switches(self.model)
        self._switch([])
        self._free = [_Slot(name, _tensors(self.model, name)) for name in reversed(self.model.peft_config)]
        self._resident: dict[str, _Resident] = {}  # the least recently used first

    @property
    def names(self) -> list[str]:
        """The adapters in the folder, sorted."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(p.name for p in found if not p.name.startswith(".") and (p / CONFIG).is_file())

    @property
    def resident(self) -> list[str]:
        """The adapters in slots, the least recently used first."""
        return list(self._resident)

    def activate(self, name: str) -> None:
        """Let the model answer with this adapter from now on; "__base__": without any.

        Raises:
            ConfigError: no such adapter, with the names that are near.
            CheckpointError: its folder is damaged, or its settings are not the pool's. What was active stays so.
        """
        self._refuse_merged()
        wanted = [] if name == BASE else [self._resident_slot(name, keep=set()).name]
        if wanted != self.model.active_adapters:
            self._switch(wanted)
        self.active = name

    def place(self, names: Iterable[str]) -> list[str]:
        """What to give the model as `adapter_names`, one for each row of a batch; "__base__" for rows without adapter.

        The active adapter keeps its slot.

        Raises:
            ConfigError: no such adapter, or more different ones than slots.
            CheckpointError: a folder is damaged, or its settings are not the pool's.
        """
        self._refuse_merged()
        rows = list(names)
        wanted = {name for name in rows if name != BASE}
        keep = wanted | {self.active} - {BASE}
        if len(keep) > self.capacity:
            held = f", and '{self.active}' is active" if self.active in keep - wanted else ""
            raise ConfigError(
                f"the batch has {len(wanted)} different adapters{held}, but the pool holds {self.capacity}; make the "
                'batch smaller or the capacity larger, or call activate("__base__") first'
            )
        slots = {name: self._resident_slot(name, keep).name for name in dict.fromkeys(rows) if name != BASE}
        return [slots.get(name, BASE) for name in rows]

    def _refuse_merged(self) -> None:
        if any(getattr(module, "merged", False) for module in self._switched):
            raise ConfigError("an adapter is merged into the base model; call model.unmerge_adapter() first")

    def _switch(self, names: list[str]) -> None:
        base_model: Any = self.model.base_model
        _switch(self._switched, names)
        base_model.active_adapter = names

    def _resident_slot(self, name: str, keep: set[str]) -> _Slot:
        """The slot that holds the adapter as it is in its folder now."""
        stamp = self._stamp(name)
        held = self._resident.get(name)
        if held is None or held.stamp != stamp:
            held = self._read(name, stamp, keep)
        self._resident.pop(name, None)
        self._resident[name] = held  # at the end: used last
        return held.slot

    def _read(self, name: str, stamp: tuple[int, ...], keep: set[str]) -> _Resident:
        try:
            tensors = self._reader.read(self.folder / name)
        except CheckpointError as error:
            raise CheckpointError(f"adapter '{name}' cannot be served: {error}") from error
        except ConfigError as error:
            raise ConfigError(f"adapter '{name}' cannot be served: {error}") from error
        slot = self._slot_for(name, keep)
        _fill(slot, tensors)
        return _Resident(slot, stamp)

    def _slot_for(self, name: str, keep: set[str]) -> _Slot:
        """The adapter's own slot, or a free one, or that of the adapter which was not asked for the longest."""
        if name in self._resident:
            return self._resident[name].slot
        if self._free:
            return self._free.pop()
        return self._resident.pop(next(other for other in self._resident if other not in keep)).slot

    def _stamp(self, name: str) -> tuple[int, ...]:
        if not isinstance(name, str) or Path(name).name != name or name.startswith(".") or "\0" in name:
            raise self._unknown(name)  # a path would lead out of the folder
        try:
            found = [(self.folder / name / file).stat() for file in (CONFIG, WEIGHTS)]
        except OSError as error:
            if not (self.folder / name).is_dir():
                raise self._unknown(name) from error
            check_folder(self.folder / name)
            raise
        return tuple(number for file in found for number in (file.st_mtime_ns, file.st_size, file.st_ino))

    def _unknown(self, name: Any) -> ConfigError:
        near = get_close_matches(str(name), self.names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {len(self.names)} others"
        return ConfigError(f"{self.folder} has no adapter {name!r}; {hint}")

    def _first_whole(self) -> str:
        """The first adapter whose files can be read; the others are refused when they are asked for."""
        error = CheckpointError(f"{self.folder} holds no adapter folder; save one there with qpeft.save")
        for name in self.names:
            try:
                kind = check_folder(self.folder / name)["peft_type"]
            except CheckpointError as damaged:
                error = damaged
                continue
            if not issubclass(PEFT_TYPE_TO_TUNER_MAPPING.get(kind, object), GeneratedMixin):
                raise ConfigError(f"a pool serves compact adapters of QPA and Quantum-PEFT, but '{name}' is {kind}")
            return name
        raise error


def _with_slots(base: nn.Module, config: Any, capacity: int) -> PeftModel:
    """`base` with stock adapters, frozen, none of which is active."""
    stock = [config.to_stock() for _ in range(capacity)]
    for one in stock:
        one.inference_mode = True
    model: Any = get_peft_model(base, stock[0], adapter_name="slot0")
    for index, one in enumerate(stock[1:], start=1):
        model.add_adapter(f"slot{index}", one)
    return model.eval().requires_grad_(False)


def _switches(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def _switch(modules: list[Any], names: list[str]) -> None:
    """As PEFT's `set_adapter`, without its walk through the model: nothing here is trained, only the choice changes."""
    for module in modules:
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = list(names)
        else:
            module.set_adapter(names, inference_mode=True)


def _tensors(model: Any, slot: str) -> dict[str, Tensor]:
    """The slot's own tensors, not copies."""
    state = model.state_dict(keep_vars=True)
    return get_peft_model_state_dict(model, state, adapter_name=slot, save_embedding_layers=False)


@torch.no_grad()
def _fill(slot: _Slot, tensors: dict[str, Tensor]) -> None:
    for key, tensor in slot.tensors.items():
        tensor.copy_(tensors[key])
