"""Many compact adapters of one base model: a few of them in slots in memory, the others in their
folders.

    adapter_config.json       --> the settings, which must equal those of the other adapters
    adapter_model.safetensors --> the generator --> flat (P,) --> views under the keys of a stock file
                              --> a slot, an adapter of stock PEFT --> model

A slot is injected once. Another adapter is put into it by copying its tensors.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from functools import partial
from os.path import isdir  # which, unlike Path.is_dir, accepts names that are too long
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftType, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora.model import _adapter_names_pre_forward_hook
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load as tensors_in
from torch import Tensor, nn

from qpeft.core.base_digest import check_base, digest, name_of, own_weights
from qpeft.core.checkpoint import CONFIG, WEIGHTS, check_folder, check_tensors, load
from qpeft.core.generated_tuner import GeneratedMixin
from qpeft.core.meta_model import refuse_adapted
from qpeft.core.stock_adapter import stock_key
from qpeft.core.targets import check_target_modules
from qpeft.errors import CheckpointError, ConfigError, QpeftError
from qpeft.folders import repair_folder

# trained copies of modules (modules_to_save) that PEFT mixes in a batch
_MIXED_COPIES = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BASE = "__base__"  # PEFT's word in adapter_names
# fields in which the adapters may differ, which only training uses
_FREE = (
    *("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"),
    *("lora_dropout", "weights_sha256"),
    *(
        "base_digest",
        "frames",
    ),  # not compared as texts: precisions differ, and a frame file has a hash
)
_Stamp = tuple[int, ...]  # of the files that an adapter was read from


class _Row(str):
    """A slot, which is PEFT's name of an adapter, and what it contained when the row was placed."""

    adapter: str
    stamp: _Stamp


class AdapterPool:
    """Serves the compact adapters of a folder, each from a folder of its own, on one base model.

    Example::

        pool = qpeft.AdapterPool(base, "users")
        pool.activate("user-17")
        pool.model.generate(**inputs)
        pool.model.generate(**inputs, adapter_names=pool.place(["user-1", "user-2", "__base__"]))

    The adapters are QPA's, Quantum-PEFT's or SoRA's, with one configuration and one seed. Files are
    checked at every request, so a changed adapter is read again. The result of `place` is valid
    while its adapters are in their slots; after that the model's call raises ConfigError. Select
    adapters with the pool only, not with PEFT's `set_adapter` or `disable_adapter`.

    Threads need no lock: each has its own active adapter, and the calls of the model run one after
    the other. A thread that calls the model without having called `activate` or given
    `adapter_names` is refused once another thread has called `activate`.

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
        self.folder, self.capacity = Path(folder), capacity
        if not self.names:
            raise CheckpointError(
                f"{self.folder} contains no adapter folder; save one there with qpeft.save"
            )
        first = self.folder / self.names[0]
        if not _is_served(kind := check_folder(first)["peft_type"]):
            raise ConfigError(
                f"a pool serves adapters of QPA, Quantum-PEFT and SoRA, but {first} is {kind}"
            )
        loaded: Any = load(base, first, frames=frames)
        self._settings = _shared(PeftConfig.from_pretrained(str(first)))
        tuner: Any = loaded.base_model
        self._binding = tuner.generators.bindings["default"]
        self._base = digest(own_weights(tuner.model, "default")), name_of(tuner.model)
        self._prefix = tuner.generators.saved_prefix
        _activate(
            _adapted_modules(loaded), []
        )  # otherwise a module from modules_to_save would stay in the base
        stock, base = tuner.generators.configs["default"].to_stock(), loaded.unload()
        stock.inference_mode = True
        slots = [f"slot{index}" for index in range(capacity)]
        self.model: Any = get_peft_model(base, stock, adapter_name=slots[0])
        for name in slots[1:]:
            self.model.add_adapter(name, copy.deepcopy(stock))
        self.model.eval().requires_grad_(False)
        self._modules = _adapted_modules(self.model)
        self._state = self.model.state_dict(keep_vars=True)
        saved = partial(
            get_peft_model_state_dict, self.model, self._state, save_embedding_layers=False
        )
        self._tensors = {slot: saved(adapter_name=slot) for slot in slots}  # not copied
        tuner = self.model.base_model
        tuner._enable_peft_forward_hooks = partial(
            self._selecting, tuner._enable_peft_forward_hooks
        )
        self._lock = threading.RLock()
        # slot and files by name, the least recently used first; a slot without an entry is free
        self._held: dict[str, tuple[str, _Stamp]] = {}
        self._chosen = threading.local()  # name and stamp: what each thread has activated
        self._is_chosen = False  # whether any thread has
        self._switched: str | None = None  # the slot that the layers apply
        # the adapters of the call of the model that is running, which keep their slots; a weak
        # reference, because an interrupted call may be unable to remove it
        self._used: Callable[[], set[str] | None] = lambda: None
        self._switch(BASE)

    @property
    def names(self) -> list[str]:
        """The adapters in the folder, sorted."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(p.name for p in found if _is_name(p.name) and (p / CONFIG).is_file())

    @property
    def active(self) -> str:
        """The name that this thread has given to `activate`."""
        return getattr(self._chosen, "name", BASE)

    def activate(self, name: str) -> None:
        """Use this adapter in this thread from now on; "__base__": none.

        Raises:
            ConfigError: no such adapter, or a call of the model is running in this thread. The
                message contains no names of others, because it may reach a user.
            CheckpointError: its folder is damaged, or its settings differ from the pool's. The
                active adapter remains.
        """
        with self._lock:
            self._refuse_merged()
            if self._used() is not None:
                raise ConfigError("a call of the model is running; activate after it")
            slot, stamp = (BASE, ()) if name == BASE else self._slot_with(name, keep=set())
            self._switch(slot)
            self._chosen.name, self._chosen.stamp = name, stamp
            self._is_chosen = True

    def place(self, names: Sequence[str]) -> list[str]:
        """The model's argument `adapter_names`, one for each row of a batch; "__base__" for rows
        without adapter.

        The active adapter keeps its slot. PEFT refuses, in the model's call, to mix adapters with
        DoRA, of experts, or with a trained copy of another module than a linear map, an embedding
        or a convolution (`modules_to_save`).

        Raises:
            ConfigError: no such adapter, more different ones than slots, or `names` is one name.
            CheckpointError: a folder is damaged, or its settings differ from the pool's.
        """
        if isinstance(names, str):
            raise ConfigError(f"place takes a list of names, one for each row, got {names!r}")
        with self._lock:
            self._refuse_merged()
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
                    slot, stamp = self._slot_with(name, keep)
                    rows[name] = row = _Row(slot)
                    row.adapter, row.stamp = name, stamp
            return [rows[name] for name in names]

    def _refuse_merged(self) -> None:
        if any(getattr(module, "merged", False) for module in self._modules):
            raise ConfigError(
                "an adapter is merged into the base model; call model.unmerge_adapter() first"
            )

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
                used = {row.adapter for row in self._checked(names)}
            elif before:
                raise ConfigError(
                    "a call of the model with adapter_names is running; give adapter_names to a call"
                    " inside it as well"
                )
            else:
                used = {self._switch_to_active()}
            used |= outer or set()
            self._used = weakref.ref(used)
            try:
                with select(*args, **options):
                    yield
            finally:
                self._used = (lambda: None) if outer is None else weakref.ref(outer)
                self._remove_row_hooks(before)

    def _checked(self, names: Sequence[str]) -> list[_Row]:
        """The rows with an adapter. Raises ConfigError if the pool does not hold them any more."""
        rows = []
        for row in names:
            if row == BASE:
                continue
            if not isinstance(row, _Row):
                raise ConfigError(
                    "adapter_names are the list that place returned, or copies of its rows; got"
                    f" {row!r}"
                )
            if self._held.get(row.adapter) != (row, row.stamp):
                raise ConfigError(
                    f"adapter '{row.adapter}' was replaced in its slot after these rows were"
                    " placed; call place again, before each call of the model"
                )
            rows.append(row)
        return rows

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
        name = self.active
        if not hasattr(self._chosen, "name") and self._is_chosen:
            raise ConfigError(
                "this thread has activated no adapter, and another thread has; call activate in the"
                " thread that calls the model, or give it adapter_names=pool.place([...])"
            )
        if name == BASE:
            self._switch(BASE)
            return name
        slot, stamp = self._held.get(name, (BASE, ()))
        if slot == BASE:
            slot, stamp = self._slot_with(name, keep=set())
        if stamp != self._chosen.stamp:
            raise ConfigError(f"adapter '{name}' changed after it was activated; activate it again")
        self._switch(slot)
        return name

    def _switch(self, slot: str) -> None:
        names = [] if slot == BASE else [slot]
        if slot != self._switched:
            self._switched = None  # some layers, if this is interrupted
            _activate(self._modules, names)
            self.model.base_model.active_adapter = names
            self._switched = slot

    @torch.no_grad()
    def _slot_with(self, name: str, keep: set[str]) -> tuple[str, _Stamp]:
        """The slot with the adapter in its current version, and its files; those of `keep` remain
        in theirs.
        """
        folder = self.folder / str(name)
        if _is_name(name) and not isdir(folder):  # noqa: PTH112
            with suppress(OSError, ValueError):  # no folder can have this name
                repair_folder(folder)
        if not _is_name(name) or not isdir(folder):  # noqa: PTH112
            raise ConfigError(
                f"{self.folder} has no adapter {name!r}; it has {len(self.names)} others"
            )
        files = [path.stat() for path in (folder / CONFIG, folder / WEIGHTS) if path.is_file()]
        stamp = tuple(n for one in files for n in (one.st_ctime_ns, one.st_size, one.st_ino))
        slot, held = self._held.get(name, (None, ()))
        if slot is None or held != stamp:
            used = self._used() or set()
            taken = {slot for slot, _ in self._held.values()}
            free = [slot for slot in self._tensors if slot not in taken]
            idle = [other for other in self._held if other not in keep | used]
            if name in used or not (slot or free or idle):
                raise ConfigError(
                    "a call of the model that is running uses the slots; place or activate after it"
                )
            try:
                tensors = self._read(folder)
                check_tensors(tensors, self._tensors["slot0"])
            except QpeftError as error:
                raise type(error)(f"adapter '{name}' cannot be served: {error}") from error
            # free until its tensors are complete, because this may be interrupted
            if slot is not None:
                del self._held[name]
            elif free:
                slot = free[-1]
            else:
                slot, _ = self._held.pop(idle[0])
            for key, tensor in self._tensors[slot].items():
                tensor.copy_(tensors[key])
        self._held.pop(name, None)
        self._held[name] = slot, stamp  # at the end: used last
        return slot, stamp

    @torch.inference_mode(False)
    @torch.no_grad()
    def _read(self, folder: Path) -> dict[str, Tensor]:
        """The adapter's tensors by their keys in a stock file, float32 if generated; valid until
        the next call.

        Raises CheckpointError if the folder is damaged, foreign, for another base model, or has
        other settings than the first one; ConfigError if the adapter was saved before its frames
        were fitted.
        """
        check_folder(folder)
        saved: Any = PeftConfig.from_pretrained(str(folder))
        mine, its = self._settings, _shared(saved)
        if differing := sorted(k for k in mine.keys() | its.keys() if mine.get(k) != its.get(k)):
            shown = [
                f"{k}={its.get(k)!r} instead of {mine.get(k)!r}"
                for k in differing
                if k != "generated"
            ]
            raise CheckpointError(
                "it has other settings than the first adapter of this pool: "
                f"{', '.join(shown) or 'it is for another base model'}; serve it from another pool"
            )
        check_base(saved, *self._base, f"adapter '{folder.name}'")
        tensors = tensors_in(
            (folder / WEIGHTS).read_bytes()
        )  # for small files three times as fast as load_file
        others = {k: t for k, t in tensors.items() if not k.startswith(self._prefix)}
        generator = self._binding.generator
        packed = {k.removeprefix(self._prefix): t for k, t in tensors.items() if k not in others}
        for key in others.keys() & self._state.keys():
            tensor, present = others.pop(key), self._state[key]
            if not torch.equal(tensor.to(present), present):
                raise CheckpointError(
                    f"its base has other values in {key}, where the vocabulary was resized, than that"
                    " of the first adapter of this pool; serve it from another pool"
                )
        state = generator.unpack(packed)
        check_tensors(state, generator.state_dict())
        generator.load_state_dict(state)
        if generator.needs_fit:
            raise ConfigError(
                "it was saved before qpeft.fit_frames, without the frames of the loss gradient;"
                " train it"
            )
        parts = zip(self._binding.slots, generator().split(self._binding.sizes), strict=True)
        return others | {stock_key(slot.label): part.view(slot.shape) for slot, part in parts}


def why_not_mixed(base: nn.Module, config: PeftConfig) -> str | None:
    """Why a pool cannot serve several adapters with this config in one batch, or None.

    `base` is the model without an adapter, which may be on the meta device.
    """
    if not _is_served(config.peft_type):
        kind = PeftType(config.peft_type).value
        return f"AdapterPool serves QPA, Quantum-PEFT and SoRA, and this is {kind}"
    config = copy.copy(config)
    check_target_modules(base, config)  # which names experts as PEFT does
    saved = tuple(getattr(config, "modules_to_save", None) or ())
    copied = [module for name, module in base.named_modules() if name.endswith(saved)]
    unmixed = sorted({type(m).__name__ for m in copied if not isinstance(m, _MIXED_COPIES)})
    if unmixed:
        part = f"a trained copy of {unmixed[0]} (modules_to_save)"
    elif getattr(config, "target_parameters", None):
        part = "experts (target_parameters)"
    elif getattr(config, "use_dora", False):
        part = "DoRA"
    else:
        return None
    return f"AdapterPool serves one of these in a batch: PEFT does not mix {part}"


def _is_served(kind: Any) -> bool:
    return issubclass(PEFT_TYPE_TO_TUNER_MAPPING.get(kind, object), GeneratedMixin)


def _is_name(name: Any) -> bool:
    """Whether it can be the name of an adapter's folder, and is not a path."""
    return isinstance(name, str) and Path(name).name == name not in ("", BASE) and name[0] != "."


def _shared(config: PeftConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _FREE}


def _adapted_modules(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def _activate(modules: list[Any], names: list[str]) -> None:
    """PEFT's `set_adapter` without a traversal of the model, because nothing here is trained."""
    for module in modules:
        if isinstance(module, BaseTunerLayer):
            module._active_adapter = list(names)
        else:
            module.set_adapter(names, inference_mode=True)
