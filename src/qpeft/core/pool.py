"""Many compact adapters of one base model: a few of them in slots in memory, the others in their
folders.

    adapter_config.json       --> the settings, which must equal those of the other adapters
    adapter_model.safetensors --> the generator --> flat (P,) --> views under the keys of a stock file
                              --> a slot, an adapter of stock PEFT --> model

A slot is injected once. Another adapter is put into it by copying its tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from os.path import isdir  # which, unlike Path.is_dir, accepts names that are too long
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora.model import _adapter_names_pre_forward_hook
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load as tensors_in
from torch import Tensor, nn

from qpeft.core.base_digest import check_base, digest, name_of, own_weights
from qpeft.core.checkpoint import CONFIG, WEIGHTS, check_folder, check_tensors, load
from qpeft.core.meta_model import refuse_adapted
from qpeft.core.tuner import GeneratedMixin, stock_key
from qpeft.errors import CheckpointError, ConfigError, QpeftError
from qpeft.folders import repair_folder

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
    while its adapters are in their slots; after that the model's call raises ConfigError. With
    several threads, hold a lock of your own from `activate` or `place` to the end of the model's
    call. Select adapters with the pool only, not with PEFT's `set_adapter` or `disable_adapter`.

    `model` is the base with `capacity` stock adapters, in evaluation mode; `active` is the name
    given to `activate`.

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
        self.folder, self.capacity, self.active = Path(folder), capacity, BASE
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
        self._prefix = tuner.generators.prefix
        _activate(
            _adapted_modules(loaded), []
        )  # otherwise a module from modules_to_save would stay in the base
        stock, base = tuner.generators.configs["default"].to_stock(), loaded.unload()
        stock.inference_mode = True
        self._free = [f"slot{index}" for index in range(capacity)]
        self.model: Any = get_peft_model(base, stock, adapter_name=self._free[0])
        for name in self._free[1:]:
            self.model.add_adapter(name, copy.deepcopy(stock))
        self.model.eval().requires_grad_(False)
        self._modules = _adapted_modules(self.model)
        state = self.model.state_dict(keep_vars=True)
        saved = partial(get_peft_model_state_dict, self.model, state, save_embedding_layers=False)
        self._tensors = {slot: saved(adapter_name=slot) for slot in self._free}  # not copied
        tuner = self.model.base_model
        tuner._enable_peft_forward_hooks = partial(
            self._selecting, tuner._enable_peft_forward_hooks
        )
        self._switch(BASE)
        self._used: set[str] = (
            set()
        )  # in a call of the model that is running, whose slots keep their content
        self._held: dict[
            str, tuple[str, _Stamp]
        ] = {}  # slot and files by name; the least recently used first

    @property
    def names(self) -> list[str]:
        """The adapters in the folder, sorted."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(p.name for p in found if _is_name(p.name) and (p / CONFIG).is_file())

    def activate(self, name: str) -> None:
        """Use this adapter from now on; "__base__": none.

        Raises:
            ConfigError: no such adapter. The message contains no names of others, because it may
                reach a user.
            CheckpointError: its folder is damaged, or its settings differ from the pool's. The
                active adapter remains.
        """
        self._refuse_merged()
        self._switch(name if name == BASE else self._slot_with(name, keep=set()))
        self.active = name

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
        self._refuse_merged()
        keep = {*names, self.active} - {BASE}
        if len(keep) > self.capacity:
            raise ConfigError(
                f"the batch and the active adapter are {len(keep)} different adapters, but the pool"
                " has "
                f"{self.capacity} slots; use a smaller batch or a larger capacity, or call"
                f' activate("{BASE}") first'
            )
        rows = {
            name: _Row(self._slot_with(name, keep)) for name in dict.fromkeys(names) if name != BASE
        }
        for name, row in rows.items():
            row.adapter, row.stamp = name, self._held[name][1]
        return [rows.get(name, BASE) for name in names]

    def _refuse_merged(self) -> None:
        if any(getattr(module, "merged", False) for module in self._modules):
            raise ConfigError(
                "an adapter is merged into the base model; call model.unmerge_adapter() first"
            )

    @contextmanager
    def _selecting(self, select: Callable[..., Any], *args: Any, **options: Any) -> Iterator[None]:
        """PEFT's selection by `adapter_names`, which PEFT does not end if the forward pass raises."""
        rows = [row for row in options.get("adapter_names") or () if row != BASE]
        for row in rows:
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
        used, before = (
            self._used,
            {key for module in self._modules for key in module._forward_pre_hooks},
        )
        self._used = used | {row.adapter for row in rows}
        try:
            with select(*args, **options):
                yield
        finally:
            self._used = used
            for module in self._modules:
                for key, hook in list(module._forward_pre_hooks.items()):
                    if (
                        key not in before
                        and getattr(hook, "func", None) is _adapter_names_pre_forward_hook
                    ):
                        del (
                            module._forward_pre_hooks[key],
                            module._forward_pre_hooks_with_kwargs[key],
                        )

    def _switch(self, slot: str) -> None:
        names = [] if slot == BASE else [slot]
        if names != self.model.active_adapters:
            _activate(self._modules, names)
            self.model.base_model.active_adapter = names

    @torch.no_grad()
    def _slot_with(self, name: str, keep: set[str]) -> str:
        """The slot with the adapter in its current version; those of `keep` remain in theirs."""
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
            if name in self._used or not (
                self._free or slot or self._held.keys() - keep - self._used
            ):
                raise ConfigError(
                    "a call of the model that is running uses the slots; place or activate after it"
                )
            try:
                tensors = self._read(folder)
                check_tensors(tensors, self._tensors["slot0"])
            except QpeftError as error:
                raise type(error)(f"adapter '{name}' cannot be served: {error}") from error
            if slot is None and not self._free:
                oldest = next(other for other in self._held if other not in keep | self._used)
                self._free.append(self._held.pop(oldest)[0])
            slot = slot or self._free.pop()
            for key, tensor in self._tensors[slot].items():
                tensor.copy_(tensors[key])
        self._held.pop(name, None)
        self._held[name] = slot, stamp  # at the end: used last
        return slot

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
