"""What PEFT saves and loads of a generated adapter: the generator's tensors instead of those that
it fills.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import (
    BaseTuner,
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
)
from peft.utils.save_and_load import _filter_state_dict_for_adapter_name

from qpeft.core.checkpoint import check_loaded, check_tensors
from qpeft.core.embeddings import resized_embeddings
from qpeft.core.generator import FullPrecision, State
from qpeft.core.generator_holder import CONTAINER, holder_of
from qpeft.errors import CheckpointError


def other_tensors(model: Any, adapter_name: str, stock: Any, state: State) -> State:
    """What is saved next to the generator: trained biases, and tensors of a host that are not
    generated, each once.
    """
    state = {key: value for key, value in state.items() if f"{CONTAINER}." not in key}
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name)
    others = _filter_state_dict_by_key_prefixes(state, prefixes)
    # a state of the adapter alone has no trained biases of the base
    with_biases = {name: p.detach() for name, p in model.named_parameters()} | state
    others |= BaseTuner._get_learnable_bias_state_dict(model, with_biases, stock)
    # VeRA's layers share their projections: the first key of each place in memory
    first_keys = {
        (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape): key
        for key, tensor in reversed(others.items())
    }
    return {key: others[key] for key in reversed(first_keys.values())}


class CompactState(BaseTuner if TYPE_CHECKING else object):
    """Mixed in before a tuner class: PEFT saves and loads the generator instead of the tensors that
    it fills.
    """

    container = CONTAINER  # read when the class is registered with PEFT

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: State,
        unwanted_adapter_names: Any,
    ) -> State:
        holder: Any = holder_of(model)
        prefix = f"{holder.prefix}{adapter_name}."
        complete = complete_state(model, adapter_name, state_dict, is_given=True)
        packed = holder[adapter_name].pack(_without_prefix(complete, prefix))
        own = {holder.saved_prefix + key: tensor for key, tensor in packed.items()}
        state = _CompactTensors(own)
        dict.update(state, other_tensors(model, adapter_name, config.to_stock(), complete))
        rows = resized_embeddings(model, complete)
        config.embeddings = [cls._remove_adapter_name_from_key(key, adapter_name) for key in rows]
        dict.update(state, rows)
        return state

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        if f"{CONTAINER}." in key:
            # in a model the container has the prefix of its tuner, or is in a prompt's model. A key
            # of a file may have the adapter's name as well: that of a part of the generator
            live = rf"(\w+{CONTAINER}|^{CONTAINER})\.{re.escape(adapter_name)}\."
            return re.sub(live, f"{CONTAINER}.", key, count=1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: State
    ) -> State:
        holder: Any = holder_of(model)
        generator = holder[adapter_name]
        # the keys of a file have no name of an adapter
        unpacked = generator.unpack(_without_prefix(state_dict, holder.saved_prefix))
        check_tensors(unpacked, generator.state_dict())

        others = {k: v for k, v in state_dict.items() if not k.startswith(holder.saved_prefix)}
        others = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, others)
        present = model.state_dict()
        expected = other_tensors(model, adapter_name, config.to_stock(), present)
        others = check_loaded(others, expected, model, adapter_name, present)

        # PEFT's load_state_dict copies what is returned into the generator, by these keys
        prefix = f"{holder.prefix}{adapter_name}."
        return others | {prefix + key: tensor for key, tensor in unpacked.items()}


def _unwrapped(name: str) -> str:
    """The name without what torch.compile and wrappers of PyTorch put into it, on one side alone."""
    return re.sub(r"_(orig_mod|checkpoint_wrapped_module|fsdp_wrapped_module)\.", "", name)


def _check_complete(model: Any, adapter_name: str, own: State, state: State) -> None:
    others = [name for name in model.peft_config if name != adapter_name]
    expected = _filter_state_dict_for_adapter_name(own, others)
    missing = expected.keys() - state.keys()
    trained = [name for name in missing if own[name].requires_grad]
    if trained or (missing and missing == expected.keys()):
        present = next(iter(state), None)
        raise CheckpointError(
            f"the state dict lacks {len(missing)} of {len(expected)} parameters of adapter"
            f" {adapter_name!r}, such as {min(missing)}; give one of the PeftModel itself, without"
            f" names of a wrapper (its first key is {present})"
        )


def _without_prefix(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class _CompactTensors(State):
    """Excludes base weights: PEFT adds the whole output head to the file if lm_head is a target."""

    def update(self, other: State, /) -> None:  # type: ignore[override]
        super().update({k: v for k, v in other.items() if ".base_layer." not in k})


def is_compact(model: Any) -> bool:
    """Whether the saved adapters of this PeftModel are not those of its export: generated, or of a
    `LinearTuner`.
    """
    return holder_of(model) is not None or hasattr(model.base_model, "stock_problem")


def complete_state(model: Any, adapter_name: str, state: State, *, is_given: bool = False) -> State:
    """`state` with all tensors of the adapter, by their names in `model`.

    PEFT leaves out those with a part of their names that is the name of another adapter, such as
    "mlp" or "c". Other trainers give the parameters alone, or all buffers as well.

    Raises CheckpointError if `is_given`, by a user, and others are missing, such as those of a wrapper
    with other names: the values of `model` are none of that state dict.
    """
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name)
    if (holder := holder_of(model)) is not None:  # in a prompt encoder PEFT looks for none
        prefixes.add(f"{holder.prefix}{adapter_name}")
    own = _filter_state_dict_by_key_prefixes(dict(model.named_parameters()), prefixes)
    names = {_unwrapped(name): name for name, _ in (*own.items(), *model.named_buffers())}
    state = {names.get(_unwrapped(key), key): tensor for key, tensor in state.items()}
    if is_given:
        _check_complete(model, adapter_name, own, state)
    if not own.keys() <= state.keys():
        return _filter_state_dict_by_key_prefixes(model.state_dict(), prefixes) | state
    # `model.state_dict()` would need all processes of a sharded model
    saved, others = {}, set()
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(path, recurse=False):
            if name.rpartition(".")[2] in module._non_persistent_buffers_set:
                others.add(name)
            elif isinstance(module, FullPrecision) and name.endswith("fingerprint"):
                saved[name] = module._identity.clone()
                # averages of models change the buffer; `plan` saves on the meta device
                if not buffer.is_meta and name in state and buffer.equal(state[name].to(buffer)):
                    others.add(name)
            else:
                saved[name] = buffer
    saved = _filter_state_dict_by_key_prefixes(saved, prefixes)
    return saved | {name: tensor for name, tensor in state.items() if name not in others}
