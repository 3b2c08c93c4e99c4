"""Save and load adapter folders; damaged or foreign folders are refused with the reason and the remedy."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError, safe_open
from torch import nn

from qpeft.core.adapter_form import check_adapted, check_model
from qpeft.core.config_limits import check_patterns, check_sizes
from qpeft.core.exported_folder import RECORD, refuse_others
from qpeft.core.frame_file import check_given, complete
from qpeft.core.load_checks import check_acts, check_generator, check_whole, find_not_finite
from qpeft.core.model_card import is_users_own
from qpeft.core.replication import refuse_sharded_adapter
from qpeft.core.targets import is_linear, sizes
from qpeft.core.weights_hash import check_seal, sets_in_order
from qpeft.errors import BaseModelWarning, CheckpointError, ConfigError, InputError
from qpeft.files import read_json, replace_folder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_CARD = "README.md"
_INITIAL = "qpeft_initial_adapter"  # attribute of a model


def keep_initial(model: PeftModel, folder: str) -> None:
    """Keep in `folder` the initial adapter of a model whose base weights PEFT changed by it (LoRA-GA).

    `save` subtracts it, so that the saved adapter is for the original base.
    """
    model.save_pretrained(folder, save_embedding_layers=False)
    vars(model)[_INITIAL] = folder


def changes_base(model: Any) -> bool:
    """Whether `keep_initial` was called: the saved LoRA then has twice the trained parameters."""
    return _INITIAL in vars(model)


def save(model: PeftModel, directory: str | Path) -> None:
    """Atomic `model.save_pretrained(directory)`.

    An earlier adapter there is replaced; a model card written by the user is kept.

    Raises:
        ConfigError: the model has no adapter; the folder contains other files, which would be lost, or is none; or a
            parameter of the adapter is NaN or Inf.
    """
    check_adapted(model)
    target = refuse_others(Path(directory), [CONFIG, WEIGHTS, _CARD, *model.peft_config])
    refuse_sharded_adapter(model)
    for name in model.peft_config:
        if broken := find_not_finite(model, name):
            raise ConfigError(f"non-finite adapter parameter in {broken}; save an earlier checkpoint")
    with replace_folder(target) as folder:
        if is_users_own(target / _CARD):
            shutil.copyfile(target / _CARD, folder / _CARD)
        with sets_in_order(*model.peft_config.values()):
            model.save_pretrained(str(folder), save_embedding_layers=False, **_conversion(model))


def _conversion(model: PeftModel) -> dict[str, Any]:
    return {"path_initial_model_for_weight_conversion": vars(model)[_INITIAL]} if changes_base(model) else {}


def load(
    base: nn.Module,
    directory: str | Path,
    *,
    is_trainable: bool = False,
    frames: str | Path | None = None,
    allow_other_base: bool = False,
    **options: Any,
) -> PeftModel:
    """Check an adapter folder, compact or stock, and load it on its base model.

    Args:
        base: The model the adapter was trained on; changed in place, as by PEFT.
        directory: A local folder with adapter_config.json and adapter_model.safetensors.
        is_trainable: Whether training continues.
        frames: The frame file of an adapter that refers to one. Default: it is in the adapter's folder, or in one of
            two folders above, under the name that the adapter has recorded.
        allow_other_base: Do not warn if `base` has other weights than the base model of the adapter.
        options: Passed to `PeftModel.from_pretrained` (`adapter_name`, `low_cpu_mem_usage`, ...).

    Warns with BaseModelWarning if `base` has the right shapes but other weights.

    Raises:
        CheckpointError: a file is missing, damaged, foreign, or made for another model; or `base` has other weights
            and the adapter acts in frames of its base model.
        ConfigError: `base` is no model, there is no file `frames`, or the adapter refers to none.
    """
    check_model(base)
    with unchanged(Path(directory)):
        return _load(base, Path(directory), is_trainable, frames, allow_other_base, options)


def _load(
    base: nn.Module,
    folder: Path,
    is_trainable: bool,
    frames: str | Path | None,
    allow_other_base: bool,
    options: dict[str, Any],
) -> PeftModel:
    name = options.get("adapter_name", "default")
    try:
        content = check_folder(folder)
        if frames is not None:
            check_given(frames, content, folder)  # it is found by its hash from now on
        config = complete(content, folder)
        try:
            check_sizes(config, folder / WEIGHTS, [sizes(module) for module in base.modules() if is_linear(module)])
            check_generator(config, folder)
            check_patterns(config, (name for name, _ in base.named_modules()))
        except ConfigError as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}; if it was edited, restore the original") from error
        tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(config["peft_type"])
        # only `load_folder` builds those that PEFT alone cannot build
        build = getattr(tuner, "load_folder", PeftModel.from_pretrained)
        ignored = warnings.catch_warnings(action="ignore", category=BaseModelWarning)
        with ignored if allow_other_base else nullcontext():
            model = build(base, folder, is_trainable=is_trainable, **options)
        if not hasattr(tuner, "load_folder") and not options.get("key_mapping"):
            check_whole(model, folder, name)
    except (InputError, MemoryError, BaseModelWarning):
        raise
    except Exception as error:  # from torch for tensors of other shapes, from PEFT for fields of other types
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise CheckpointError(
            f"{folder} does not fit this base model: {reason}; load it on the base model it was trained on, and "
            f"restore its {CONFIG} if it was edited"
        ) from error
    check_acts(model, folder, name)
    return model


def stamp(folder: Path) -> tuple[int, ...]:
    """Numbers that change when a file of the adapter is replaced. Raises OSError if one is missing."""
    found = [(folder / name).stat() for name in (CONFIG, WEIGHTS)]
    return tuple(n for one in found for n in (one.st_ctime_ns, one.st_mtime_ns, one.st_size, one.st_ino))


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Within: an adapter is read, whose config and weights belong together.

    Raises CheckpointError, instead of any other error, if a file was replaced meanwhile.
    """
    before = _stamp_or_none(folder)
    try:
        yield
    finally:
        if _stamp_or_none(folder) != before:
            raise CheckpointError(f"{folder} was replaced while it was read; load it again, on a new base model")


def _stamp_or_none(folder: Path) -> tuple[int, ...] | None:
    try:
        return stamp(folder)
    except (OSError, ValueError):  # ValueError: an invalid file name
        return None


def check_folder(folder: Path) -> dict[str, Any]:
    """Check that both files are readable; return the content of adapter_config.json.

    Raises:
        CheckpointError: naming the file and what to do.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no adapter folder at {folder}; give the folder that contains {CONFIG}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; it is not an adapter folder, or its saving was interrupted")
    try:
        config = read_json(folder / CONFIG)
        kind = str(config["peft_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not the JSON of a PEFT config ({error}); restore it") from error
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(
            f"{folder / CONFIG} has the unknown peft_type '{kind}'; it is foreign, a newer qpeft or peft wrote it, "
            "or it is of a method of your own: import the module that registers it first, or give its file on the "
            "command line with --method FILE.py:NAME"
        )
    tokens = config.get("alora_invocation_tokens")  # PEFT fails only in the first forward pass
    if tokens is not None and not (isinstance(tokens, list) and tokens and all(type(t) is int for t in tokens)):
        raise CheckpointError(
            f"{folder / CONFIG}: alora_invocation_tokens is {tokens!r}; restore the list of token ids"
        )
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            if not list(file.keys()):
                raise CheckpointError(f"{folder / WEIGHTS} contains no tensors; restore it")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS} is damaged or cut off ({error}); copy it again or use an earlier checkpoint"
        ) from error
    check_seal(folder, _seal(folder, config))
    return config


def _seal(folder: Path, config: dict[str, Any]) -> Any:
    """The recorded SHA-256 of the weights; None for a stock adapter."""
    if not (folder / RECORD).exists():
        return config.get("weights_sha256")
    try:
        return read_json(folder / RECORD).get("weights_sha256")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / RECORD} is damaged ({error}); restore it, or delete it") from error
