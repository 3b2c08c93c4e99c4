"""What is written when training is done: the compact adapter, the stock one, the card."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel

import qpeft
from qpeft import methods
from qpeft.core.adapter_form import form_of, has_stock_form, own_kind
from qpeft.core.holder import holder_of
from qpeft.core.model_card import load_lines
from qpeft.files import replace_folder, write_text
from qpeft.methods import Trains
from qpeft.methods.counting import count_stored
from qpeft.training.result import TrainResult
from qpeft.training.run_folder import RunFolder
from qpeft.training.tasks import Task
from qpeft.training.tasks.record import how_to_load


def write_adapter(model: Any, folder: RunFolder, method: str, task: Task) -> int:
    """Write adapter/ and exported/, each whole or not at all; returns the numbers needed at inference.

    Method full has no adapter: exported/ is the model, with its tokenizer or image processor. An adapter that stock
    PEFT lacks has no exported/, nor has one that SoRA shrank to nothing.
    """
    if methods.named(method).config is None:
        with replace_folder(folder.exported) as target:
            model.save_pretrained(str(target))
            task.save_processor(target)
        return count_trainable(model)
    with replace_folder(folder.adapter) as target:
        qpeft.save(model, target)
        task.describe(target)
    if has_stock_form(model) and _something_is_left(model):
        with replace_folder(folder.exported) as target:
            _export(model, target, task)
            task.describe(target)
    return count_deployed(model)


def _export(model: Any, target: Path, task: Task) -> None:
    if not needs_qpeft(model):
        qpeft.save(model, target)
        return
    probe = task.probe()
    device = next(model.parameters()).device
    qpeft.export(model, target, probe=probe and {name: part.to(device) for name, part in probe.items()})


def count_deployed(model: Any) -> int:
    """What generators write, what SoRA's gates leave or what a prompt's encoder makes, in the place of what is trained.

    modules_to_save are counted beside it.
    """
    if (form := form_of(model)) is not None:
        return form.count_deployed(model)
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return count_stored(model)
    return count_trainable(model)


def count_generator(model: Any) -> int | None:
    """Numbers that regenerate what is deployed; None where nothing is generated."""
    holder = holder_of(model)
    return None if holder is None else count_trainable(holder.generators)


def needs_qpeft(model: Any) -> bool:
    """Whether adapter/ needs qpeft, since it holds a generator or gates, and exported/ says the same without."""
    return form_of(model) is not None or own_kind(model) is not None


def _something_is_left(model: Any) -> bool:
    form = form_of(model)
    if form is None or not form.is_empty():
        return True
    warnings.warn(form.empty_warning, stacklevel=2)
    return False


def exact_circuits(model: Any) -> AbstractContextManager[None]:
    """Within: circuits on the exact simulator, whatever backend they train on."""
    holder = holder_of(model)
    return nullcontext() if holder is None else holder.exact()


def resumable(model: Any) -> AbstractContextManager[None]:
    """Within: what the Trainer saves is enough to resume bit-equal, also with quantised parameters."""
    if holder := holder_of(model):
        return holder.keeping_latent()
    return nullcontext() if isinstance(model, PeftModel) else _own_names(model)


@contextmanager
def _own_names(model: Any) -> Iterator[None]:
    """Within: a whole model is saved under the names that it has in memory.

    transformers saves some kinds, ViT among them, under older names, which the Trainer that resumes passes over
    without a word.
    """
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    try:
        yield
    finally:
        del model.save_pretrained


def count_trainable(model: Any, modules: Sequence[str] | None = None) -> int:
    """Numbers that training changes, shared ones once; with `modules`, only those inside them."""
    inside = ("",) if modules is None else [f".{name}." for name in modules]
    trained = [(f".{name}", p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    return sum(n for name, n in trained if any(part in name for part in inside))


def count_stored_bytes(model: Any) -> int:
    """Size of the weights file of the compact adapter, or of a model without adapter."""
    with TemporaryDirectory() as place:
        if isinstance(model, PeftModel):
            qpeft.save(model, place)
        else:
            model.save_pretrained(place)
        return weight_bytes(Path(place))


def weight_bytes(folder: Path) -> int:
    """Size of a folder's weights files; 0 without them."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def write_card(folder: RunFolder, result: TrainResult, *, needs_qpeft: bool) -> None:
    """The run's README.md; `needs_qpeft`: to load adapter/."""
    write_text(folder.card, _card(result, needs_qpeft))


def _card(result: TrainResult, needs_qpeft: bool) -> str:
    before, after = result.before.described(), result.after.described()
    rows = "\n".join(f"| {name} | {before[name]} | {after[name]} |" for name in after)
    return f"""---
base_model: {result.model}
library_name: peft
tags:
- qpeft
- {result.method}
---

# {result.model} fine-tuned with {result.method}

| | before | after |
| --- | ---: | ---: |
{rows}

Scored on {result.after.size} of validation data after {result.steps:,} steps. Trained parameters:
{result.trainable:,}{_head(result)}; numbers needed at inference beside the base: {result.deployed:,}.
{_circuits(result)}
{_folders(result, needs_qpeft)}
Settings, hashes and versions: `config.json`. Losses and scores: `metrics.jsonl`.
"""


def _circuits(result: TrainResult) -> str:
    if (used := result.circuits) is None:
        return ""
    shots = f" of {used['shots_per_circuit']:,} shots" if used["shots_per_circuit"] else ""
    return (
        f"\nTrained with {used['circuits']:,} circuits{shots} on {used['backend']} (gradients by {used['gradient']}); "
        "scores and the exported numbers are of exact probabilities.\n"
    )


def _head(result: TrainResult) -> str:
    return f" ({result.trainable_head:,} of them the head's)" if result.trainable_head else ""


def _folders(result: TrainResult, needs_qpeft: bool) -> str:
    record = methods.named(result.method)
    if record.trains is Trains.MODEL:
        return "`exported/` is the whole model, with what makes its inputs; it loads with transformers alone.\n"
    if not result.has_stock_form:
        why = record.no_export
        return f"""- `adapter/`: the adapter; **loading it needs qpeft**, for {why}

```python
{load_lines(result.model, "adapter", needs_qpeft=True, registered=record.config_class, **how_to_load(result.adapter))}
```
"""
    lines = load_lines(result.model, "exported", needs_qpeft=False, **how_to_load(result.exported))
    adapter = "the same adapter"
    if needs_qpeft:
        adapter = f"{record.adapter_holds} ({result.stored_bytes:,} bytes); **loading it needs qpeft**"
    return f"""- `exported/`: a stock adapter ({result.exported_bytes:,} bytes); it loads with PEFT alone
- `adapter/`: {adapter}

```python
{lines}
```
"""
