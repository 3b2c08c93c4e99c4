"""The base model of a classification or regression, with its own head or a new one; and its outputs
in task.json.

PEFT saves neither the names nor the number of the classes in an adapter folder, and needs the
number to load the head.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from qpeft.core.checkpoint import WEIGHTS
from qpeft.core.meta_model import on_meta
from qpeft.core.model_card import add_sections, users_card
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError, InputError
from qpeft.files import as_json, file_hash, read_json, write_json, write_text
from qpeft_lab import base_model as base
from qpeft_lab.data.task_types import TASKS

RECORD = "task.json"
_POOLER = ".pooler"  # which language models are saved without


@dataclass(frozen=True)
class TaskRecord:
    """A classification or regression, and the arguments that load its base."""

    task: str
    labels: tuple[str, ...]  # in the order of their indices
    pad_token_id: int | None = None  # of texts; None for images
    ignore_mismatched_sizes: bool = (
        False  # whether the base has a head for another number of classes
    )

    def options(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that load the base with stock transformers."""
        pad = {} if self.pad_token_id is None else {"pad_token_id": self.pad_token_id}
        other = {"ignore_mismatched_sizes": True} if self.ignore_mismatched_sizes else {}
        names = dict(enumerate(self.labels))
        numbers = {name: index for index, name in names.items()}
        # a base with as many other classes would keep their names
        classes = {"num_labels": len(names), "id2label": names, "label2id": numbers}
        return {**classes, **pad, **other}

    def write(self, folder: Path) -> None:
        """Write task.json to an adapter folder, and add these arguments and the classes to its
        model card, if it has one that no user wrote: an adapter with a frame file has none.
        """
        content = asdict(self)
        write_json(folder / RECORD, {**content, "sha256": _seal(folder, content)})
        card = folder / "README.md"
        if not card.exists() or users_card(folder) is not None:
            return
        options = ", ".join(f"{name}={value!r}" for name, value in self.options().items())
        text = card.read_text("utf-8").replace(
            ", dtype='float32')", f", dtype='float32', {options})"
        )
        outputs = ", ".join(f"{index}: `{name}`" for index, name in enumerate(self.labels))
        write_text(card, text)
        section = f"## Outputs\n\n{self.task}, by index (also in `{RECORD}`): {outputs}\n"
        add_sections(card, [section])


def _seal(folder: Path, content: dict[str, Any]) -> str:
    """SHA-256 of task.json's content and of the weights that it describes, to tell an edited one, or
    one of another revision.
    """
    weights = file_hash(folder / WEIGHTS)
    return hashlib.sha256(json.dumps([as_json(content), weights]).encode()).hexdigest()


def read_record(folder: Path) -> TaskRecord | None:
    """The record of an adapter folder; None for a language model. Raises CheckpointError if it is
    damaged.
    """
    file = folder / RECORD
    if not file.exists():
        return None
    try:
        stored = read_json(file)
        seal = stored.pop("sha256", None)  # earlier versions wrote none
        if seal is not None and seal != _seal(folder, stored):
            raise ValueError("it was edited, or belongs to other weights than those beside it")
        stored["labels"] = tuple(map(str, stored["labels"]))
        record = TaskRecord(**stored)
        if record.task not in TASKS or TASKS[record.task].is_language_model:
            raise ValueError(f"unknown task {record.task!r}")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); restore it from a copy of the folder"
        ) from error


def how_to_load(folder: Path) -> dict[str, Any]:
    """Arguments of `load_lines` for the base of an adapter folder."""
    record = read_record(folder)
    return (
        {}
        if record is None
        else {"auto_class": TASKS[record.task].auto_class, "options": record.options()}
    )


def load_base(
    model: str, record: TaskRecord | None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The base, in float32, for an adapter with this record; without a record a language model."""
    if record is None:
        return base.load_model(model, trust_remote_code=trust_remote_code)
    # the adapter replaces a new head
    return load_classifier(model, "float32", record, 0, trust_remote_code)[0]


def load_classifier(
    model: str, dtype: str, record: TaskRecord, seed: int, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, list[str], bool]:
    """The base with a head for `record.labels`, in float32; the modules to train in full; whether
    the head is new.

    Trained in full are the head, and modules that the base has no weights for. The base keeps its
    own head if it is for the same classes in the same order. Otherwise a new head is initialized
    from `seed`, equally on every device. Raises InputError if the base cannot classify, or lacks
    other weights.
    """
    config = base.load_config(model, trust_remote_code)
    loaded, lacking, others = base.load_weights(
        _auto_class(record.task),
        model,
        dtype,
        trust_remote_code,
        num_labels=len(record.labels),
        id2label=dict(enumerate(record.labels)),
        label2id={name: index for index, name in enumerate(record.labels)},
        problem_type=(
            "regression" if TASKS[record.task].is_regression else "single_label_classification"
        ),
    )
    if record.pad_token_id is not None:
        # by which a decoder finds the last token
        loaded.config.get_text_config().pad_token_id = record.pad_token_id
    head = find_head(loaded)
    # of a tensor there, a child of the body; of another, a part of the head
    body = loaded.base_model_prefix
    parts = {key: key.split(".") for key in lacking | others}
    lacking_in = {
        key: ".".join(names[: 2 if names[0] == body else 1]) for key, names in parts.items()
    }
    is_for_others = not has_head_for(config, record.labels)
    may_lack = () if is_classifier(config) and not is_for_others else head
    base.refuse_lacking(
        model,
        {
            key
            for key, name in lacking_in.items()
            if name not in may_lack and not name.endswith(_POOLER)
        },
    )
    new = {*lacking_in.values()} | ({*head} if is_for_others else set())
    if missing := sorted(new - {*head}):
        warnings.warn(
            f"the base model has no weights for {', '.join(missing)}; they are initialized from the"
            " seed and trained in full, like the head",
            stacklevel=2,
        )
    init_modules(loaded, sorted(new), seed)
    trained = sorted(new | {*head})
    _to_float32(loaded, trained)
    return loaded, trained, bool(new)


def base_on_meta(
    model: str, task: str, trust_remote_code: bool = False, n_classes: int | None = None
) -> tuple[nn.Module, list[str]]:
    """The base on the meta device, and the modules of its head; by default with as many classes as
    its config has.
    """
    if TASKS[task].is_language_model:
        return on_meta(model, TASKS[task].peft_type, trust_remote_code), []
    config = base.load_config(model, trust_remote_code)
    check_can_classify(config, task)
    if n_outputs := 1 if TASKS[task].is_regression else n_classes:
        config.num_labels = n_outputs
    with torch.device("meta"):
        made = _auto_class(task).from_config(config)
    return made, find_head(made)


def check_can_classify(config: PretrainedConfig, task: str) -> None:
    """Raise InputError if transformers has no head for the task on a model of this type."""
    if type(config) not in _auto_class(task)._model_mapping:
        raise InputError(
            f"a base of type {config.model_type} cannot be trained for {task}; name another base"
            " model"
        )


def _auto_class(task: str) -> Any:
    return getattr(transformers, TASKS[task].auto_class)


def class_names(config: PretrainedConfig) -> tuple[str, ...]:
    """The class names in a config, in the order of their indices."""
    return tuple(name for _, name in sorted((config.id2label or {}).items()))


def has_head_for(config: PretrainedConfig, labels: Sequence[str]) -> bool:
    """Whether the classes in a config are `labels`, in this order. LABEL_0, LABEL_1, ... are
    transformers' names of classes that have none: then these are the indices, "0", "1", ...
    """
    names = class_names(config)
    indices = range(len(names))
    unnamed = tuple(f"LABEL_{index}" for index in indices)
    return tuple(labels) == names or (names == unnamed and [*labels] == [*map(str, indices)])


def is_classifier(config: PretrainedConfig) -> bool:
    """Whether the base has a classification head."""
    return any(name.endswith("Classification") for name in config.architectures or ())


def find_head(model: PreTrainedModel) -> list[str]:
    """Names of the modules with parameters outside the model's body; if that has no name, the last
    module.
    """
    children = [
        name for name, module in model.named_children() if any(True for _ in module.parameters())
    ]
    body = model.base_model_prefix
    return [name for name in children if name != body] if body in children else children[-1:]


def init_modules(model: PreTrainedModel, names: Sequence[str], seed: int) -> None:
    """Initialize modules: linear weights normal with the model's initializer_range, other
    parameters as in torch.
    """
    initial = SeededInit(seed)
    std = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
    for name in names:
        for path, module in model.get_submodule(name).named_modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            if isinstance(module, nn.Linear):
                with torch.no_grad():
                    module.weight.copy_(
                        initial.normal(f"head:{name}.{path}", module.weight.shape, std)
                    )
                    if module.bias is not None:
                        module.bias.zero_()


def _to_float32(model: Any, names: Sequence[str]) -> None:
    """In bfloat16 the head would lose small steps."""
    for name in names:
        head = model.get_submodule(name)
        if any(parameter.dtype != torch.float32 for parameter in head.parameters()):
            head.float()
            head.register_forward_pre_hook(_inputs_to_float32)


def _inputs_to_float32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs
    )
