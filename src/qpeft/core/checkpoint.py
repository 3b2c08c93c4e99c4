"""Save and load adapter folders; damaged or foreign folders are refused with the reason and the
remedy.

A *compact adapter* has adapter_config.json, the settings of a method with a seed, and
adapter_model.safetensors, the parameters of the generator. PEFT saves and loads it; `load` and
`save` check what PEFT does not, before and after. Loading one, in order:

    read_config        the files are complete, and the weights have the recorded SHA-256; the JSON
                       becomes the config of a registered method, which is passed on
    check_patterns     no regular expression in the config takes too long
    PEFT               builds the adapter (call 1 below) and reads the weights (call 2)
    find_not_finite    the generator is evaluated: every tensor that it generates is finite

Saving has find_not_finite first, and then PEFT (call 4), into a new folder that replaces the old
one. PEFT makes four calls into a generated adapter:

    call of PEFT                 function of ours, and its module
    1  building the tuner        GeneratedMixin.inject_adapter, core/generated_tuner.py: PEFT injects
       (get_peft_model,          a LoRA; the config makes the generator of the seed; the digest of
       from_pretrained)          the base is recorded or compared; a Binding joins both
    2  reading the weights       CompactState._remap_adapter_state_dict_for_load,
       (load_adapter)            core/compact_state.py: checks names, shapes and fingerprint of the
                                 file's tensors, which PEFT then loads into the generator
    3  a forward pass            GeneratorHolder._before_forward, core/generator_holder.py: places
                                 the generated tensors
    4  saving                    CompactState._get_adapter_state_dict, core/compact_state.py: the
       (save_pretrained)         generator's tensors instead of LoRA's

A stock adapter is loaded in the same way, without our functions in the four calls. A method of
`OwnTuner` has calls 1, 2 and 4, in core/own_tuner.py. An adapter under `qpeft.attach` has calls 2
to 4; `load_attached` of methods/attach.py builds it, because PEFT alone cannot.
"""

from __future__ import annotations

import inspect
import reprlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qpeft.checks import check_finite, unknown
from qpeft.core.config import GeneratedConfig, check_weights, config_of, reading
from qpeft.core.embeddings import of_embeddings, resized, resized_embeddings
from qpeft.core.frame_file import with_frame_settings
from qpeft.core.generator import State, exact_circuits, is_fingerprint
from qpeft.core.generator_holder import holder_of
from qpeft.core.meta_model import check_model, peft_model_of
from qpeft.core.model_card import keep_card
from qpeft.core.patterns import check_patterns
from qpeft.core.replication import refuse_sharded_adapter
from qpeft.errors import BaseModelWarning, CheckpointError, ConfigError, InputError
from qpeft.files import read_json
from qpeft.folders import folder_to_replace, repair_folder, replace_folder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
RECORD = "qpeft.json"  # how an exported adapter was made
_PARTS = {"config", "embeddings", "weights_sha256"}  # of the record, for what it is checked
# fields of a config on which the adapter's values do not depend: its base, and what training uses
_FREE = (
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "lora_dropout",
)
# parameters of PeftModel.from_pretrained that `load` sets, or that are for the hub
_NOT_OF_LOAD = {"model", "model_id", "config", "kwargs"}
# what it passes on to `load_adapter`, and that to accelerate
_OF_DISPATCH = {"torch_device", "device_map", "max_memory", "offload_folder", "offload_index"}
_OTHER = (
    "its adapter_config.json was edited, or it was written for another base model, or with another"
    " circuit under this name: restore the file, load it on its base model with qpeft.load, and"
    " import the module that registers its ansatz, or give its file on the command line with"
    " --ansatz FILE.py:NAME"
)


def save(model: PeftModel, directory: str | Path, **options: Any) -> None:
    """Atomic `model.save_pretrained(directory, **options)`.

    An earlier adapter there is replaced, but for those of the model that `selected_adapters` leaves
    out; a model card that the user wrote or changed is kept. With `is_main_process=False` nothing is
    written.

    Raises:
        ConfigError: the model has no adapter; the folder contains other files, which would be lost,
            or is none; a parameter of the adapter is NaN or Inf; or `save_pretrained` has no such
            option, which it would ignore.
    """
    model = peft_model_of(model)
    known = list(inspect.signature(PeftModel.save_pretrained).parameters)
    for option in options.keys() - known:
        raise ConfigError(unknown("option of save_pretrained", option, known[2:-1]))
    if not options.get("safe_serialization", True):
        raise ConfigError("qpeft.load reads safetensors alone; leave safe_serialization out")
    if options.get("selected_adapters") == []:
        raise ConfigError("selected_adapters is empty, so nothing would be saved; leave it out")
    own = [CONFIG, WEIGHTS, "README.md"]
    target = folder_to_replace(Path(directory), [*own, *model.peft_config])
    for name in model.peft_config:
        folder_to_replace(target / name, own)
    refuse_sharded_adapter(model)
    for name in model.peft_config:
        broken = find_not_finite(model, name)
        if broken is not None:
            raise ConfigError(
                f"non-finite adapter parameter in {broken}; save an earlier checkpoint"
            )
    # a generated adapter keeps embeddings itself, tied ones once
    keeps = holder_of(model) is None and bool(resized(model.get_base_model()).parameters)
    options.setdefault("save_embedding_layers", keeps)
    if not options.get("is_main_process", True):  # only then PEFT writes something
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, **options)  # in which all processes may take part
        return
    selected = options.get("selected_adapters") or list(model.peft_config)
    with replace_folder(target) as folder:
        model.save_pretrained(str(folder), **options)
        for name in model.peft_config.keys() - selected:
            _keep_adapter(target, folder, name)
        keep_card(target, folder)


def _keep_adapter(source: Path, folder: Path, name: str) -> None:
    """Copy the adapter called `name` that an earlier `save` wrote into `source`, if it did."""
    # as PEFT's save_pretrained: "default" has no folder of its own
    place = "" if name == "default" else name
    for file in (CONFIG, WEIGHTS, "README.md"):
        if (source / place / file).is_file() and not (folder / place / file).exists():
            (folder / place).mkdir(exist_ok=True)
            shutil.copy2(source / place / file, folder / place / file)


def load(
    base: nn.Module,
    directory: str | Path,
    *,
    is_trainable: bool = False,
    frames: str | Path | None = None,
    **options: Any,
) -> PeftModel:
    """Check an adapter folder, compact or stock, and load it on its base model.

    Args:
        base: The model the adapter was trained on; changed in place, as by PEFT. After an error it
            is as before.
        directory: A local folder with adapter_config.json and adapter_model.safetensors.
        is_trainable: Whether training continues.
        frames: The frame file of an adapter that refers to one. Default: it is in the adapter's
            folder, or in one of two folders above, under the name that the adapter has recorded.
        options: Passed to `PeftModel.from_pretrained` (`adapter_name`, `low_cpu_mem_usage`, ...);
            those that it would ignore are refused.

    Warns with BaseModelWarning if `base` has the right shapes but other weights.

    Raises:
        CheckpointError: a file is missing, damaged, foreign, or made for another model; or `base`
            has other weights and the adapter acts in frames of its base model.
        ConfigError: `base` is no model, there is no file `frames` or the adapter refers to none, or
            `from_pretrained` has no such option.
    """
    check_model(base)
    own = inspect.signature(PeftModel.from_pretrained).parameters.keys() - _NOT_OF_LOAD
    known = sorted(own | _OF_DISPATCH)
    for option in options.keys() - known:
        raise ConfigError(unknown("option of qpeft.load", option, ["frames", *known]))
    folder = Path(directory)
    adapter_name = options.get("adapter_name", "default")
    with _unchanged_after_error(base, folder), _refusing_what_does_not_fit(folder):
        repair_folder(folder)
        stamp = stamp_of(folder)
        config = read_config(folder, frames)
        if options.get("key_mapping") and isinstance(config, GeneratedConfig):
            raise ConfigError(
                "key_mapping renames tensors of stock adapters; this one is generated:"
                " load it on a base whose modules have the names that it was saved with"
            )
        host = getattr(config, "host", None) or {}  # of an attached adapter
        check_patterns(base, vars(config) | host)
        tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)  # type: ignore[arg-type]
        if hasattr(tuner, "load_folder"):
            for option in options.keys() - {"adapter_name"}:
                raise ConfigError(
                    f"{option} has no meaning for an adapter of `qpeft.attach`; leave it out"
                )
        options = {"config": config, "is_trainable": is_trainable, **options}
        if hasattr(tuner, "load_folder"):  # PEFT alone cannot build an attached adapter
            model = tuner.load_folder(base, folder, **options)
        else:
            model = PeftModel.from_pretrained(base, folder, **options)  # type: ignore[arg-type]
            # those of a generated adapter were checked when they were loaded
            if holder_of(model) is None and not options.get("key_mapping"):
                check_whole(model, folder, adapter_name)
        if stamp_of(folder) != stamp:  # PEFT has read other weights than those that were checked
            raise CheckpointError(f"{folder / WEIGHTS} changed while it was loaded; load it again")
        # of a generated adapter also the tensors that its generator computes
        broken = find_not_finite(model, adapter_name)
        if broken is not None:
            raise CheckpointError(
                f"{folder / WEIGHTS} contains NaN or Inf, in {broken}; use an earlier checkpoint"
            )
    return model


def stamp_of(folder: Path) -> tuple[int, ...]:
    """Differs once a file of the adapter was replaced, or written into."""
    files = [path.stat() for path in (folder / CONFIG, folder / WEIGHTS) if path.is_file()]
    return tuple(n for file in files for n in (file.st_ctime_ns, file.st_size, file.st_ino))


def read_config(folder: Path, frames: str | Path | None = None) -> PeftConfig:
    """The config of an adapter folder, after a check of its files. `frames` is as for `load`.

    Raises:
        CheckpointError: a file is damaged, missing or foreign, or a field of the config is invalid.
        ConfigError: there is no file `frames`, or the adapter refers to none.
    """
    content, file = with_frame_settings(check_folder(folder), folder, frames)
    config: Any = config_of(content, folder / CONFIG)
    if file is not None:
        config.held_frame_file = file  # so that building the adapter does not read it again
    return config


@contextmanager
def _unchanged_after_error(base: nn.Module, folder: Path) -> Iterator[None]:
    """After an error every module of `base` has the attributes, children, parameters and hooks that
    it has now, and the parameters that are also in the adapter's file have their values.
    """
    values = values_in_file(base, folder)
    before = [
        # dicts keep their identity: a handle that removes a hook refers to the dict of hooks
        [(name, value, dict(value) if isinstance(value, dict) else None) for name, value in items]
        for items in (vars(module).items() for module in base.modules())
    ]
    modules = list(base.modules())
    trained = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    try:
        yield
    except BaseException:
        for module, attributes in zip(modules, before, strict=True):
            vars(module).clear()
            for name, value, content in attributes:
                if content is not None:
                    value.clear()
                    value.update(content)
                vars(module)[name] = value
        for parameter, was_trained in trained:
            parameter.requires_grad_(was_trained)
        restore(values)
        raise


def values_in_file(base: nn.Module, folder: Path) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters of `base` that loading the adapter in `folder` may write, such as trained biases,
    with copies of their values.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError):  # which the checks of `load` name
        return []
    names = {key.removeprefix("base_model.model.").replace(".base_layer.", ".") for key in keys}
    return [
        (parameter, parameter.detach().clone())
        for name, parameter in base.named_parameters(remove_duplicate=False)
        if name in names
    ]


def restore(values: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    """Give parameters the values that `values_in_file` copied."""
    with torch.no_grad():
        for parameter, value in values:
            parameter.copy_(value)


@contextmanager
def _refusing_what_does_not_fit(folder: Path) -> Iterator[None]:
    """Within: an error of torch, for tensors of other shapes, or of PEFT is a CheckpointError.

    Every error has the path of the file that it is about.
    """
    try:
        yield
    except InputError as error:
        text = str(error)
        if any(str(folder / name) in text for name in (CONFIG, WEIGHTS, RECORD)):
            raise
        file = folder / (WEIGHTS if WEIGHTS in text else CONFIG)
        raise type(error)(f"{file}: {text}") from error
    except (MemoryError, BaseModelWarning):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        # JSON may have characters that nothing prints
        printable = reason.encode("utf-8", "backslashreplace").decode()
        raise CheckpointError(
            f"{folder / CONFIG} or {WEIGHTS} does not fit this base model: {printable}; load the"
            " adapter on the base model it was trained on, and restore its adapter_config.json if it"
            " was edited"
        ) from error


def check_folder(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json, after an interrupted replacement of the folder is
    finished. Raises CheckpointError, with what to do, if one of both files is damaged.
    """
    repair_folder(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"no adapter folder at {folder}; give the folder that contains {CONFIG}"
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"there is no {folder / name}; the folder is not an adapter folder, or its saving"
                " was interrupted"
            )
    try:
        config = read_json(folder / CONFIG)
        kind = str(config["peft_type"])
        for name, value in config.items():
            check_finite(name, value)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} is not the JSON of a PEFT config ({error}); restore it"
        ) from error
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(
            f"{folder / CONFIG} has the unknown peft_type {kind!r}; it is foreign, a newer qpeft or"
            " peft wrote it, or it is of a method of your own: import the module that registers it"
            " first, or give its file on the command line with --method FILE.py:NAME"
        )
    if config.get("init_lora_weights") == "lora_ga":
        raise CheckpointError(
            f"{folder} is a LoRA-GA in training, whose base has changed with it; take the adapter"
            " that its finished run wrote (PEFT: path_initial_model_for_weight_conversion)"
        )
    with reading(folder / WEIGHTS), safe_open(folder / WEIGHTS, framework="pt") as file:
        if not list(file.keys()):
            raise CheckpointError(f"{folder / WEIGHTS} contains no tensors; restore it")
    check_weights(folder, config)
    if (folder / RECORD).is_file():
        check_weights(folder, _check_exported(folder, config))
    return config


def _check_exported(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Compare the config with the one that was exported; the record of the export."""
    path = folder / RECORD
    fixed = fixed_fields(config, "task_type")
    try:
        record = read_json(path)
        lost = _PARTS - record.keys()
        exported = record.get("config", fixed)
        names = sorted(fixed.keys() | exported.keys())
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or delete it") from error
    if lost and "lost_by_merging" in record:  # qpeft 0.2 wrote neither
        raise CheckpointError(f"{path} lacks {', '.join(sorted(lost))}; restore it, or delete it")
    for name in names:
        present = fixed.get(name)
        value = exported.get(name)
        if present != value:
            raise CheckpointError(
                f"{folder / CONFIG} has {name}={reprlib.repr(present)}, and the adapter was"
                f" exported with {reprlib.repr(value)}; restore it (if the change is intended,"
                f" delete {RECORD})"
            )
    return record


def fixed_fields(config: dict[str, Any], *more: str) -> dict[str, Any]:
    """The fields of an adapter_config.json on which its values depend, without those named in
    `more`.
    """
    return {name: value for name, value in config.items() if name not in (*_FREE, *more)}


def check_whole(model: Any, folder: Path, name: str) -> None:
    """Raise CheckpointError if the file lacks a tensor of this adapter or has an unknown one; PEFT
    at most warns.
    """
    expected = get_peft_model_state_dict(
        model, adapter_name=name, save_embedding_layers=False
    ).keys()
    # rows of a resized base, which an adapter of the base before does not have
    state = model.state_dict()
    rows = resized_embeddings(model, state).keys()
    expected = expected - rows
    # PEFT may add a tied head, and some tensors a second time; not other weights of the base
    saved = _saved_keys(model, name, state) - expected
    added = rows | (saved - state.keys()) | of_embeddings(model, saved & state.keys())
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        present = set(file.keys())
    _check_names(str(folder / WEIGHTS), present - added, expected)


def _saved_keys(model: Any, name: str, present: State) -> set[str]:
    """Every key that PEFT may use in a file of this adapter: of the adapter and of the base."""
    tuner: Any = PEFT_TYPE_TO_TUNER_MAPPING[model.peft_config[name].peft_type]
    return {tuner._remove_adapter_name_from_key(key, name) for key in present}


def _check_names(what: str, present: Set[str], expected: Set[str]) -> None:
    missing = sorted(expected - present)
    foreign = sorted(present - expected)
    if missing or foreign:
        raise CheckpointError(
            f"{what} does not contain this adapter: missing {missing[:3] or 'nothing'}, unknown"
            f" {foreign[:3] or 'nothing'}; it is damaged, or was written for another base model or"
            " with other settings"
        )


def check_loaded(state: State, expected: State, model: Any, name: str, present: State) -> State:
    """The tensors of a file that are loaded: the `expected` ones of an adapter, and weights of the
    base that PEFT adds, such as a tied head or resized embeddings.

    Args:
        state: The file's tensors, by their keys in the model.
        expected: Those of the adapter.
        model: The PeftModel.
        name: The adapter's.
        present: The state dict of the model.

    Raises CheckpointError as `check_tensors`, or if the base has another vocabulary.
    """
    # PEFT saves some a second time, without the adapter's name: with resized embeddings those in a
    # wrapper of the head, with bias="all" the biases in modules_to_save
    second = _saved_keys(model, name, present) - present.keys()
    loaded = {key: tensor for key, tensor in state.items() if key not in second}
    others = loaded.keys() & present.keys() - expected.keys()
    copied = {key for key in others if f".{name}." in f"{key}."}  # modules_to_save of this adapter
    of_base = copied | (resized_embeddings(model, present).keys() & others)
    of_base |= of_embeddings(model, others)
    check_tensors({k: tensor for k, tensor in loaded.items() if k not in of_base}, expected)
    for key in of_base:
        saved_shape = list(loaded[key].shape)
        shape = list(present[key].shape)
        if saved_shape != shape:
            raise CheckpointError(
                f"{key} of {WEIGHTS} has shape {saved_shape}, and the base model's {shape}; its"
                " vocabulary was resized: load it after"
                f" base.resize_token_embeddings({saved_shape[0]})"
            )
    return loaded


def find_not_finite(model: Any, name: str) -> str | None:
    """The name of a saved or generated tensor with NaN or Inf; None if there is none."""
    holder = holder_of(model)
    if holder is not None and name in holder:
        # as in an export, without a job on a device; nothing is placed in the layers, because another
        # thread may train
        with exact_circuits():
            state = holder.stock_state(model, name)
    else:
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    for key, value in state.items():
        if not value.is_meta and not torch.isfinite(value).all():
            return key
    return None


def check_tensors(saved: State, expected: State) -> None:
    """Raise CheckpointError unless `saved` has the names, shapes and fingerprint of `expected`, and
    is finite.
    """
    _check_names(WEIGHTS, saved.keys(), expected.keys())
    for name, wanted in expected.items():
        tensor = saved[name]
        if tensor.shape != wanted.shape:
            raise CheckpointError(
                f"{name} of {WEIGHTS} has shape {list(tensor.shape)}, expected"
                f" {list(wanted.shape)}; {_OTHER}"
            )
        is_averaged = name.endswith("fingerprint")
        if tensor.is_floating_point() != wanted.is_floating_point() and not is_averaged:
            raise CheckpointError(
                f"{name} of {WEIGHTS} has type {tensor.dtype}, expected {wanted.dtype}"
            )
    for name, wanted in expected.items():
        tensor = saved[name]
        if name.endswith("fingerprint") and not is_fingerprint(tensor, wanted):
            raise CheckpointError(f"{WEIGHTS} has other initial values or settings; {_OTHER}")
        # a float64 value may be infinite in float32
        if not torch.isfinite(tensor.to(wanted.dtype)).all():
            raise CheckpointError(
                f"{name} of {WEIGHTS} contains NaN or Inf; use an earlier checkpoint"
            )
