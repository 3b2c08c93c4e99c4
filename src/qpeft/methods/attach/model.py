"""A PeftModel whose stock adapters are generated.

PEFT builds, runs and exports such an adapter as usual. Only the origin of its tensors differs, and therefore saving and
loading: PEFT's own `save_pretrained`, which the Trainer calls for each checkpoint, would find no tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils.hooks import RemovableHandle

from qpeft.core.base_digest import check_base, name_of
from qpeft.core.binding import Binding
from qpeft.core.generator_holder import GeneratorHolder
from qpeft.core.load_checks import check_tensors
from qpeft.core.tied_weights import check_not_tied
from qpeft.errors import CheckpointError, ConfigError
from qpeft.methods.attach import folder as attached_folder
from qpeft.methods.attach.bind import bind, check_keeps_base
from qpeft.methods.attach.config import AttachedConfig

if TYPE_CHECKING:
    _PeftModel = PeftModel
else:
    _PeftModel = object


class AttachedModel(GeneratorHolder, _PeftModel):
    """Mixed in before a PeftModel class by `attach`; adapters without a generator behave as before."""

    _configs: dict[str, AttachedConfig]
    _handles: dict[str, RemovableHandle]
    _others: dict[str, dict[str, str]]  # of each adapter, see `other_keys`

    def hold(self, adapter_name: str, config: AttachedConfig, binding: Binding, others: dict[str, str]) -> None:
        """Generate the adapter from now on."""
        if self.container not in self._modules:
            self._begin_holding()
            self._configs, self._handles, self._others = {}, {}, {}
        self._hold(adapter_name, binding)
        self._configs[adapter_name], self._others[adapter_name] = config, others
        # a prompt is read before the base model's forward, anything else during it
        read_by: Any = self.prompt_encoder[adapter_name] if self._is_prompt_learning else self.get_base_model()
        self._handles[adapter_name] = read_by.register_forward_pre_hook(self._before_forward)
        self._train_active_only()

    def release(self, adapter_name: str) -> None:
        """Stop generating the adapter; its own parameters get the current values."""
        with self.exact():
            self.binding(adapter_name).release()
        self._handles.pop(adapter_name).remove()
        self._let_go(adapter_name)
        del self._configs[adapter_name], self._others[adapter_name]

    def generated_config(self, adapter_name: str) -> AttachedConfig:
        return self._configs[adapter_name]

    def stock_state(self, model: Any, adapter_name: str) -> dict[str, Tensor]:
        binding, state = self.binding(adapter_name), self.state_dict()
        paths: dict[int, list[str]] = {}  # a shared module is saved under each of its names
        for path, module in self.named_modules(remove_duplicate=False):
            paths.setdefault(id(module), []).append(path)
        for slot, value in zip(binding.slots, binding.values(), strict=True):
            state |= {f"{path}.{slot.name}": value for path in paths[id(slot.owner)]}
        return get_peft_model_state_dict(self, state, adapter_name=adapter_name, save_embedding_layers=False)

    # -- which adapter trains

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; raises ConfigError for an initialization that changes the base of the generated adapters."""
        check_keeps_base(peft_config)
        self.refresh_detached()  # PEFT sets requires_grad of the tensors it finds, which views of a graph refuse
        super().add_adapter(adapter_name, peft_config, *args, **kwargs)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        self.refresh_detached()  # PEFT sets requires_grad of the tensors it finds, which views of a graph refuse
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self.invalidate()
        self._train_active_only(inference_mode)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        self.refresh_detached()  # as in `set_adapter`
        try:
            with super().disable_adapter():
                yield
        finally:
            self.invalidate()

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        super().set_requires_grad(adapter_names, requires_grad)
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name in self.generators:
                self.generators[name].requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name in self.generators:
            self.release(adapter_name)
        super().delete_adapter(adapter_name)

    def _train_active_only(self, inference_mode: bool = False) -> None:
        for name, generator in self.generators.items():
            generator.requires_grad_(name in self.active_adapters and not inference_mode)

    # -- the compact folder

    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        *args: Any,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """As PEFT's; for a generated adapter, save the generator in a folder for `qpeft.load`."""
        names = list(self.peft_config) if selected_adapters is None else selected_adapters
        kwargs["is_main_process"] = is_main_process
        if stock := [name for name in names if name not in self.generators]:
            super().save_pretrained(save_directory, safe_serialization, stock, *args, **kwargs)
        for name in (name for name in names if name in self.generators and is_main_process):
            folder = Path(save_directory) / ("" if name == "default" else name)
            generator: Any = self.generators[name]
            state = self.state_dict()
            others = {saved: state[key] for saved, key in self._others[name].items()}
            attached_folder.write(folder, self._configs[name], generator.pack(generator.state_dict()), others)

    def load_adapter(
        self, model_id: Any, adapter_name: str, is_trainable: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """As PEFT's, for stock folders and compact checkpoints of attached adapters."""
        folder = Path(model_id) / (kwargs.get("subfolder") or "")
        if not attached_folder.is_attached(folder):
            if adapter_name in self.generators:
                raise CheckpointError(
                    f"{folder} contains no attached adapter, but '{adapter_name}' is one; load it under another name"
                )
            return super().load_adapter(model_id, adapter_name, is_trainable, *args, **kwargs)
        saved = attached_folder.read_config(folder)
        is_new = adapter_name not in self.peft_config
        try:
            if is_new:
                self.add_adapter(adapter_name, saved.to_stock())
                self.hold(*bind(self, saved.to_generator(), adapter_name))
            self._load_state(folder, saved, adapter_name)
        except BaseException as error:
            if is_new and adapter_name in self.peft_config:
                self.delete_adapter(adapter_name)
            if isinstance(error, AttributeError | TypeError):  # from PEFT, for a field of another type
                raise CheckpointError(f"{folder} has a damaged adapter_config.json ({error}); restore it") from error
            raise
        if not is_trainable:
            self.eval()
        return _IncompatibleKeys([], [])

    def _load_state(self, folder: Path, saved: AttachedConfig, adapter_name: str) -> None:
        if adapter_name not in self.generators:
            raise CheckpointError(f"'{adapter_name}' has no generator attached; load {folder} under another name")
        live = self._configs[adapter_name]
        self._check_same(folder, saved, live)
        check_base(saved, live.base_digest, name_of(self.get_base_model()))
        state, others = attached_folder.read_tensors(folder)
        generator: Any = self.generators[adapter_name]
        state = generator.unpack(state)
        check_tensors(state, generator.state_dict())
        keys, present = self._others[adapter_name], self.state_dict()
        check_tensors(others, {name: present[key] for name, key in keys.items()})
        generator.load_state_dict(state)
        self.load_state_dict({keys[name]: tensor for name, tensor in others.items()}, strict=False)
        self.binding(adapter_name).invalidate()
        self.refresh_detached()

    def _check_same(self, folder: Path, saved: AttachedConfig, live: AttachedConfig) -> None:
        if differing := saved.differences(live):
            raise CheckpointError(
                f"{folder} was saved with other settings than this adapter has: {', '.join(differing)}; "
                "use those in its adapter_config.json, or qpeft.load"
            )
        if saved.generated != live.generated or saved.start_hash != live.start_hash:
            raise CheckpointError(
                f"{folder} generates other tensors than this adapter: it is for another base model, or its "
                "adapter_config.json was edited"
            )

    # -- merging and unloading (adapters with a tuner)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        self._refuse_tied_merge()
        with self.exact():
            self.refresh_detached()
            self._tuner.merge_adapter(*args, **kwargs)

    def unmerge_adapter(self) -> None:
        with self.exact():
            self.refresh_detached()
            self._tuner.unmerge_adapter()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse_tied_merge()
        self._tuner._check_merge_allowed()  # before the generators are gone
        self._release_all()
        return self._tuner.merge_and_unload(*args, **kwargs)

    def unload(self) -> Any:
        tuner = self._tuner
        self._release_all()
        return tuner.unload()

    def add_weighted_adapter(self, adapters: list[str], *args: Any, **kwargs: Any) -> None:
        if any(name in self.generators for name in adapters):
            super().add_weighted_adapter()
        self._tuner.add_weighted_adapter(adapters, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle cannot import a class that was created at run time, so it is created again."""
        _, arguments, *state = super().__reduce_ex__(protocol)
        return (_new, (type(self).__bases__[1], *arguments[1:]), *state)

    def _release_all(self) -> None:
        for name in list(self.generators):
            self.release(name)

    def _refuse_tied_merge(self) -> None:
        check_not_tied(self._tuner.model, self._tuner.targeted_module_names)

    @property
    def _tuner(self) -> Any:
        if not isinstance(self.base_model, BaseTuner):
            raise ConfigError(f"{self.peft_type} is not part of the base weights, so it cannot be merged or unloaded")
        return self.base_model


@cache
def attached_class(plain: type[PeftModel]) -> type[PeftModel]:
    """`plain` with `AttachedModel` mixed in."""
    return type(f"Attached{plain.__name__}", (AttachedModel, plain), {})


def _new(plain: type[PeftModel], *arguments: Any) -> PeftModel:
    made = attached_class(plain)
    return made.__new__(made, *arguments)
