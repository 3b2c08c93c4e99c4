"""The base model of a classification or regression, with its own head or a new one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers
from torch import nn

from qpeft.core import base_model as base
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import InputError
from qpeft.training.task_types import TASKS
from qpeft.training.tasks.record import TaskRecord

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class Classifier(NamedTuple):
    """A base model with a classification head."""

    model: PreTrainedModel
    trained: list[str]  # modules to train in full: the head, and modules that the base has no weights for
    has_new_head: bool


def load_classifier(
    model: str, dtype: str, record: TaskRecord, seed: int, trust_remote_code: bool = False
) -> Classifier:
    """The base with a head for `record.labels`, the head in float32.

    The base keeps its own head if it is for the same classes in the same order. Otherwise a new head is initialized
    from `seed`, equally on every device. Raises InputError if the base cannot classify, or lacks other weights.
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
        problem_type="regression" if TASKS[record.task].is_regression else "single_label_classification",
    )
    if record.pad_token_id is not None:
        loaded.config.get_text_config().pad_token_id = record.pad_token_id  # by which a decoder finds the last token
    head = find_head(loaded)
    has_own_head = is_classifier(config) and record.labels == class_names(config)
    new = set() if has_own_head else _new_modules(loaded, lacking, others, head)
    base.refuse_lacking(model, {key for key in lacking | others if _module_of(loaded, key) not in new})
    if record.labels != class_names(config):
        new |= {*head}
    if missing := sorted(new - {*head}):
        warnings.warn(
            f"the base model has no weights for {', '.join(missing)}; they are initialized from the seed and "
            "trained in full, like the head",
            stacklevel=2,
        )
    init_modules(loaded, sorted(new), seed)
    trained = sorted(new | {*head})
    _to_float32(loaded, trained)
    return Classifier(loaded, trained, bool(new))


def classifier_on_meta(model: str, task: str, n_outputs: int | None, trust_remote_code: bool = False) -> Classifier:
    """As `load_classifier`, on the meta device; by default with as many outputs as the config of the base has."""
    config = base.load_config(model, trust_remote_code)
    check_can_classify(config, task)
    if n_outputs is not None:
        config.num_labels = n_outputs
    with torch.device("meta"):
        made = _auto_class(task).from_config(config)
    return Classifier(made, find_head(made), has_new_head=True)


def check_can_classify(config: PretrainedConfig, task: str) -> None:
    """Raise InputError if transformers has no head for the task on a model of this type."""
    if type(config) not in _auto_class(task)._model_mapping:
        raise InputError(f"a base of type {config.model_type} cannot be trained for {task}; name another base model")


def _auto_class(task: str) -> Any:
    return getattr(transformers, TASKS[task].auto_class)


def class_names(config: PretrainedConfig) -> tuple[str, ...]:
    """The class names in a config, in the order of their indices."""
    return tuple(name for _, name in sorted((config.id2label or {}).items()))


def is_classifier(config: PretrainedConfig) -> bool:
    """Whether the base has a classification head."""
    return any(name.endswith("Classification") for name in config.architectures or ())


def find_head(model: PreTrainedModel) -> list[str]:
    """Names of the modules with parameters outside the model's body; if that has no name, the last module."""
    children = [name for name, module in model.named_children() if any(True for _ in module.parameters())]
    body = model.base_model_prefix
    return [name for name in children if name != body] if body in children else children[-1:]


def init_modules(model: PreTrainedModel, names: Sequence[str], seed: int) -> None:
    """Initialize modules: linear weights normal with the model's initializer_range, other parameters as in torch."""
    initial = SeededInit(seed)
    std = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
    for name in names:
        for path, module in model.get_submodule(name).named_modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            if isinstance(module, nn.Linear):
                with torch.no_grad():
                    module.weight.copy_(initial.normal(f"head:{name}.{path}", module.weight.shape, std))
                    if module.bias is not None:
                        module.bias.zero_()


def _new_modules(model: PreTrainedModel, lacking: set[str], others: set[str], head: Sequence[str]) -> set[str]:
    """The modules that are expected to be new: a head, or the body's pooler, which language models are saved without.

    They have no tensor in the base, or only tensors for another number of classes.
    """
    found = {name for key in lacking | others if (name := _module_of(model, key)) in head or name.endswith(".pooler")}
    parts = {name: {key for key in model.state_dict() if _module_of(model, key) == name} for name in found}
    return {name for name in found if not parts[name] & lacking or parts[name] <= lacking | others}


def _module_of(model: PreTrainedModel, key: str) -> str:
    """The module of a tensor: a part of the head, or a child of the body."""
    return ".".join(key.split(".")[: 2 if key.split(".")[0] == model.base_model_prefix else 1])


def _to_float32(model: Any, names: Sequence[str]) -> None:
    """In bfloat16 the head would lose small steps."""
    for name in names:
        head = model.get_submodule(name)
        if any(parameter.dtype != torch.float32 for parameter in head.parameters()):
            head.float()
            head.register_forward_pre_hook(_inputs_to_float32)


def _inputs_to_float32(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs)
