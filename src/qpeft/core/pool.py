"""Many compact adapters of one base model: a few of them in slots in memory, the others in their
folders.

    folder --> core/pool_reader.py --> tensors of a stock adapter --> a slot, which PEFT applies

A slot is injected once. Another adapter is put into it by copying its tensors.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from os.path import isdir  # which, unlike Path.is_dir, accepts names that are too long
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from peft import PeftConfig, PeftType, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora.model import _adapter_names_pre_forward_hook
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from qpeft.core.checkpoint import (
    CONFIG,
    WEIGHTS,
    check_folder,
    check_tensors,
    load,
    restore,
    stamp_of,
    values_in_file,
)
from qpeft.core.config import config_of
from qpeft.core.embeddings import resized
from qpeft.core.generated_tuner import GeneratedMixin
from qpeft.core.meta_model import refuse_adapted, refuse_merged
from qpeft.core.pool_reader import PoolReader
from qpeft.core.targets import check_target_modules
from qpeft.errors import CheckpointError, ConfigError, QpeftError
from qpeft.folders import repair_folder

# trained copies of modules (modules_to_save) that PEFT mixes in a batch
_MIXED_COPIES = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BASE = "__base__"  # PEFT's word in adapter_names
# methods of a PeftModel and its tuner, after which the pool would serve something else
_REFUSED = (
    "set_adapter disable_adapter disable_adapter_layers enable_adapter_layers merge_adapter"
    " add_adapter load_adapter add_weighted_adapter delete_adapter inject_adapter unload"
    " merge_and_unload load_state_dict"
)


class _Held(NamedTuple):
    """What a slot contains."""

    adapter: str
    slot: str
    stamp: tuple[int, ...]  # of the files that the adapter was read from


_NO_ADAPTER = _Held(BASE, BASE, ())


class _Row(str):
    """A slot, which is PEFT's name of an adapter, and what it contained when the row was placed."""

    held: _Held


class _Used(set[str]):
    """The adapters of a call of the model that is running, and its thread."""

    def __init__(self, names: Set[str]) -> None:
        super().__init__(names)
        self.thread = threading.get_ident()


class _Guarded(list[str]):
    """Names of adapters that layers apply, which only a call of the model may read.

    A layer of LoRA reads them in each forward pass, so one outside of such a call is refused without
    a hook on each layer.
    """

    def __init__(self, names: Iterable[str], refuse: Callable[[], None]) -> None:
        super().__init__(names)
        self.refuse = refuse

    def __iter__(self) -> Iterator[str]:
        self.refuse()
        return super().__iter__()

    def __len__(self) -> int:
        self.refuse()
        return super().__len__()


class AdapterPool:
    """Serves the compact adapters of a folder, each from a folder of its own, on one base model.

    Example::

        pool = qpeft.AdapterPool(base, "users")
        pool.activate("user-17")
        pool.model.generate(**inputs)
        pool.model.generate(**inputs, adapter_names=pool.place(["user-1", "user-2", "__base__"]))

    The adapters are QPA's, Quantum-PEFT's or SoRA's, with one configuration and any seeds. Files are
    checked at every request, so a changed adapter is read again. The result of `place` is valid
    while its adapters are in their slots; after that the model's call raises ConfigError. Select
    adapters with the pool only: PEFT's `set_adapter`, `disable_adapter` and the like are refused. Write
    nothing into its slots, as PEFT's `hotswap_adapter` does: no write is seen.

    Threads need no lock: each has its own active adapter, and the calls of the model run one after
    the other. A thread that calls the model without having called `activate` or given
    `adapter_names` is refused once any thread has called `activate` or `place`. Call `model` alone:
    its `base_model`, or a part of it with adapters, is refused if it is called from outside.
    Coroutines of one thread have one active adapter together, and a thread of an executor keeps the
    one of its last task: there, give every call `adapter_names`.

    `model` is the base with `capacity` stock adapters, in evaluation mode.

    Args:
        base: The model that the adapters were trained on; changed in place, as by PEFT.
        folder: Contains an adapter folder of `qpeft.save` for each name. The first name determines
            the configuration.
        capacity: The number of adapters in memory, and in a batch.
        frames: The frame file of adapters that refer to one; it is read once. Default: as for
            `qpeft.load`.

    Raises:
        CheckpointError: there is no adapter, or the first is for another base model.
        ConfigError: adapters of another kind, a base under PEFT already, or a capacity below 1.
    """

    def __init__(
        self,
        base: nn.Module,
        folder: str | Path,
        capacity: int = 8,
        *,
        frames: str | Path | None = None,
    ) -> None:
        if type(capacity) is not int or capacity < 1:
            raise ConfigError(f"capacity must be a whole number of at least 1, got {capacity!r}")
        refuse_adapted(base)
        self.folder = Path(folder)
        self.capacity = capacity
        if not self.names:
            raise CheckpointError(
                f"{self.folder} contains no adapter folder; save one there with qpeft.save"
            )
        example = self.folder / self.names[0]  # determines the configuration of all
        content = check_folder(example)
        kind = content["peft_type"]
        if not _is_served(kind):
            raise ConfigError(
                f"a pool serves adapters of QPA, Quantum-PEFT and SoRA, but {example} is {kind}"
            )
        if content.get("bias", "none") != "none":
            raise ConfigError(
                f"{example} has trained biases, which replace those of the base below every adapter"
                " of a pool; serve it alone, or train adapters with bias='none'"
            )
        values = values_in_file(base, example)
        loaded: Any = load(base, example, frames=frames)
        # rows of a resized vocabulary, which all adapters of the pool have
        shared = {id(parameter) for parameter in resized(base).parameters}
        if any(id(p) not in shared and not torch.equal(p, before) for p, before in values):
            loaded.unload()
            restore(values)
            raise CheckpointError(
                f"{example / WEIGHTS} has other values of the base's embedding or head, which would"
                " be those of every adapter of the pool; remove it, or serve it alone"
            )
        self._reader = PoolReader(loaded, config_of(content, example / CONFIG))
        stock = loaded.base_model.generators.configs["default"].to_stock()
        # otherwise a module from modules_to_save would stay in the base
        _activate(_adapted_modules(loaded), [], [])
        self._inject_slots(loaded.unload(), stock)
        self._lock = threading.RLock()
        # by the adapter, the least recently used first; a slot without an entry is free
        self._held: dict[str, _Held] = {}
        self._chosen = threading.local()  # attribute `held`: what each thread has activated
        self._is_asked = False  # whether any thread has, or has placed rows
        self._switched: str | None = None  # the slot that the layers apply
        # the adapters of the call of the model that is running, which keep their slots; a weak
        # reference, because an interrupted call may be unable to remove it
        self._used: Callable[[], _Used | None] = lambda: None
        self._switch(BASE)

    def _inject_slots(self, base: nn.Module, stock: PeftConfig) -> None:
        """Put a stock adapter for each slot on the base."""
        stock.inference_mode = True
        slots = [f"slot{index}" for index in range(self.capacity)]
        self.model: Any = get_peft_model(base, stock, adapter_name=slots[0])  # type: ignore[arg-type]
        for slot in slots[1:]:
            self.model.add_adapter(slot, copy.deepcopy(stock))
        self.model.eval().requires_grad_(False)
        self._modules = _adapted_modules(self.model)
        # that PEFT's DoraCaching fills
        caches = (getattr(module, "_dora_cache", None) for module in self.model.modules())
        self._dora_caches = [cache for cache in caches if cache is not None]
        self._state = self.model.state_dict(keep_vars=True)
        # of each slot the tensors by their keys in a stock file; not copied
        self._tensors = {
            slot: get_peft_model_state_dict(
                self.model, self._state, adapter_name=slot, save_embedding_layers=False
            )
            for slot in slots
        }
        self._names = {id(tensor): name for name, tensor in self._state.items()}
        tuner = self.model.base_model
        select = tuner._enable_peft_forward_hooks
        tuner._enable_peft_forward_hooks = partial(self._selecting, select)
        for name in _REFUSED.split():
            setattr(self.model, name, _refuse_call)
            setattr(tuner, name, _refuse_call)
        copies = [m for m in self._modules if isinstance(m, AuxiliaryTrainingWrapper)]
        for module in (tuner.model, *copies):
            module.register_forward_pre_hook(self._refuse_unselected)

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "a pool cannot be copied or pickled; make another one with a base of its own"
        )

    @property
    def names(self) -> list[str]:
        """The adapters in the folder, sorted."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(p.name for p in paths if _is_name(p.name) and (p / CONFIG).is_file())

    @property
    def active(self) -> str:
        """The name that this thread has given to `activate`."""
        return getattr(self._chosen, "held", _NO_ADAPTER).adapter

    def activate(self, name: str) -> None:
        """Use this adapter in this thread from now on; "__base__": none.

        Raises:
            ConfigError: no such adapter, or a call of the model is running in this thread. The
                message contains no names of others, because it may reach a user.
            CheckpointError: its folder is damaged, or its settings differ from the pool's. The
                active adapter remains.
        """
        with self._lock:
            refuse_merged(self._modules)
            if self._used() is not None:
                raise ConfigError("a call of the model is running; activate after it")
            held = _NO_ADAPTER if name == BASE else self._hold(name, keep=set())
            self._switch(held.slot)
            self._chosen.held = held
            self._is_asked = True

    def place(self, names: Sequence[str]) -> list[str]:
        """The model's argument `adapter_names`, one for each row of a batch; "__base__" for rows
        without adapter.

        The rows act only in a call that gets them: one without `adapter_names` uses the active
        adapter, which keeps its slot. PEFT refuses, in the model's call, to mix adapters with
        DoRA, of experts, or with a trained copy of another module than a linear map, an embedding
        or a convolution (`modules_to_save`).

        Raises:
            ConfigError: no such adapter, more different ones than slots, or `names` is one name.
            CheckpointError: a folder is damaged, or its settings differ from the pool's.
        """
        if isinstance(names, str):
            raise ConfigError(f"place takes a list of names, one for each row, got {names!r}")
        with self._lock:
            refuse_merged(self._modules)
            keep = {*names, self.active} - {BASE}
            if len(keep) > self.capacity:
                raise ConfigError(
                    f"the batch and the active adapter are {len(keep)} different adapters, but the"
                    f" pool has {self.capacity} slots; use a smaller batch or a larger capacity, or"
                    f' call activate("{BASE}") first'
                )
            rows: dict[str, str] = {BASE: BASE}
            for name in dict.fromkeys(names):
                if name != BASE:
                    held = self._hold(name, keep)
                    row = _Row(held.slot)
                    row.held = held
                    rows[name] = row
            self._is_asked = True
            return [rows[name] for name in names]

    @contextmanager
    def _selecting(self, select: Callable[..., Any], *args: Any, **options: Any) -> Iterator[None]:
        """One call of the model with its adapters, while no other thread calls it or the pool.

        `select` is PEFT's selection by `adapter_names`, which PEFT does not end if the forward pass
        raises.
        """
        with self._lock:
            outer = self._used()  # of the call that this one is inside of
            if outer is None:
                self._remove_row_hooks()  # of an interrupted call
            before = self._row_hooks()
            names = options.get("adapter_names")
            if names is not None:
                self._check_rows(names)
                used = _Used({row.held.adapter for row in names if row != BASE})
            elif before:
                raise ConfigError(
                    "a call of the model with adapter_names is running; give adapter_names to a"
                    " call inside it as well"
                )
            else:
                used = _Used({self._switch_to_active()})
            used |= outer or set()
            self._used = weakref.ref(used)
            try:
                with select(*args, **options):
                    for module, key in self._row_hooks() - before:
                        rows: Any = module._forward_pre_hooks[key]
                        rows.keywords["adapter_names"] = self._guarded(
                            rows.keywords["adapter_names"]
                        )
                    yield
            finally:
                self._used = (lambda: None) if outer is None else weakref.ref(outer)
                self._remove_row_hooks(before)

    def _refuse_unselected(self, *_: Any) -> None:
        """Raise ConfigError in a call, by this thread, that the pool has selected no adapter for."""
        used = self._used()
        if used is None or used.thread != threading.get_ident():
            raise ConfigError(
                "an adapter of a pool was used outside of a call of the pool, such as by its base"
                " model or a part of it, without the pool's lock and its choice of an adapter; call"
                " pool.model"
            )

    def _guarded(self, names: Iterable[str]) -> _Guarded:
        return _Guarded(names, self._refuse_unselected)

    def _check_rows(self, names: Sequence[str]) -> None:
        """Raise ConfigError if the slots do not contain what they did when `place` returned."""
        for row in names:
            if row == BASE:
                continue
            if not isinstance(row, _Row):
                raise ConfigError(
                    "adapter_names are the list that place returned, or copies of its rows; got"
                    f" {row!r}"
                )
            if self._held.get(row.held.adapter) != row.held:
                raise ConfigError(
                    f"adapter '{row.held.adapter}' was replaced in its slot after these rows were"
                    " placed; call place again, before each call of the model"
                )

    def _row_hooks(self) -> set[tuple[nn.Module, int]]:
        """PEFT's hooks that select adapters by row: module, and key of its forward pre-hook."""
        return {
            (module, key)
            for module in self._modules
            for key, hook in module._forward_pre_hooks.items()
            if getattr(hook, "func", None) is _adapter_names_pre_forward_hook
        }

    def _remove_row_hooks(self, kept: Set[tuple[nn.Module, int]] = frozenset()) -> None:
        for module, key in self._row_hooks() - kept:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)

    def _switch_to_active(self) -> str:
        """Apply the adapter that this thread has activated, also if another one took its slot."""
        if not hasattr(self._chosen, "held") and self._is_asked:
            raise ConfigError(
                "this thread has activated no adapter, and the pool is in use; give the call"
                " adapter_names=pool.place([...]), or call activate in this thread first,"
                f' activate("{BASE}") for none'
            )
        name = self.active
        if name == BASE:
            self._switch(BASE)
            return name
        held = self._held.get(name) or self._hold(name, keep=set())
        if held.stamp != self._chosen.held.stamp:
            raise ConfigError(f"adapter '{name}' changed after it was activated; activate it again")
        self._switch(held.slot)
        return name

    def _switch(self, slot: str) -> None:
        names = [] if slot == BASE else [slot]
        if slot != self._switched:
            self._switched = None  # some layers, if this is interrupted
            _activate(self._modules, names, self._guarded(names))
            self.model.base_model.active_adapter = names
            self._switched = slot

    @torch.no_grad()
    def _hold(self, name: str, keep: set[str], attempts: int = 20) -> _Held:
        """Put the current version of an adapter into a slot; those of `keep` remain in theirs."""
        folder = self._folder_of(name)
        stamp = stamp_of(folder)
        held = self._held.get(name)
        if held is None or held.stamp != stamp:
            held = _Held(name, self._slot_for(name, keep), stamp)
            try:
                tensors = self._reader.read(folder, self._state)
                check_tensors(tensors, self._tensors["slot0"])
            except QpeftError as error:
                raise type(error)(f"adapter '{name}' cannot be served: {error}") from error
            if stamp_of(folder) != stamp:  # other files were read than those that were checked
                if attempts == 1:
                    raise CheckpointError(
                        f"adapter '{name}' changed whenever it was read; ask again"
                    )
                return self._hold(name, keep, attempts - 1)
            self._check_places(held.slot)
            # free until its tensors are complete, because this may be interrupted
            for other in [other for other in self._held.values() if other.slot == held.slot]:
                del self._held[other.adapter]
            for key, tensor in self._tensors[held.slot].items():
                tensor.copy_(tensors[key])
            for cache in self._dora_caches:
                cache.clear()
        self._held.pop(name, None)
        self._held[name] = held  # at the end: used last
        return held

    def _check_places(self, slot: str) -> None:
        """Raise ConfigError if somebody has replaced the slot's tensors: the layers would go on to
        apply what the replaced ones contained, the adapter of another request.
        """
        for tensor in self._tensors[slot].values():
            name = self._names[id(tensor)]
            present = attrgetter(name)(self.model)
            # accelerate's offload leaves a tensor without values, and reads ours
            if present is not tensor and not present.is_meta:
                raise ConfigError(
                    f"somebody has replaced {name} of the pool's model, as fully_shard, load_state_dict"
                    " with assign=True, or a quantization do; make a pool after that, from the base"
                )

    def _folder_of(self, name: str) -> Path:
        """The folder of an adapter. Raises ConfigError if there is none."""
        folder = self.folder / str(name)
        if _is_name(name) and not isdir(folder):  # noqa: PTH112
            with suppress(OSError, ValueError):  # no folder can have this name
                repair_folder(folder)
        if not _is_name(name) or not isdir(folder):  # noqa: PTH112
            raise ConfigError(
                f"{self.folder} has no adapter {name!r}; it has {len(self.names)} others"
            )
        return folder

    def _slot_for(self, name: str, keep: set[str]) -> str:
        """The slot to read an adapter into: its own, a free one, or that of the least recently used
        adapter. Raises ConfigError if a running call of the model uses all of them.
        """
        used = self._used() or set()
        slots = {held.adapter: held.slot for held in self._held.values()}
        free = [slot for slot in self._tensors if slot not in slots.values()]
        idle = [slot for adapter, slot in slots.items() if adapter not in keep | used]
        candidates = [slots[name]] if name in slots else free[-1:] + idle
        if name in used or not candidates:
            raise ConfigError(
                "a call of the model that is running uses the slots; place or activate after it"
            )
        return candidates[0]


def why_not_mixed(base: nn.Module, config: PeftConfig) -> str | None:
    """Why a pool cannot serve several adapters with this config in one batch, or None.

    `base` is the model without an adapter, which may be on the meta device.
    """
    if not _is_served(config.peft_type):
        kind = PeftType(config.peft_type).value
        return f"AdapterPool serves QPA, Quantum-PEFT and SoRA, and this is {kind}"
    config = copy.copy(config)
    check_target_modules(base, config)  # which names experts as PEFT does
    ends = tuple(getattr(config, "modules_to_save", None) or ())
    copied = [module for name, module in base.named_modules() if name.endswith(ends)]
    not_mixed = sorted({type(m).__name__ for m in copied if not isinstance(m, _MIXED_COPIES)})
    if not_mixed:
        part = f"a trained copy of {not_mixed[0]} (modules_to_save)"
    elif getattr(config, "target_parameters", None):
        part = "experts (target_parameters)"
    elif getattr(config, "use_dora", False):
        part = "DoRA"
    else:
        return None
    return f"AdapterPool serves one of these in a batch: PEFT does not mix {part}"


def _refuse_call(*_: Any, **__: Any) -> None:
    raise ConfigError(
        "the pool would serve another adapter than the requested one; choose adapters by"
        f' pool.activate(name) or pool.place(names), none by pool.activate("{BASE}")'
    )


def _is_served(kind: Any) -> bool:
    return issubclass(PEFT_TYPE_TO_TUNER_MAPPING.get(kind, object), GeneratedMixin)


def _is_name(name: Any) -> bool:
    """Whether it can be the name of an adapter's folder, and is not a path."""
    return isinstance(name, str) and Path(name).name == name not in ("", BASE) and name[0] != "."


def _adapted_modules(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def _activate(modules: list[Any], names: list[str], of_layers: list[str]) -> None:
    """PEFT's `set_adapter` without a traversal of the model, because nothing here is trained."""
    for module in modules:
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = of_layers
        else:
            module.set_adapter(names, inference_mode=True)
