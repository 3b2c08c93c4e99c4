"""Save a trained adapter as a stock PEFT adapter, and verify it with stock PEFT."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from qpeft.core.checkpoint import CONFIG, RECORD, WEIGHTS, fixed_fields
from qpeft.core.embeddings import resized, stock_embeddings
from qpeft.core.equal_oft import behind_values
from qpeft.core.generated_tuner import GeneratedMixin
from qpeft.core.generator_holder import holder_of
from qpeft.core.half_precision import half_layers, inputs_of, lost_by_merging, output_in_float32
from qpeft.core.meta_model import peft_model_of, refuse_merged
from qpeft.core.model_card import keep_card, write_card
from qpeft.core.replication import is_sharded, refuse_sharded_adapter
from qpeft.core.stock_adapter import StockAdapter
from qpeft.errors import ConfigError, InputError, VerificationError
from qpeft.files import file_hash, read_json, write_json
from qpeft.folders import folder_to_replace, replace_folder

_FLOAT32_TOLERANCE = 1e-6
_N_TOKENS = 16  # of the probe
_IMAGE_SIZE = 224  # of a probe for a model that does not declare one
_BESIDE = ("task.json", "chat_template.jinja")  # what qpeft's commands write next to an export
_NOT_RECORDED = ("generated", "frames")  # a long table, and a path
_GIVE_PROBE = "give its inputs: qpeft.export(model, folder, probe={...})"


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was exported, and how far its logits are from the live model's."""

    path: str
    n_trained: int  # trained parameters of the adapter
    n_deployed: int  # parameters of the stock adapter
    # of each module, if some ranks had no effect; the exported tensors have other shapes then
    ranks: dict[str, int] | None
    n_bytes: int  # size of adapter_model.safetensors
    # from the live model; None: the base model has no weights to compare with
    max_logit_difference: float | None
    # of the outputs of adapted layers in float32, in units of the largest output; None: the base is
    # in float32 itself, or no layer is adapted by both
    max_layer_difference: float | None = None
    # the share of what the adapter adds to a layer that rounding takes if somebody merges it into
    # this base of half precision; None: the base is in float32
    lost_by_merging: float | None = None


def export(
    model: PeftModel,
    directory: str | Path,
    *,
    adapter_name: str | None = None,
    probe: Mapping[str, Tensor] | None = None,
) -> ExportReport:
    """Save the adapter as a stock PEFT folder, load it with stock PEFT, and compare logits.

    Args:
        model: A PeftModel with an adapter that is generated, or with SoRA, whose gates are folded
            in, or with a rotation that is an OFT; not changed. No other thread may train it
            meanwhile: for the comparison it is in eval mode.
        directory: The folder; an earlier export there is replaced but for a model card that the
            user wrote or changed, any other content refused.
        adapter_name: Which adapter. Default: the active one.
        probe: Model inputs for the comparison. Default: token ids or an image of a fixed seed.

    Raises:
        ConfigError: no adapter or none that is generated, several active ones, frames that are not fitted, every SoRA
            gate zero, a merged or disabled adapter, non-finite parameters, or a folder with other content.
        VerificationError: the exported adapter gives other logits, or other outputs of a layer in
            float32 on a base of half precision. Allowed are 1e-6 in float32; for SoRA, whose
            exported tensors have other shapes, 64 roundings of the largest value.
    """
    model = peft_model_of(model)
    tuner: Any = model.base_model
    if not has_stock_form(model):
        reason = f": {tuner.stock_problem()}" if hasattr(tuner, "stock_problem") else ""
        merge = ", or merge it: qpeft export --merge" if getattr(tuner, "merges", False) else ""
        raise ConfigError(
            f"no stock PEFT adapter is equal to one of {type(tuner).__name__}{reason}; save it with"
            f" qpeft.save for qpeft.load{merge}"
        )
    # a generated adapter, or one of SoRA or a rotation, which have equal stock adapters
    holder = holder_of(model)
    source: Any = tuner if holder is None else holder
    configs = model.peft_config if holder is None else holder.configs
    if adapter_name is None:
        active: Any = (
            tuner.active_adapters if isinstance(tuner, BaseTuner) else [model.active_adapter]
        )
        if len(active) > 1:
            raise ConfigError(f"the adapters {', '.join(active)} are active; give adapter_name")
        adapter_name = str(active[0])
    if adapter_name not in configs or not hasattr(source, "stock_adapter"):
        raise ConfigError(
            f"adapter '{adapter_name}' is not generated by qpeft; a stock adapter is saved by"
            " model.save_pretrained"
        )
    target = export_folder(Path(directory))
    refuse_merged(model.modules())
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.disable_adapters for layer in layers):
        raise ConfigError(
            "the adapters are disabled; export outside of disable_adapter(), or call"
            " model.base_model.enable_adapter_layers() first"
        )
    refuse_sharded_adapter(model)
    with nullcontext() if holder is None else holder.exact(), replace_folder(target) as folder:
        stock: StockAdapter = source.stock_adapter(model, adapter_name)
        rows = stock_embeddings(model, stock.tensors)
        stock.tensors.update(rows)
        _write(stock, model, folder)
        same_shapes = holder is not None and stock.ranks is None
        differences = _differences(
            model, adapter_name, folder, probe, stock.tensors, same_shapes=same_shapes
        )
        report = ExportReport(
            path=str(Path(directory)),
            n_trained=stock.n_trained,
            n_deployed=stock.n_deployed,
            ranks=stock.ranks,
            n_bytes=(folder / WEIGHTS).stat().st_size,
            **differences,
        )
        settings = configs[adapter_name].to_dict()
        record = {
            "made_by": f"qpeft {version('qpeft')}",
            "weights_sha256": file_hash(folder / WEIGHTS),
            "embeddings": [*rows],
            "config": fixed_fields(read_json(folder / CONFIG), "task_type"),
            **asdict(report),
            "adapter": {k: value for k, value in settings.items() if k not in _NOT_RECORDED},
        }
        del record["path"]
        write_json(folder / RECORD, record)
        write_card(folder)
        keep_card(target, folder)
    return report


def has_stock_form(model: Any) -> bool:
    """Whether a stock PEFT adapter is equal to that of this PeftModel.

    Not if it has a tuner from outside PEFT whose tensors are not generated, unless this has a
    method `stock_problem` that finds none; the tuner of a host counts.
    """
    tuner = model.base_model
    if holder_of(model) is None and hasattr(tuner, "stock_problem"):
        return not tuner.stock_problem()
    is_stock = not isinstance(tuner, BaseTuner) or type(tuner).__module__.startswith("peft.")
    return is_stock or isinstance(tuner, GeneratedMixin)


def export_folder(target: Path) -> Path:
    """The folder to replace, links followed. Raises ConfigError if anything but an earlier export
    would be lost.
    """
    real = folder_to_replace(target, (CONFIG, WEIGHTS, RECORD, "README.md", *_BESIDE))
    if real.is_dir() and any(real.iterdir()) and not (real / RECORD).is_file():
        raise ConfigError(f"{target} is not empty and not an earlier export; give another folder")
    return real


def _write(stock: StockAdapter, model: Any, folder: Path) -> None:
    """The weights and adapter_config.json, as stock PEFT would have saved them for this model."""
    for key, value in stock.tensors.items():
        if not torch.isfinite(value).all():
            raise ConfigError(
                f"non-finite adapter parameter in {key}; export an earlier checkpoint"
            )
    saved = {k: value.detach().cpu().contiguous().clone() for k, value in stock.tensors.items()}
    save_file(saved, folder / WEIGHTS, metadata={"format": "pt"})
    base = model.get_base_model()
    config = stock.config
    config.inference_mode = True
    if not config.base_model_name_or_path:
        config.base_model_name_or_path = vars(base).get("name_or_path") or None
    for name, value in vars(config).items():
        if isinstance(value, set):
            setattr(config, name, sorted(value))  # every process saves the same
    base_class = None  # without a task PEFT's AutoPeftModel needs the class of the base
    if config.task_type is None:
        base_class = {
            "base_model_class": type(base).__name__,
            "parent_library": type(base).__module__,
        }
    config.save_pretrained(str(folder), auto_mapping_dict=base_class)


def _differences(
    model: Any,
    adapter_name: str,
    folder: Path,
    probe: Mapping[str, Tensor] | None,
    tensors: Mapping[str, Tensor],
    *,
    same_shapes: bool,
) -> dict[str, float | None]:
    """The differences of the report, by its fields."""
    if any(p.is_meta for p in model.parameters()) or is_sharded(model):
        return {"max_logit_difference": None}
    inputs = dict(probe) if probe is not None else probe_inputs(model)
    if any(getattr(parameter, "CB", None) is not None for parameter in model.parameters()):
        # bitsandbytes moves 8-bit weights at their first use, which a copy would not notice
        _logits(model, inputs)
    # PEFT loads adapters in float32, unless the exported one has no such tensor
    in_float32 = any(value.dtype == torch.float32 for value in tensors.values())
    with _unchanged(model):
        loaded = _load_stock(model, folder, autocast_adapter_dtype=in_float32)
        _activate(model, [adapter_name])
        try:
            live = _logits(model.eval(), inputs)
        except (TypeError, ValueError) as error:
            if probe is not None or isinstance(error, InputError):
                raise
            raise ConfigError(
                f"the model does not accept the built-in probe ({error}); {_GIVE_PROBE}"
            ) from error
        allowed = tolerance(live, same_shapes=same_shapes)
        difference = (live.float() - _logits(loaded, inputs).float()).abs().max().item()
        of_layers = _layer_difference(model, loaded, same_shapes=same_shapes)
        lost = lost_by_merging(loaded)
    if any(p.isnan().any() for p in resized(loaded.get_base_model()).parameters):
        difference = math.nan  # of rows that the folder lacks, even if the inputs do not read them
    if not difference <= allowed:
        raise VerificationError(
            f"the exported adapter's logits differ from the live model's by {difference:.3g}, more"
            f" than {allowed:.1g}; nothing was saved. Stock PEFT may be unable to rebuild the state"
            " of this base model, or another thread trains it"
        )
    return {
        "max_logit_difference": difference,
        "max_layer_difference": of_layers,
        "lost_by_merging": lost,
    }


def _layer_difference(live: Any, loaded: Any, *, same_shapes: bool) -> float | None:
    """The largest relative difference of the outputs of adapted layers in float32.

    Logits of half precision have roundings, within which a wrong adapter can hide. Raises
    VerificationError if a layer differs by more than float32 allows.
    """
    largest = None
    layers = half_layers(live.get_base_model())
    for name, stock in half_layers(loaded.get_base_model()).items():
        if name in layers:
            inputs = inputs_of(stock)
            expected = output_in_float32(layers[name], inputs)
            exported = output_in_float32(stock, inputs)
        else:  # a rotation behind v_proj is exported in front of o_proj
            attention = name.rpartition(".")[0]
            inputs = inputs_of(layers[f"{attention}.v_proj"])
            expected = _of_values(live, attention, inputs)
            exported = _of_values(loaded, attention, inputs)
        difference = (exported - expected).abs().max().item()
        if not difference <= tolerance(expected, same_shapes=same_shapes):
            raise VerificationError(
                f"the exported adapter's output of {name} differs from the live model's by"
                f" {difference:.3g} in float32; nothing was saved. Stock PEFT may be unable to"
                " rebuild the state of this base model"
            )
        largest = max(largest or 0.0, difference / expected.abs().max().item())
    return largest


@torch.no_grad()
def _of_values(model: Any, name: str, inputs: Tensor) -> Tensor:
    """`behind_values` of the attention called `name`, in float32, for `inputs` (64, width)."""
    attention = model.get_base_model().get_submodule(name)
    return behind_values(copy.deepcopy(attention).float(), inputs)


def _load_stock(model: Any, folder: Path, *, autocast_adapter_dtype: bool) -> Any:
    """The folder's adapter under stock PEFT, on a copy of the base that shares every weight with
    the live model's, but rows that were added to the vocabulary, which are unknown elsewhere.
    """
    config: Any = PeftConfig.from_pretrained(str(folder))
    if getattr(config, "layer_replication", None):
        config.layer_replication = None  # the live model's layers are replicated already
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    n_tokens, parameters = resized(model.get_base_model())
    for parameter in parameters:
        own = nn.Parameter(parameter.detach().clone())
        own.data[n_tokens:] = math.nan
        shared[id(parameter)] = own
    copied = copy.deepcopy(model, shared)  # `shared` is its memo of what is copied already
    for name, module in list(copied.named_modules()):
        # tuners other than LoRA's cannot unload a block of modules
        if isinstance(module, AuxiliaryTrainingWrapper):
            copied.set_submodule(name, module.original_module)
    base = copied.unload() if isinstance(model.base_model, BaseTuner) else copied.base_model
    # KaSA truncates the weights of its base, which it has truncated before, again
    truncated = list(base.parameters()) if getattr(config, "kasa_config", None) else []
    kept = [parameter.detach().clone() for parameter in truncated]
    loaded = PeftModel.from_pretrained(
        base, str(folder), config=config, autocast_adapter_dtype=autocast_adapter_dtype
    )
    for parameter, value in zip(truncated, kept, strict=True):
        parameter.data = value
    return loaded.eval()


def _logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits, or the first output of a model without a head, in the precision of the
    weights.
    """
    # accelerate wraps it with autocast, in training with bf16
    wrapped = vars(model).pop("forward", None)
    try:
        with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
            output = model(**inputs)
    finally:
        if wrapped is not None:
            vars(model)["forward"] = wrapped
    return output.logits if hasattr(output, "logits") else output[0]


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Afterwards the same adapters are active, the same parameters trainable, every module is in the
    same mode, and PyTorch draws the same random numbers.

    The stock copy shares parameters with the live model, and loading its adapter freezes them.
    """
    active = list(model.active_adapters)
    is_training = model.training
    modes = [(module, module.training) for module in model.modules()]
    requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        # the stock copy is initialized at random first
        with torch.random.fork_rng(devices=list(gpus)):
            yield
    finally:
        _activate(model, active)
        model.train(is_training)
        for module, mode in modes:
            module.training = mode
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(requires_grad[name])


def _activate(model: Any, names: list[str]) -> None:
    if names != list(model.active_adapters):  # a prompt, or an attached adapter, is the only one
        model.base_model.set_adapter(names)


def tolerance(live: Tensor, *, same_shapes: bool = True) -> float:
    """The allowed difference of logits: 1e-6, or several roundings of the largest logit.

    Equal values in tensors of equal shapes are summed in the same order: no rounding in float32,
    one in half precision. In tensors of other shapes, for example with fewer ranks, the order of
    sums differs: 64 and 8 roundings.
    """
    is_single = live.dtype == torch.float32
    of_same_order = 0 if is_single else 1
    of_other_order = 64 if is_single else 8
    n_roundings = of_same_order if same_shapes else of_other_order
    rounding = torch.finfo(live.dtype).eps * live.abs().max().item()
    return max(_FLOAT32_TOLERANCE, n_roundings * rounding)


def probe_inputs(model: Any) -> dict[str, Tensor]:
    """Up to 16 token ids (1, n), the same for the decoder of an encoder-decoder, or an image; on
    the model's device.

    Raises ConfigError if the model takes other inputs, or does not declare them.
    """
    base = model.get_base_model()
    config: Any = getattr(base, "config", None)
    kind = getattr(base, "main_input_name", None)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    if kind == "pixel_values":
        config = getattr(config, "vision_config", config)
        size: Any = getattr(config, "image_size", _IMAGE_SIZE)
        height, width = (size, size) if isinstance(size, int) else size
        shape = (1, getattr(config, "num_channels", 3), height, width)
        return {kind: torch.randn(shape, generator=generator).to(device)}
    if kind != "input_ids" or config is None:
        raise ConfigError(f"there is no built-in probe for {type(base).__name__}; {_GIVE_PROBE}")
    text = config.get_text_config()
    n_tokens = min(_N_TOKENS, getattr(text, "max_position_embeddings", None) or _N_TOKENS)
    # one row: a decoder that classifies finds the end of several by their padding
    ids = torch.randint(text.vocab_size, (1, n_tokens), generator=generator).to(device)
    inputs = {"input_ids": ids}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return inputs
