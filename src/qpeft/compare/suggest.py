"""`qpeft.suggest`: the adapter that the evidence recommends for a base model and a budget."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from peft import PeftConfig
from torch import nn
from transformers import PretrainedConfig

from qpeft import methods
from qpeft.checks import is_count
from qpeft.compare.base_names import fill_names
from qpeft.compare.evidence import Design, Evidence, is_better, read_evidence
from qpeft.core.frame_file import FrameFile, read_frame_file
from qpeft.core.meta_model import on_meta
from qpeft.core.serving.pool import why_not_mixed
from qpeft.core.stock_servers import check_config
from qpeft.errors import ConfigError, QpeftError, setting
from qpeft.methods.counting import Plan
from qpeft.methods.planning import plan
from qpeft.training.methods import build_config
from qpeft.training.settings import TrainSettings
from qpeft.training.task_types import TASKS

_FRAME_FILE = (
    "its bytes are those with a frame file, which many adapters share: write one with qpeft frames, and give it to "
    "qpeft train as --frames FILE; in Python call qpeft.fit_frames(model, batches, save_to=FILE), and set frames=FILE "
    "in the config of every further adapter. Otherwise it stores its frames and is larger"
)

_OTHER_FRAMES = "its frames are those of the given file; in the evidence they were computed from the training text"


@dataclass(frozen=True)
class Measured:
    """What the adapter reached in one setup of the evidence, with the 95 % interval of its mean over the seeds."""

    base: str
    base_parameters: int
    data: str
    steps: int
    seeds: int  #: how many
    trainable: int  #: there
    loss: float  #: mean test loss, in nats per token
    low: float | None  #: None for one seed
    high: float | None
    share: float  #: of the reference's gain in test loss


@dataclass(frozen=True)
class Alternative:
    """An adapter within the budget that is not shown to be worse in every setup."""

    label: str
    method: str
    settings: dict[str, Any]
    trainable: int
    stored_bytes: int
    share: float
    learning_rate: float
    needs_frame_file: bool  #: whether it has these bytes only with a frame file


@dataclass(frozen=True)
class Suggestion:
    """An adapter with its counts on the base model, and the evidence for it."""

    label: str
    method: str  #: as in `qpeft train --method`
    settings: dict[str, Any]  #: of the method
    learning_rate: float  #: safe in the evidence, whose bases are small and whose runs are short
    share: float  #: mean over the setups; the reference's gain is 1
    plan: Plan
    study: str
    reference: str
    evidence: list[Measured]
    alternatives: list[Alternative]  #: the best first
    notes: list[str]
    needs_frame_file: bool = False  #: whether it has the counted bytes only with a frame file

    @property
    def config(self) -> PeftConfig:
        """A new PEFT config of the adapter. It refers to a frame file only if `suggest` was given one."""
        return _config(self.method, self.settings)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def suggest(
    base: nn.Module | PretrainedConfig | str | Path,
    *,
    parameters: int | None = None,
    bytes: int | None = None,
    frames: str | Path | None = None,
    stock_servers: bool = False,
    mixed_batches: bool = False,
    trust_remote_code: bool = False,
) -> Suggestion:
    """The best measured adapter of a causal language model with at most so many trainable parameters or stored bytes.

    Every adapter of the evidence is counted on `base`. Of those within the budget, the one with the highest mean share
    of the reference's gain is suggested, quantum or classical. If the evidence has results on `base`, recognized by its
    number of parameters, only these count. Only adapters that were measured are suggested, with the settings that
    were measured.

    The learning rate is the largest that is safe in all setups of the evidence (a base and a text). There, a learning
    rate costs the share of the adapter's gain in validation loss that it, or the next higher one that was tried, loses
    to the best one; from one on that failed it costs the whole gain. Safe is a learning rate whose highest cost is
    within 5 % of the gain of the lowest possible. It can be below the best one of each setup, because a learning rate
    next to one that fails can fail on another base.

    Args:
        base: A model (not changed), a hub id, a local folder, or a transformers config; no weights are read.
        parameters: Most trainable parameters. Give this or `bytes`.
        bytes: Most bytes of the saved adapter's tensors, as in `Plan.stored_bytes`: without the header of its file,
            its config, and a frame file, which many adapters share.
        frames: A frame file of `base`. Only adapters that it has frames for are considered; they refer to it, and
            their frames are not counted.
        stock_servers: Only adapters whose export vLLM and TRL load, if vLLM supports LoRA for the architecture: LoRA
            without norm gains, not on the output head.
        mixed_batches: Only adapters that `AdapterPool` can serve in one batch with others of their kind: QPA and
            Quantum-PEFT without norm gains.
        trust_remote_code: Execute Python code that the folder or repository of `base` contains.

    Raises:
        ConfigError: not one budget, no adapter is as small or fits, the base is not found, has an adapter already or
            cannot be adapted, or there is no frame file at `frames`.
        CheckpointError: `frames` is damaged or not a frame file.

    Example::

        found = qpeft.suggest("gpt2", parameters=5000)
        model = get_peft_model(base, found.config)
    """
    name, unit, budget = _budget(parameters, bytes)
    file = None if frames is None else read_frame_file(frames)
    model = on_meta(base, TASKS[TrainSettings.task].peft_type, trust_remote_code)
    evidence = read_evidence().of_base(sum(p.numel() for p in model.parameters()))
    if file is not None:
        file.check_base(base if isinstance(base, nn.Module) else model)
    best, within, notes = None, [], []
    too_large: dict[str, int] = {}
    refused: list[str] = []
    misfits: list[str] = []
    designs = (design for design in evidence.ranked() if best is None or not is_better(best[0], design))
    asked = {"in_bytes": bytes is not None, "stock_servers": stock_servers, "mixed_batches": mixed_batches}
    counted = _counted(designs, model, refused, file=file, **asked)
    for design, settings, found, misfit in counted:
        size = found.trainable if bytes is None else found.stored_bytes
        if misfit is not None:
            misfits.append(f"{design.label}: {misfit}")
            if best is None and size <= budget and not notes:
                notes.append(f"{design.label} is better in the evidence and within the budget, but {misfit}")
        elif size > budget:
            too_large[design.label] = size
        elif best is None:
            best = design, settings, found
        else:
            within.append(_alternative(evidence, design, settings, found, frames))
    if best is None:
        raise ConfigError(_none_fits(setting(name), unit, budget, too_large, [*misfits, *refused]))
    if stock_servers:
        notes.append("whether vLLM supports LoRA for the architecture of this base depends on the release of vLLM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, as above
        if bytes is None and frames is None:
            notes += _with_a_frame_file(model, best[0], best[2])
        return _suggestion(model, evidence, *best, within, budget if bytes is None else None, frames, notes)


def _budget(parameters: int | None, n_bytes: int | None) -> tuple[str, str, int]:
    """The name of the given budget, its unit and value. Raises ConfigError unless exactly one is given."""
    given = {"parameters": ("trainable parameters", parameters), "bytes": ("stored bytes", n_bytes)}
    asked = [(name, unit, value) for name, (unit, value) in given.items() if value is not None]
    if len(asked) != 1:
        raise ConfigError(f"give one budget, {setting('parameters')} or {setting('bytes')}")
    name, unit, value = asked[0]
    if not is_count(value):
        raise ConfigError(f"{setting(name)} must be an integer of at least 1, got {value!r}")
    return name, unit, value


def _counted(
    designs: Iterable[Design],
    model: nn.Module,
    refused: list[str],
    *,
    in_bytes: bool,
    file: FrameFile | None,
    stock_servers: bool,
    mixed_batches: bool,
) -> Iterator[tuple[Design, dict[str, Any], Plan, str | None]]:
    """Each design, in this order, with its settings and counts on `model`, and why the frame file does not suit it.

    An adapter without its frames, which could not be loaded, has a frame file if the budget is in bytes, and otherwise
    stores them. If there is a frame file, only adapters in gradient frames are counted; with `stock_servers`, only
    those whose export all servers load, and with `mixed_batches` only those that a pool mixes. `refused` receives why
    others are not counted.
    """
    for design in designs:
        try:
            settings = fill_names(design.settings, model)
            if file is not None:
                if not methods.get(design.method).takes_frame_file(settings):
                    refused.append(f"{design.label}: it has no gradient frames and takes no frame file")
                    continue
                settings = {**settings, "store_frames": False}
            elif not in_bytes:
                settings = _loadable(design.method, settings)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT's on types of layers and on projections, for each design
                config = _config(design.method, settings)
                found = plan(model, config)
                misfit = None if file is None else _misfit(file, model, design, settings, found)
            reasons = [*_refusals(config), *_conditions(config)] if stock_servers else []
            reasons += _mixing(model, config) if mixed_batches else []
            if reasons:
                refused.append(f"{design.label}: {reasons[0]}")
                continue
        except QpeftError as error:
            refused.append(f"{design.label}: {error}")
            continue
        yield design, settings, found, misfit


def _config(method: str, settings: dict[str, Any]) -> PeftConfig:
    return build_config(TrainSettings(model="", data="", out="", method=method, method_settings=settings))


def _loadable(method: str, settings: dict[str, Any], frames: str | Path | None = None) -> dict[str, Any]:
    """The settings, with `frames` or none instead of `store_frames` if the adapter leaves out its frames."""
    if not methods.get(method).leaves_out_frames(settings):
        return settings
    others = {name: value for name, value in settings.items() if name != "store_frames"}
    if frames is None:
        return others
    # without target_modules an adapter has those of its frame file
    return {"target_modules": methods.get(method).defaults["target_modules"], **others, "frames": str(frames)}


def _misfit(file: FrameFile, model: nn.Module, design: Design, settings: dict[str, Any], found: Plan) -> str | None:
    """Why the adapter that was measured cannot have the frames of this file."""
    if missing := sorted({*found.target_modules} - {*file.modules}):
        names = sorted({name.rpartition(".")[2] for name in found.target_modules})
        return (
            f"the frame file has no frames for {missing[0]}; write one for all of its modules: qpeft frames "
            f"with --target-modules {','.join(names)}"
        )
    config: Any = _config(design.method, _loadable(design.method, settings, file.path))
    try:
        has_all = plan(model, config).trainable == found.trainable
    except ConfigError:
        has_all = False
    if not has_all:
        return f"it needs more directions than the frame file has, {setting('frame_rank')} {config.frame_rank}"
    return None


def _with_a_frame_file(model: nn.Module, design: Design, found: Plan) -> list[str]:
    """A note on the bytes of an adapter that stores its frames, and was measured without them."""
    if not methods.get(design.method).leaves_out_frames(design.settings):
        return []
    with_file = plan(model, _config(design.method, fill_names(design.settings, model)))
    return [
        f"it stores its frames: {found.stored_bytes:,} bytes, {with_file.stored_bytes:,} with a frame file that many "
        "adapters share (qpeft frames, then --frames FILE)"
    ]


def _none_fits(name: str, unit: str, budget: int, too_large: dict[str, int], refused: list[str]) -> str:
    if not too_large:
        return f"no measured adapter fits what was asked; the first reason is: {refused[0]}"
    label = min(too_large, key=too_large.__getitem__)
    return (
        f"{name} {budget:,} is too small: the smallest measured adapter for this model, {label}, has "
        f"{too_large[label]:,} {unit}; raise {name}"
    )


def _alternative(
    evidence: Evidence, design: Design, settings: dict[str, Any], found: Plan, frames: str | Path | None
) -> Alternative:
    share = fmean(evidence.shares(design))
    loadable = _loadable(design.method, settings, frames)
    counts = found.trainable, found.stored_bytes
    needs_frame_file = loadable != settings
    return Alternative(
        design.label, design.method, loadable, *counts, share, evidence.learning_rate(design), needs_frame_file
    )


def _suggestion(
    model: nn.Module,
    evidence: Evidence,
    design: Design,
    settings: dict[str, Any],
    found: Plan,
    alternatives: list[Alternative],
    parameters: int | None,
    frames: str | Path | None,
    notes: list[str],
) -> Suggestion:
    shares = evidence.shares(design)
    loadable = _loadable(design.method, settings, frames)
    needs_frame_file = loadable != settings
    measured = []
    for setup, result, share in zip(evidence.setups, design.results, shares, strict=True):
        mean, reach = result.stats.mean, result.stats.half_width
        low, high = (None, None) if reach is None else (mean - reach, mean + reach)
        about = setup.model_dump(include={"base", "base_parameters", "data", "steps"})
        about["seeds"] = len(result.losses)
        measured.append(Measured(**about, trainable=result.trainable, loss=mean, low=low, high=high, share=share))
    return Suggestion(
        label=design.label,
        method=design.method,
        settings=loadable,
        learning_rate=evidence.learning_rate(design),
        share=fmean(shares),
        plan=found,
        study=evidence.study,
        reference=evidence.reference,
        evidence=measured,
        alternatives=alternatives,
        notes=[
            *notes,
            *_measured_with_more(measured, parameters),
            *_notes(evidence, design.method, loadable, found, parameters),
            *_mixing(model, _config(design.method, loadable)),
            *([_FRAME_FILE if frames is None else _OTHER_FRAMES] * needs_frame_file),
        ],
        needs_frame_file=needs_frame_file,
    )


def _measured_with_more(measured: list[Measured], parameters: int | None) -> list[str]:
    if parameters is None or (most := max(measured, key=lambda one: one.trainable)).trainable <= parameters:
        return []
    return [f"the evidence has it with up to {most.trainable:,} parameters, on {most.base}: more than the budget"]


def _notes(evidence: Evidence, method: str, settings: dict[str, Any], found: Plan, parameters: int | None) -> list[str]:
    notes = []
    largest_base = max(setup.base_parameters for setup in evidence.setups)
    if found.base_parameters > 2 * largest_base:
        notes.append(
            f"the largest base of the evidence has {largest_base:,} parameters, this one {found.base_parameters:,}; "
            "the order of adapters may differ"
        )
    largest = max(result.trainable for design in evidence.designs for result in design.results)
    if parameters is not None and parameters > largest:
        notes.append(f"the evidence ends at {largest:,} trainable parameters")
    record, config = methods.get(method), _config(method, settings)
    if record.ask("calibrate", config) or record.ask("fit", config):
        notes.append("a part of it is computed from training data before the first step; qpeft train does this")
    loading = [check for check in check_config(config) if not check.reasons]
    options = {f"a server needs {check.option} for its export" for check in loading if check.option}
    return [*notes, *_refusals(config), *_conditions(config), *sorted(options)]


def _mixing(model: nn.Module, config: PeftConfig) -> list[str]:
    """Why a pool does not serve several such adapters in one batch."""
    reason = why_not_mixed(model, config)
    return [] if reason is None else [reason]


def _conditions(config: PeftConfig) -> list[str]:
    """Why stock servers load the exported adapter for some models only."""
    return [
        f"{check.server} loads its export for some models only: {check.condition}"
        for check in check_config(config)
        if check.condition and not check.reasons
    ]


def _refusals(config: PeftConfig) -> list[str]:
    """Why stock servers do not load the exported adapter."""
    return [
        f"{check.server} does not load its export: {'; '.join(check.reasons)}"
        for check in check_config(config)
        if check.reasons
    ]
