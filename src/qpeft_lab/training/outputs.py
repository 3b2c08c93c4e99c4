"""The files of a finished run, the compact and the exported adapter, and their sizes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel

import qpeft
from qpeft import methods
from qpeft.core.checkpoint import save
from qpeft.core.compact_state import is_compact
from qpeft.core.export import has_stock_form
from qpeft.core.generator_holder import holder_of
from qpeft.folders import replace_folder
from qpeft_lab.training.initial import saving_options
from qpeft_lab.training.run_folder import RunFolder
from qpeft_lab.training.tasks import Task

_EMPTY = (
    "every gate of SoRA is zero, so there is no adapter to export; train again in another run"
    " folder with a lower shrink_budget or sparse_lambda"
)


def write_adapter(model: Any, folder: RunFolder, method: str, task: Task) -> None:
    """Save adapter/ and exported/, each atomically.

    With method full, exported/ is the model, with its tokenizer or image processor, and there is no
    adapter/. There is no exported/ if stock PEFT has no equal adapter, or if the method has nothing
    to export.
    """
    if methods.get(method).config is None:
        with replace_folder(folder.exported) as target:
            model.save_pretrained(str(target))
            task.processor.save_pretrained(str(target))
        return
    with replace_folder(folder.adapter) as target:
        save(model, target, **saving_options(model))
        task.describe(target)
    holder = holder_of(model)
    if holder is not None and not holder.count_generated():  # without a rank of SoRA
        warnings.warn(_EMPTY, stacklevel=2)
    elif has_stock_form(model):
        with replace_folder(folder.exported) as target:
            if is_compact(model):  # adapter/ loads only with qpeft
                qpeft.export(model, target)
            else:
                save(model, target, **saving_options(model))
            task.describe(target)


def count_deployed(model: Any) -> int:
    """Parameters needed at inference, in addition to the base, including modules_to_save."""
    is_peft = isinstance(model, PeftModel)
    is_as_saved = not saving_options(model)
    if is_as_saved and not (
        is_peft and (is_compact(model) or model.active_peft_config.is_prompt_learning)
    ):
        return count_trainable(model)
    from qpeft.methods import plan  # which imports every kind of adapter

    return plan.count_deployed(model) + (0 if is_as_saved else plan.count_lora(model))


@contextmanager
def resumable(model: Any) -> Iterator[None]:
    """Within this context the Trainer saves all that a bit-equal resume needs.

    Quantized parameters need their latent values. A whole model is saved under the parameter names
    in memory: transformers saves some models, such as ViT, under older names, which the Trainer
    does not load again.
    """
    if holder := holder_of(model):
        with holder.keeping_latent():
            yield
        return
    if not isinstance(model, PeftModel):
        model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    try:
        yield
    finally:
        vars(model).pop("save_pretrained", None)


def count_trainable(model: Any, modules: Sequence[str] = ("",)) -> int:
    """Trainable parameters, shared ones once; with `modules`, only those inside the named modules."""
    inside = [f".{name}." if name else "" for name in modules]
    trained = [(f".{name}", p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    return sum(n for name, n in trained if any(part in name for part in inside))


def count_stored_bytes(model: Any) -> int:
    """Size of the weights file of the compact adapter, or of a model without adapter."""
    with TemporaryDirectory() as place:
        if isinstance(model, PeftModel):
            save(model, place, **saving_options(model))
        else:
            model.save_pretrained(place)
        return weight_bytes(Path(place))


def weight_bytes(folder: Path) -> int:
    """Size of a folder's weights files; 0 without them."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
