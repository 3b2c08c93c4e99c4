"""Many compact adapters of one base model: a few of them in slots in memory, the others in their folders.

    folder/<name>/ --> CompactReader --> tensors --> a slot, an adapter of stock PEFT --> model

A slot is injected once. Another adapter is put into it by copying its tensors.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os.path import isdir
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import Tensor, nn

from qpeft.core.checkpoint import CONFIG, check_folder, load, stamp, unchanged
from qpeft.core.meta_model import refuse_adapted
from qpeft.core.serving.compact_reader import CompactReader
from qpeft.core.serving.stock_slots import StockSlots, activate, adapted_modules, not_mixed
from qpeft.core.targets import check_target_modules
from qpeft.core.tuner import GeneratedMixin
from qpeft.errors import CheckpointError, ConfigError, QpeftError

BASE = "__base__"  # PEFT's word in adapter_names


class _Resident(NamedTuple):
    slot: str
    stamp: tuple[int, ...]  # of the files it was read from


class AdapterPool:
    """Serves the compact adapters of a folder, each from a folder of its own, on one base model.

    Example::

        pool = qpeft.AdapterPool(base, "users")
        pool.activate("user-17")
        pool.model.generate(**inputs)
        pool.model.generate(**inputs, adapter_names=pool.place(["user-1", "user-2", "__base__"]))

        with pool.using("user-17") as arguments:  # one request of one of many threads
            pool.model.generate(**inputs, **arguments)

    The adapters are QPA's or Quantum-PEFT's, with one configuration and any seeds. Files are checked at every request,
    so a changed adapter is read again. Any threads may call a pool. The results of `activate` and `place` are valid
    until the next call of either in any thread; with several threads, run the model inside `using`. Select adapters
    with the pool only: PEFT's `set_adapter`, `disable_adapter`, ... of `pool.model` change what a block computes.

    Args:
        base: The model that the adapters were trained on; changed in place, as by PEFT.
        folder: Contains an adapter folder of `qpeft.save` for each name. The first complete one, in alphabetical
            order, determines the configuration.
        capacity: The number of adapters in memory, and in a batch.
        frames: The frame file of adapters that refer to one; it is read once. Default: as for `qpeft.load`.
        allow_other_base: Do not warn of adapters of a base model with other weights. Otherwise BaseModelWarning is
            given once for each.

    Raises:
        CheckpointError: there is no adapter, or the first is for another base model.
        ConfigError: adapters of another kind, one named "__base__", a base under PEFT already, or a capacity below 1.
    """

    def __init__(
        self,
        base: nn.Module,
        folder: str | Path,
        capacity: int = 8,
        *,
        frames: str | Path | None = None,
        allow_other_base: bool = False,
    ) -> None:
        if not isinstance(capacity, int) or capacity < 1:
            raise ConfigError(f"capacity must be a whole number from 1, got {capacity!r}")
        refuse_adapted(base)
        self.folder, self.capacity, self.active = Path(folder), capacity, BASE
        if (self.folder / BASE / CONFIG).is_file():
            raise ConfigError(f"'{BASE}' means no adapter and cannot be a name; rename {self.folder / BASE}")
        first = self.folder / self._first_whole()
        with unchanged(first):
            loaded: Any = load(base, first, frames=frames, allow_other_base=allow_other_base)
            self._reader = CompactReader(loaded, first, capacity, allow_other_base)
        config = loaded.base_model.generated_config("default")
        activate(adapted_modules(loaded), [])  # otherwise a module from modules_to_save would stay in the base
        self._slots = StockSlots(loaded.unload(), config, capacity)
        self._free = self._slots.names[::-1]
        self._resident: dict[str, _Resident] = {}  # the least recently used first
        self._lock = threading.Lock()  # not re-entrant: a generator's block may end in another thread
        self._owner: int | None = None  # the thread that holds it

    @property
    def model(self) -> PeftModel:
        """The base model with `capacity` stock adapters, in evaluation mode; none is active at first."""
        return self._slots.model

    @property
    def names(self) -> list[str]:
        """The adapters in the folder, sorted."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(p.name for p in found if _is_name(p.name) and (p / CONFIG).is_file())

    @property
    def resident(self) -> list[str]:
        """The adapters in slots, the least recently used first."""
        return list(self._resident)

    def activate(self, name: str) -> None:
        """Use this adapter from now on; "__base__": none.

        Raises:
            ConfigError: no such adapter, or this thread is in a block of `using`. The message contains no names,
                because it may reach a user.
            CheckpointError: its folder is damaged, or its settings differ from the pool's. The active adapter remains.
        """
        with self._exclusive():
            self._slots.check_not_merged()
            self._slots.switch(None if name == BASE else self._slot_with(name, keep=set()))
            self.active = name

    def place(self, names: Iterable[str]) -> list[str]:
        """The model's argument `adapter_names`, one for each row of a batch; "__base__" for rows without adapter.

        The active adapter keeps its slot.

        Raises:
            ConfigError: no such adapter, more different ones than slots, `names` is not a list, this thread is in a
                block of `using`, or PEFT does not mix these adapters in a batch: DoRA, or with a trained copy of
                another module than a linear map, an embedding or a convolution (`modules_to_save`), such as norm gains.
            CheckpointError: a folder is damaged, or its settings differ from the pool's.
        """
        rows = self._rows(names)
        with self._exclusive():
            return self._place_mixed(rows)

    def _place_mixed(self, rows: list[str]) -> list[str]:
        self._slots.check_mixes(set(rows) - {BASE})
        return self._place(rows)

    def _place(self, rows: list[str]) -> list[str]:
        self._slots.check_not_merged()
        wanted = {name for name in rows if name != BASE}
        keep = wanted | {self.active} - {BASE}
        if len(keep) > self.capacity:
            held = " in addition to the active one" if self.active in keep - wanted else ""
            raise ConfigError(
                f"the batch has {len(wanted)} different adapters{held}, but the pool has {self.capacity} slots; "
                'use a smaller batch or a larger capacity, or call activate("__base__") first'
            )
        slots = {name: self._slot_with(name, keep) for name in dict.fromkeys(rows) if name != BASE}
        return [slots.get(name, BASE) for name in rows]

    @contextmanager
    def using(self, names: str | Iterable[str]) -> Iterator[dict[str, Any]]:
        """Within: the model has these adapters, and requests of other threads wait.

        Afterwards the active adapter is the same as before. One block serves one request: the thread that entered it
        cannot call `using`, `activate` or `place` before its end.

        Args:
            names: One name, for all rows of a batch, or one name for each row; "__base__": no adapter.

        Yields:
            The arguments of the model for this request: none for one name, `adapter_names` for a list.

        Raises:
            ConfigError, CheckpointError: as `place`; the active adapter keeps its slot, and the enclosing block its
                adapters.
        """
        rows = [names] if isinstance(names, str) else self._rows(names)
        with self._exclusive():
            if not isinstance(names, str):
                yield {"adapter_names": self._place_mixed(rows)}
                return
            (slot,) = self._place(rows)
            self._slots.switch(None if slot == BASE else slot)
            try:
                yield {}
            finally:
                self._slots.switch(None if self.active == BASE else self._resident[self.active].slot)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Within: no other thread changes the slots or what is active. Raises ConfigError in a block of this thread."""
        if self._owner == threading.get_ident():
            raise ConfigError(
                "this thread is in a block of using already, and another request would change the adapters of the "
                "block; leave the block first, with one block for each request, and run concurrent requests in threads "
                "(asyncio.to_thread)"
            )
        with self._lock:
            self._owner = threading.get_ident()
            try:
                yield
            finally:
                self._owner = None

    def _rows(self, names: Iterable[str]) -> list[str]:
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise ConfigError(f"place takes a list of names, one for each row, got {names!r}; give [{names!r}]")
        rows = list(names)
        for name in rows:
            if not isinstance(name, str):
                raise self._unknown(name)
        return rows

    def _slot_with(self, name: str, keep: set[str]) -> str:
        """The slot with the adapter in its current version."""
        found = self._stamp(name)
        held = self._resident.get(name)
        if held is None or held.stamp != found:
            tensors, found = self._read(name, found)
            held = _Resident(self._slot_for(name, keep), found)
            self._slots.fill(held.slot, tensors)
        self._resident.pop(name, None)
        self._resident[name] = held  # at the end: used last
        return held.slot

    def _read(self, name: str, found: tuple[int, ...]) -> tuple[dict[str, Tensor], tuple[int, ...]]:
        """The adapter's tensors and the stamp of its files; of the new files if they are replaced meanwhile."""
        try:
            with unchanged(self.folder / name):
                return self._reader.read(self.folder / name), found
        except QpeftError as error:
            if (now := self._stamp(name)) != found:
                return self._read(name, now)
            raise type(error)(f"adapter '{name}' cannot be served: {error}") from error

    def _slot_for(self, name: str, keep: set[str]) -> str:
        """The adapter's own slot, or a free one, or that of the least recently used adapter."""
        if name in self._resident:
            return self._resident[name].slot
        if self._free:
            return self._free.pop()
        return self._resident.pop(next(other for other in self._resident if other not in keep)).slot

    def _stamp(self, name: str) -> tuple[int, ...]:
        if not _is_name(name):
            raise self._unknown(name)
        try:
            return stamp(self.folder / name)
        except (OSError, ValueError) as error:  # ValueError: an invalid file name
            if not isdir(self.folder / name):  # noqa: PTH112 Path.is_dir raises on names that are too long
                raise self._unknown(name) from error
            if (self.folder / name / "adapter" / CONFIG).is_file():
                raise ConfigError(
                    f"'{name}' is a run folder; move it out of the pool's folder, and copy its folder adapter there"
                ) from error
            check_folder(self.folder / name)
            raise

    def _unknown(self, name: Any) -> ConfigError:
        return ConfigError(f"{self.folder} has no adapter {name!r}; it has {len(self.names)} others")

    def _first_whole(self) -> str:
        """The first adapter whose files can be read; damaged ones are refused when they are requested."""
        error = CheckpointError(f"{self.folder} contains no adapter folder; save one there with qpeft.save")
        for name in self.names:
            try:
                kind = check_folder(self.folder / name)["peft_type"]
            except CheckpointError as damaged:
                error = damaged
                continue
            if not _is_served(kind):
                raise ConfigError(f"a pool serves compact adapters of QPA and Quantum-PEFT, but '{name}' is {kind}")
            return name
        raise error


def why_not_mixed(base: nn.Module, config: PeftConfig) -> str | None:
    """Why a pool cannot serve adapters with this config in one batch; `base` has no adapter. None: it can."""
    if not _is_served(config.peft_type):
        return f"AdapterPool serves QPA and Quantum-PEFT, and this is {PeftType(config.peft_type).value}"
    config = copy.copy(config)
    check_target_modules(base, config)  # which names experts as PEFT does
    part = not_mixed(base, config)
    return None if part is None else f"AdapterPool serves one of these in a batch: PEFT does not mix {part}"


def _is_served(kind: Any) -> bool:
    return issubclass(PEFT_TYPE_TO_TUNER_MAPPING.get(kind, object), GeneratedMixin)


def _is_name(name: Any) -> bool:
    """Whether it can be the name of an adapter's folder, and is not a path."""
    return isinstance(name, str) and Path(name).name == name not in ("", BASE) and name[0] != "." and "\0" not in name
