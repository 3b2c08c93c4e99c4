"""`qpeft.suggest`: the adapter that the evidence recommends for a base model and a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from peft import PeftConfig
from torch import nn
from transformers import PretrainedConfig

from qpeft.core.frame_file import read_frame_file
from qpeft.core.meta_model import on_meta
from qpeft.core.pool import why_not_mixed
from qpeft.errors import ConfigError, QpeftError
from qpeft.methods.counting import TASK, Counts, config_of, has_frames
from qpeft.methods.evidence import LARGE, Design, Evidence, read_evidence
from qpeft.methods.plan import BYTES, Plan

_ALTERNATIVES = 3
_LOST = (
    "within {:,} parameters, choices from results of other bases lost {:.1%} to {:.1%} of the best"
    " gain measured there"
)
_FRAME_FILE = (
    "its frames are {:,} bytes, stored with each adapter unless a frame file has them for all:"
    " write one with qpeft frames or qpeft.fit_frames(model, batches, save_to=FILE), and give it to"
    " each as --frames FILE or frames=FILE. Make it from the texts of the adapters that will use it"
)
_LARGEST_RATE = (
    "its learning rate grows with the base; no base of this size was measured, so it is the largest"
    " that was, {:g}: try others too"
)
_OF_LARGE = (
    "of all adapters only {} were measured on {}; their place among the others is that on bases of"
    " far fewer parameters"
)
_LORA_GA = (
    "its initial values come from the gradient: qpeft train computes them; in your own script call"
    " peft.tuners.lora.loraga.preprocess_loraga before get_peft_model, or it is a plain LoRA"
)


@dataclass(frozen=True)
class Suggestion(Design):
    """An adapter with its evidence, and its counts on the base model."""

    plan: Plan  #: with a frame file, if it needs one
    needs_frame_file: bool  #: whether it has the counted bytes only with a frame file
    reference: str
    notes: list[str] = field(default_factory=list)
    #: the next best within the budget, at most three
    alternatives: list[Suggestion] = field(default_factory=list)

    @property
    def config(self) -> PeftConfig:
        """A new PEFT config of the adapter. It refers to a frame file only if `suggest` was given
        one.
        """
        return config_of(self.method, self.settings)


def suggest(
    base: nn.Module | PretrainedConfig | str | Path,
    *,
    parameters: int | None = None,
    bytes: int | None = None,
    frames: str | Path | None = None,
    mixed_batches: bool = False,
    refuses: Callable[[PeftConfig], str | None] = lambda config: None,
    trust_remote_code: bool = False,
) -> Suggestion:
    """The best measured adapter of a causal language model with at most so many trainable
    parameters or stored bytes.

    The adapters of the evidence are counted on `base`, without those that were measured with far
    more parameters. Of those within the budget, the one with the highest mean share of the
    reference's gain is suggested, quantum or classical. If the evidence has results on `base`,
    recognized by its number of parameters, only these count. On a base above 50 million parameters
    results on such bases count first: they order the families that have them, and give their
    learning rates. Notes say on which base the answer rests, and, where it is known, how much of the
    gain choices lost on a base unknown to them.

    The learning rate is the one that loses the least in the search where it loses most: of the gain
    in validation loss at the best rate, plus a twentieth of what the next higher one loses, since a
    rate may be too high on another base. That of Uni-LoRA grows with the root of the number of
    parameters of its LoRA, up to the largest rate that was measured.

    Args:
        base: A model (not changed), a hub id, a local folder, or a transformers config; no weights
            are read.
        parameters: Most trainable parameters. Give this or `bytes`.
        bytes: Most bytes of the saved adapter's tensors, as in `Plan.stored_bytes`: without the
            header of its file, its config, and gradient frames, which a file that many adapters
            share can contain.
        frames: A frame file of `base`. Only adapters that it has frames for are considered; they
            refer to it.
        mixed_batches: Only adapters that `AdapterPool` serves in one batch with others of their
            kind.
        refuses: Maps a config to the reason why its adapter cannot be used, or None; such adapters
            are left out.
        trust_remote_code: Execute Python code that the folder or repository of `base` contains.

    Raises:
        ConfigError: not one budget, no adapter is as small or fits, the base is not found, has an
            adapter already or cannot be adapted, or there is no frame file at `frames`.
        CheckpointError: `frames` is damaged or not a frame file.
    """
    in_bytes = parameters is None
    budget = bytes if in_bytes else parameters
    if not isinstance(budget, int) or budget < 1 or None not in (parameters, bytes):
        raise ConfigError(
            f"give one budget, parameters or bytes, of at least 1; got {parameters} and {bytes}"
        )
    model = on_meta(base, TASK, trust_remote_code)
    if frames is not None:
        read_frame_file(frames).check_base(base if isinstance(base, nn.Module) else model)
    counts = Counts(model, frames, shares_frames=in_bytes)
    evidence = read_evidence()
    wish = _Wish(budget, in_bytes, frames is not None, mixed_batches, refuses)
    suggestions: list[Suggestion] = []
    larger: list[_Larger] = []
    refused: list[str] = []  # labels with reasons
    for candidate in _within_reach(evidence, model, budget // BYTES if in_bytes else budget):
        try:
            answer = _considered(candidate, wish, counts, evidence)
        except QpeftError as error:
            # It does not fit the base or the frame file. Its config, PEFT and the file raise the
            # reason, and for one of many candidates this reason is the answer.
            answer = str(error)
        if isinstance(answer, _Larger):
            larger.append(answer)
        elif isinstance(answer, str):
            refused.append(f"{candidate.label}: {answer}")
        else:
            notes = _notes(evidence, answer, parameters)
            suggestions.append(replace(answer, notes=[*notes, *answer.notes]))
        if len(suggestions) > _ALTERNATIVES:
            break
    if suggestions:
        best, *others = suggestions
        return replace(best, alternatives=others)
    if not larger:
        raise ConfigError(
            f"no measured adapter fits what was asked; the first reason is: {refused[0]}"
        )
    name = "bytes" if in_bytes else "parameters"
    smallest = min(larger)
    raise ConfigError(
        f"{name} {budget:,} is too small: the smallest measured adapter for this base,"
        f" {smallest.label}, has {smallest.size:,}; raise {name}"
    )


class _Wish(NamedTuple):
    """What `suggest` was asked for."""

    budget: int
    in_bytes: bool
    has_frame_file: bool
    mixed_batches: bool
    refuses: Callable[[PeftConfig], str | None]


class _Larger(NamedTuple):
    """An adapter beyond the budget, by its size."""

    size: int
    label: str


def _within_reach(evidence: Evidence, model: nn.Module, parameters: int) -> list[Design]:
    """The designs for a budget of so many parameters, the best on this base first.

    Those of the study's next larger budget are included, because they may be smaller here.
    """
    budgets = {design.budget for design in evidence.designs}
    most = min((budget for budget in budgets if budget >= parameters), default=parameters)
    return evidence.ranked(sum(p.numel() for p in model.parameters()), most, parameters)


def _considered(
    candidate: Design, wish: _Wish, counts: Counts, evidence: Evidence
) -> Suggestion | _Larger | str:
    """The candidate as a suggestion for the base; its size there if that is beyond the budget; or
    the reason why it is left out.

    Raises QpeftError if the adapter does not fit the base, or the frame file.
    """
    # the cheapest questions first
    if wish.has_frame_file and not has_frames(candidate):
        return "it has no frames of the gradient and takes no frame file"
    if wish.mixed_batches:
        config = config_of(candidate.method, candidate.settings_for(counts.model))
        reason = why_not_mixed(counts.model, config)
        if reason is not None:
            return reason
    design = counts.sized(candidate)
    size = counts.expected(design)
    n = size.stored_bytes if wish.in_bytes else size.trainable
    if n > wish.budget:
        return _Larger(n, design.label)
    if not design.is_near(size.trainable):
        return f"its {size.trainable:,} here are far from the size that was measured"
    reason = wish.refuses(config_of(design.method, design.settings_for(counts.model)))
    if reason:
        return reason
    needs_file = wish.in_bytes and not wish.has_frame_file and has_frames(design)
    return _suggestion(evidence, design, counts, needs_file)


def _suggestion(
    evidence: Evidence, design: Design, counts: Counts, needs_frame_file: bool
) -> Suggestion:
    """The design with its cost on this base, and the learning rate for it."""
    settings, costs = counts.exact(design)
    rates = design.learning_rates
    notes = []
    if design.per_lora:
        # Uni-LoRA divides what it trains by the root of the number of parameters of its LoRA that
        # share one of them, so that the rate grows with it
        factor = math.sqrt(counts.lora_parameters() / design.per_lora)
        grown = {base: float(f"{rate * factor:.2g}") for base, rate in rates.items()}
        # not beyond the bases from which this is known
        most = max(rates.values())
        if replace(design, learning_rates=grown).learning_rate > most:
            notes.append(_LARGEST_RATE.format(most))
        rates = {base: min(rate, most) for base, rate in grown.items()}
    sized = replace(design, settings=settings, learning_rates=rates)
    return Suggestion(
        **vars(sized),
        plan=costs,
        needs_frame_file=needs_frame_file,
        reference=evidence.large_reference if _is_of_large(design) else evidence.reference,
        notes=notes,
    )


def _is_of_large(design: Design) -> bool:
    """Whether its results are on a base above LARGE."""
    return design.results[0]["base_parameters"] > LARGE


def _notes(evidence: Evidence, suggestion: Suggestion, parameters: int | None) -> list[str]:
    """What limits the evidence and the use of the adapter."""
    notes = []
    largest = max(result["base_parameters"] for result in suggestion.results)
    if suggestion.plan.base_parameters > 2 * largest:
        notes.append(
            f"the evidence ends at bases of {largest:,} parameters; the order of adapters may"
            " differ"
        )
    if _is_of_large(suggestion):
        of_budget = (d for d in evidence.large.values() if d.budget == suggestion.budget)
        families = sorted(design.label.partition(",")[0] for design in of_budget)
        notes.append(_OF_LARGE.format(", ".join(families), suggestion.results[0]["base"]))
    most = max(suggestion.budget, *(design.budget for design in evidence.designs))
    if parameters is not None and parameters > most:
        notes.append(f"the evidence ends at {most:,} trainable parameters")
    lost = evidence.lost.get(str(suggestion.budget))
    if lost:
        notes.append(_LOST.format(suggestion.budget, min(lost), max(lost)))
    frame_bytes = suggestion.plan.sizes.get("frame_bytes")
    if frame_bytes and "frames" not in suggestion.settings:
        notes.append(_FRAME_FILE.format(frame_bytes))
    if suggestion.settings.get("init_lora_weights") == "lora_ga":
        notes.append(_LORA_GA)
    return notes
