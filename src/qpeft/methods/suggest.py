"""`qpeft.suggest`: the adapter that the evidence recommends for a base model and a budget.

The evidence, `evidence.json`, is that of the equal search of evidence/PROTOCOL.md: for each family
of adapters at each budget the configuration that was best in the search, and test losses in the
same setups (a base and a text). `evidence/suggest_evidence.py` makes it from the rows.
"""

from __future__ import annotations

import json
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from peft import PeftConfig
from torch import nn
from transformers import PretrainedConfig

from qpeft.core.frame_file import read_frame_file
from qpeft.core.meta_model import on_meta
from qpeft.errors import ConfigError, QpeftError
from qpeft.methods.plan import BYTES, Plan, plan
from qpeft.methods.registry import get

NORMS, LAST_NORM = "@norms", "@last-norm"  # stand for modules of a base
_TASK = "CAUSAL_LM"
_ALTERNATIVES = 3
_LOST = (
    "within {:,} parameters, choices from results of other bases lost {:.1%} to {:.1%} of the best"
    " gain measured there"
)
_FRAME_FILE = (
    "its frames are {:,} bytes, stored with each adapter unless a frame file has them for all:"
    " write one with qpeft frames or qpeft.fit_frames(model, batches, save_to=FILE), and give it to"
    " each as --frames FILE or frames=FILE"
)


@dataclass(frozen=True)
class Design:
    """A family of adapters at a budget: a method with its settings, and what the family reached in
    each setup.
    """

    label: str
    method: str  #: as in `qpeft train --method`
    settings: dict[str, Any]  #: of the method, without the one that `vary` names
    budget: int  #: most trainable parameters of the family in the study
    vary: (
        str | None
        # : the setting with the largest of `values` that keeps to this budget on a base; None: no
        # setting
    )
    values: list[int]  #: ascending
    learning_rates: dict[str, float]  #: the safe one by base, and for all bases under ""
    # : parameters of LoRA r=1 for which these hold: they grow with the root of that number; None:
    # they do not
    per_lora: int | None
    # : for each setup: base, base_parameters, data, steps, trainable, seeds; the mean test `loss`
    # in nats per token with
    # : its 95 % interval from `low` to `high`; the `share` of the reference's gain; all with the
    # best settings there
    results: list[dict[str, Any]]

    @property
    def share(self) -> float:
        """The gain in test loss over the untrained base, as a share of the reference's: mean over
        the setups.
        """
        return fmean(result["share"] for result in self.results)

    @property
    def learning_rate(self) -> float:
        """A learning rate that is safe in all of its setups, whose bases are small and runs short."""
        bases = {result["base"] for result in self.results}
        return self.learning_rates[bases.pop() if len(bases) == 1 else ""]


@dataclass(frozen=True)
class Suggestion(Design):
    """An adapter with its evidence, and its counts on the base model."""

    plan: Plan  #: with a frame file, if it needs one
    needs_frame_file: bool  #: whether it has the counted bytes only with a frame file
    reference: str
    notes: list[str] = field(default_factory=list)
    alternatives: list[Suggestion] = field(
        default_factory=list
    )  #: the next best within the budget, at most three

    @property
    def config(self) -> PeftConfig:
        """A new PEFT config of the adapter. It refers to a frame file only if `suggest` was given
        one.
        """
        return _config(self.method, self.settings)


def suggest(
    base: nn.Module | PretrainedConfig | str | Path,
    *,
    parameters: int | None = None,
    bytes: int | None = None,
    frames: str | Path | None = None,
    refuses: Callable[[PeftConfig], str | None] = lambda config: None,
    trust_remote_code: bool = False,
) -> Suggestion:
    """The best measured adapter of a causal language model with at most so many trainable
    parameters or stored bytes.

    The adapters of the evidence are counted on `base`, without those that were measured with far
    more parameters. Of those within the budget, the one with the highest mean share of the
    reference's gain is suggested, quantum or classical. If the evidence has results on `base`,
    recognized by its number of parameters, only these count. A note says how much of the gain
    choices lost on a base unknown to them.

    The learning rate is the one that loses the least in the search where it loses most: of the gain
    in validation loss at the best rate, plus a twentieth of what the next higher one loses, since a
    rate may be too high on another base. That of Uni-LoRA grows with the root of the number of
    parameters of its LoRA.

    Args:
        base: A model (not changed), a hub id, a local folder, or a transformers config; no weights
            are read.
        parameters: Most trainable parameters. Give this or `bytes`.
        bytes: Most bytes of the saved adapter's tensors, as in `Plan.stored_bytes`: without the
            header of its file, its config, and gradient frames, which a file that many adapters
            share can contain.
        frames: A frame file of `base`. Only adapters that it has frames for are considered; they
            refer to it.
        refuses: Maps a config to the reason why its adapter cannot be used, or None; such adapters
            are left out.
        trust_remote_code: Execute Python code that the folder or repository of `base` contains.

    Raises:
        ConfigError: not one budget, no adapter is as small or fits, the base is not found, has an
            adapter already or cannot be adapted, or there is no frame file at `frames`.
        CheckpointError: `frames` is damaged or not a frame file.
    """
    name, size, budget = "parameters", "trainable", parameters
    if parameters is None:
        name, size, budget = "bytes", "stored_bytes", bytes
    if not isinstance(budget, int) or budget < 1 or None not in (parameters, bytes):
        raise ConfigError(
            f"give one budget, parameters or bytes, of at least 1; got {parameters} and {bytes}"
        )
    model = on_meta(base, _TASK, trust_remote_code)
    if frames is not None:
        read_frame_file(frames).check_base(base if isinstance(base, nn.Module) else model)
    evidence = read_evidence()
    n_base = sum(p.numel() for p in model.parameters())

    def count(design: Design) -> Suggestion:
        with warnings.catch_warnings(action="ignore"):  # PEFT's on types of layers
            return _counted(evidence, design, model, frames, in_bytes=bytes is not None)

    def trainable(design: Design) -> float:
        """Infinite if the adapter does not fit the base."""
        try:
            return count(design).plan.trainable
        except QpeftError:
            return math.inf

    def sized(design: Design) -> Design:
        """With the largest of its values that keeps to its budget on `model`, or with the smallest."""
        at = [
            replace(design, settings={**design.settings, str(design.vary): value})
            for value in design.values
        ]
        n = bisect_right(at, design.budget, key=trainable)
        return at[max(n - 1, 0)] if at else design

    reach = budget if bytes is None else budget // BYTES
    # what was measured beyond the next budget is hardly ever as small, and counting takes time
    most = min(
        (design.budget for design in evidence.designs if design.budget >= reach), default=reach
    )
    found: list[Suggestion] = []
    larger: list[tuple[float, str]] = []
    refused: list[str] = []
    for design in (one for one in evidence.ranked(n_base) if one.budget <= most):
        try:
            one = count(sized(design))
            if reason := refuses(one.config):
                raise ConfigError(reason)
        except QpeftError as error:
            refused.append(f"{design.label}: {error}")
            continue
        if (n := getattr(one.plan, size)) > budget:
            larger.append((n, design.label))
        elif (
            not min(r["trainable"] for r in design.results) / 2
            <= one.plan.trainable
            <= design.budget
        ):
            refused.append(
                f"{design.label}: its {one.plan.trainable:,} here are far from the size that was"
                " measured"
            )
        else:
            found.append(one)
        if len(found) > _ALTERNATIVES:
            break
    if found:
        first, *others = (replace(one, notes=_notes(evidence, one, parameters)) for one in found)
        return replace(first, alternatives=others)
    if not larger:
        raise ConfigError(
            f"no measured adapter fits what was asked; the first reason is: {refused[0]}"
        )
    n, label = min(larger)
    raise ConfigError(
        f"{name} {budget:,} is too small: the smallest measured adapter for this base, {label}, has"
        f" {n:,}; raise {name}"
    )


def _counted(
    evidence: Evidence,
    design: Design,
    model: nn.Module,
    frames: str | Path | None,
    *,
    in_bytes: bool,
) -> Suggestion:
    """The design on this base. Raises QpeftError if it cannot adapt the base, or use the frame
    file.
    """
    settings, method = fill_names(design.settings, model), design.method
    has_frames = settings.get("frame") in ("gradient", "sign")
    counts = plan(model, _config(method, settings))
    if frames is not None:
        if not has_frames:
            raise ConfigError("it has no frames of the gradient and takes no frame file")
        settings = {
            "target_modules": get(method).defaults["target_modules"],
            **settings,
            "frames": str(frames),
        }
        n_trainable, counts = counts.trainable, plan(model, _config(method, settings))
        if counts.trainable != n_trainable:
            raise ConfigError("the frame file has fewer directions than frame_rank of this adapter")
    needs_file = frames is None and has_frames and in_bytes
    if needs_file:
        counts = replace(counts, stored_bytes=counts.stored_bytes - counts.sizes["frame_bytes"])
    fields = {**vars(design), "settings": settings, "reference": evidence.reference}
    if (
        design.per_lora
    ):  # Uni-LoRA divides what it trains by the root of how many parameters of its LoRA have it
        times = math.sqrt(plan(model, _config("lora", {"r": 1})).trainable / design.per_lora)
        fields["learning_rates"] = {
            name: float(f"{x * times:.2g}") for name, x in design.learning_rates.items()
        }
    return Suggestion(**fields, plan=counts, needs_frame_file=needs_file)


def _config(method: str, settings: Mapping[str, Any]) -> PeftConfig:
    record = get(method)
    with warnings.catch_warnings(
        action="ignore"
    ):  # PEFT's on projections that are not saved, for each adapter
        return record.config_class(**{**record.defaults, **settings, "task_type": _TASK})


def _notes(evidence: Evidence, found: Suggestion, parameters: int | None) -> list[str]:
    """What limits the evidence and the use of the adapter."""
    notes, n_base = [], found.plan.base_parameters
    if n_base > 2 * (largest := max(row["base_parameters"] for row in found.results)):
        notes.append(
            f"the evidence ends at bases of {largest:,} parameters; the order of adapters may"
            " differ"
        )
    most = max(design.budget for design in evidence.designs)
    if parameters is not None and parameters > most:
        notes.append(f"the evidence ends at {most:,} trainable parameters")
    if lost := evidence.lost.get(str(found.budget)):
        notes.append(_LOST.format(found.budget, min(lost), max(lost)))
    if (n_bytes := found.plan.sizes.get("frame_bytes")) and "frames" not in found.settings:
        notes.append(_FRAME_FILE.format(n_bytes))
    return notes


# -- the evidence


class Evidence(NamedTuple):
    """Designs that were measured in the same setups with the same seeds."""

    reference: str  # whose gain is 1
    designs: list[Design]
    lost: dict[
        str, list[float]
    ]  # by budget: shares of the best adapter's gain on bases that a choice did not know

    def ranked(self, parameters: int) -> list[Design]:
        """The designs by their share, the best first; if there are results on a base of this size,
        with these alone.
        """
        own = [
            [r for r in design.results if r["base_parameters"] == parameters]
            for design in self.designs
        ]
        designs = [
            replace(design, results=r or design.results)
            for design, r in zip(self.designs, own, strict=True)
        ]
        return sorted(designs, key=lambda design: (-design.share, design.label))


@cache
def read_evidence() -> Evidence:
    """The evidence that is part of qpeft."""
    content = json.loads((files("qpeft.methods") / "evidence.json").read_bytes())
    return Evidence(**{**content, "designs": [Design(**design) for design in content["designs"]]})


# -- settings of a study that stand for modules of its base


def fill_names(settings: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """`settings` with names of modules of `model` instead of "@norms" and others. Raises
    ConfigError if it has none.
    """
    return {
        name: _modules(value, model) if value in (NORMS, LAST_NORM) else value
        for name, value in settings.items()
    }


def _modules(stands_for: str, model: nn.Module) -> list[str]:
    """The last parts of the names of all normalizations; the name of the last one."""
    found = [
        name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()
    ]
    if not found:
        raise ConfigError(f"{type(model).__name__} has no module that {stands_for} stands for")
    if stands_for == LAST_NORM:  # after the last block: neither in a block nor in the embeddings
        outside = [
            name
            for name in found
            if not any(part.isdigit() or "embed" in part for part in name.split("."))
        ]
        return [(outside or found)[-1]]
    return sorted({name.rpartition(".")[2] for name in found})
