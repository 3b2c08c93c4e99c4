"""The sizes of measured adapters on a base model, fast enough to compare dozens of them.

A plan injects the adapter into the base, on the meta device: some tenths of a second for 30 layers.
A family of adapters has up to 14 values of its free setting, and there are 56 families. So their
sizes come from copies of the base with one layer and with two, which take hundredths. Each further
layer adds as much as the second one did:

    layers             1         2         3    ...    30
    LoRA, trainable    1,152     2,304     3,456       34,560  =  1,152 + 29 * (2,304 - 1,152)
    core on all types  7 + 0 ..  14        21          210     =  7 + 29 * (14 - 7)

This is exact if all layers are alike, which `_few_layers` checks, and if the adapter's size is a
sum over modules. That of a method that spends a budget of its own, such as QPA, is not: it has no
free setting, and is counted on the base itself, as is everything that is suggested.
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from qpeft.errors import ConfigError, QpeftError
from qpeft.methods.evidence import Design
from qpeft.methods.plan import Plan, plan
from qpeft.methods.registry import get
from qpeft.quiet import quiet

TASK = "CAUSAL_LM"
_MANY_LAYERS = 8  # of a base whose adapters are counted on fewer layers first


class Size(NamedTuple):
    """What a budget limits."""

    trainable: int
    stored_bytes: int


_OF_GRADIENT = ("gradient", "sign")  # frames, which a file can have for many adapters


class Counts:
    """The sizes of designs on a base model, each counted once.

    Args:
        model: The base, on the meta device.
        frames: A frame file of the base, which the adapters must use.
        shares_frames: Whether frames are in a file that many adapters share, and are not counted.
    """

    def __init__(self, model: nn.Module, frames: str | Path | None, *, shares_frames: bool) -> None:
        self.model = model
        self._frames = frames
        self._shares_frames = shares_frames or frames is not None
        self._few = _few_layers(model)
        self._plans: dict[str, Plan] = {}

    def sized(self, design: Design) -> Design:
        """With the largest of its values that keeps to its budget on the base, or the smallest."""
        if not design.values:
            return design

        def trainable(value: int) -> int:
            """More than the budget if the adapter does not fit the base.

            Whether a rank or a block size fits is decided where the adapter is injected, by PEFT or
            by the method, and both raise the reason: there is nothing to ask beforehand.
            """
            try:
                return self.expected(design.with_value(value)).trainable
            except QpeftError:
                return design.budget + 1

        n_within = bisect_right(design.values, design.budget, key=trainable)
        return design.with_value(design.values[max(n_within - 1, 0)])

    def expected(self, design: Design) -> Size:
        """The size on the base, by those on one and on two of its layers where this is exact.

        Raises QpeftError if the adapter does not fit the base.
        """
        few = self._few
        if few is None or not design.values:
            costs = self._costs(self.model, design)
            return Size(costs.trainable, costs.stored_bytes)
        on_one = self._costs(few.one_layer, design)
        on_two = self._costs(few.two_layers, design)
        more = few.n_layers - 1  # each adds what the second layer does
        trainable = on_one.trainable + more * (on_two.trainable - on_one.trainable)
        n_bytes = on_one.stored_bytes + more * (on_two.stored_bytes - on_one.stored_bytes)
        return Size(trainable, n_bytes)

    def exact(self, design: Design) -> tuple[dict[str, Any], Plan]:
        """The settings for the base, and what they cost there.

        Raises QpeftError if the adapter does not fit the base or the frame file.
        """
        settings = design.settings_for(self.model)
        costs = self._costs(self.model, design)
        if self._frames is None:
            return settings, costs
        targets = get(design.method).defaults["target_modules"]
        settings = {"target_modules": targets, **settings, "frames": str(self._frames)}
        with quiet("q?peft"):  # on types of layers, and fields without effect
            in_file = plan(self.model, config_of(design.method, settings))
        if in_file.trainable != costs.trainable:
            raise ConfigError("the frame file has fewer directions than frame_rank of this adapter")
        return settings, in_file

    def lora_parameters(self) -> int:
        """Trainable parameters of LoRA r=1."""
        return plan(self.model, config_of("lora", {"r": 1})).trainable

    def _costs(self, base: nn.Module, design: Design) -> Plan:
        """The plan on a base, with the bytes of frames only if each adapter stores them."""
        settings = design.settings_for(base)
        key = f"{id(base)} {design.method} {settings}"
        if key not in self._plans:
            config = config_of(design.method, settings)
            with quiet("q?peft"):  # on types of layers, and fields without effect
                costs = plan(base, config)
            if self._shares_frames and has_frames(design):
                n_bytes = costs.stored_bytes - costs.sizes["frame_bytes"]
                costs = replace(costs, stored_bytes=n_bytes)
            self._plans[key] = costs
        return self._plans[key]


def has_frames(design: Design) -> bool:
    """Whether its frames are made from the gradient, which a file can have for many adapters."""
    return design.settings.get("frame") in _OF_GRADIENT


def config_of(method: str, settings: Mapping[str, Any]) -> PeftConfig:
    """A new PEFT config of a registered method."""
    record = get(method)
    fields = {**record.defaults, **settings, "task_type": TASK}
    with quiet("q?peft"):  # on projections that are not saved
        return record.config_class(**fields)


class _FewLayers(NamedTuple):
    """A base whose layers are all alike, with fewer of them."""

    n_layers: int  # of the base itself
    one_layer: nn.Module
    two_layers: nn.Module


def _few_layers(model: Any) -> _FewLayers | None:
    """The base with one layer and with two; None if its layers are few or not alike."""
    n_layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if not isinstance(model, PreTrainedModel) or not n_layers or n_layers < _MANY_LAYERS:
        return None
    try:
        few = _FewLayers(n_layers, _with_layers(model, 1), _with_layers(model, 2))
    except Exception:  # of any code: this model has no such copies, and is counted as it is
        return None
    whole = _kinds(model)
    of_one = _kinds(few.one_layer)
    of_two = _kinds(few.two_layers)
    is_uniform = all(
        whole[kind] == of_one[kind] + (n_layers - 1) * (of_two[kind] - of_one[kind])
        for kind in whole | of_one | of_two
    )
    return few if is_uniform else None


def _with_layers(model: PreTrainedModel, n: int) -> PreTrainedModel:
    """The first `n` layers of a model, on the meta device."""
    config: Any = copy.deepcopy(model.config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, name, value[:n])  # such as the kind of attention of each layer
    config.num_hidden_layers = n
    with torch.device("meta"):
        return type(model)(config)


def _kinds(model: nn.Module) -> Counter[tuple[str, torch.Size]]:
    """How many parameters have each name and shape; names are without the numbers of layers."""
    return Counter(
        (re.sub(r"\b\d+\.", "", name), parameter.shape)
        for name, parameter in model.named_parameters()
    )
