"""The contract of a PEFT method."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from qpeft.core.export import export, has_stock_form
from qpeft.errors import ConfigError
from qpeft.testing.checks import close, disturb, refused, run_checks, same

_CLOSE = 1e-5  # relative to the largest logit, in float32
# steps of differences: float64 models still compute norms and losses in float32
_STEP = 5e-3
_LONGEST = 0.3
_RISE = 5e-5  # of the loss in a step, above its rounding
# differences of fourth order: circuits on inputs curve within a step
_POINTS = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
_SLOPE = 1e-2  # of the gradient's norm


def adapter_contract(
    make_base: Callable[[], nn.Module],
    make_config: Callable[[], PeftConfig],
    batch: Mapping[str, Tensor],
    *,
    lr: float = 2e-3,
    starts_at_base: bool = True,
    exact_gradient: bool = True,
) -> None:
    """Check the contract of a PEFT method; raises AssertionError at the first violation.

    Checked:
        the outputs of the base before training; only the parameters of the adapter are trainable;
        five steps of AdamW reduce the loss; its gradient matches finite differences (1 %) in a random direction;
        after a change of the parameters, no trainable tensor has a missing or zero gradient;
        a deep copy is independent; `disable_adapter`; a second adapter next to the first;
        `save_pretrained` and `from_pretrained` keep the outputs exactly;
        `merge_and_unload`, `merge_adapter` and `unmerge_adapter`;
        `qpeft.export` produces an adapter that PEFT loads as one of its own types.

    A tuner whose tensors are not generated has no equivalent in PEFT: it must refuse the export,
    and merging unless it has an attribute `merges` that is true. An equivalent is declared by a
    method `stock_problem` that returns "".

    Args:
        make_base: Returns a small model without dropout that also runs in float64, with the same
            weights at every call.
        make_config: Returns the config of the method.
        batch: Inputs and `labels`, (rows, tokens), of at least two rows, without padding; the loss must be the mean
            over rows.
        lr: Learning rate of AdamW.
        starts_at_base: Whether the untrained adapter leaves the outputs unchanged.
        exact_gradient: Whether it trains with the exact gradient of the loss; DoRA, for example,
            detaches a norm.
    """
    base = _logits(make_base(), batch)
    same(
        _logits(make_base(), batch), base, "make_base() must return the same weights at every call"
    )
    model: Any = get_peft_model(make_base(), make_config()).eval()  # type: ignore[arg-type]
    if starts_at_base:
        same(
            _logits(model, batch),
            base,
            "an untrained adapter changes the outputs, if only in their last bits",
        )
    _check_trainable(model, "default")
    run_checks(
        (
            "five steps of AdamW; `forward` must not cache between steps",
            lambda: _check_training(model, batch, lr),
        ),
        (
            "gradients",
            lambda: _check_gradient(copy.deepcopy(model).double(), batch, exact=exact_gradient),
        ),
        ("a deep copy", lambda: _check_copy(model, batch, lr)),
        ("from_pretrained()", lambda: _check_folder(model, make_base, batch)),
        ("a second adapter", lambda: _check_second(model, make_config(), batch, lr, base)),
    )
    exported = partial(_exported, model, make_base)
    live = _logits(model, batch)
    has_stock = has_stock_form(model)
    checks = []
    if has_stock or getattr(model.base_model, "merges", False):
        checks.append(("merging", lambda: _check_merge(copy.deepcopy(model), batch, live)))
    else:
        refused("merging", ConfigError, model.merge_and_unload)
    if has_stock:
        checks.append(
            ("qpeft.export", lambda: _check_same(exported(), batch, live, "it changes the outputs"))
        )
    else:
        refused("the export", ConfigError, exported)
    run_checks(*checks)
    same(
        _logits(model, batch),
        live,
        "merging a copy, or qpeft.export, changes the model",
    )


def _check_trainable(model: Any, adapter_name: str) -> None:
    names = list(_trained(model))
    assert names, "there are no trainable parameters"
    others = [name for name in names if adapter_name not in name.split(".")]
    assert not others, f"{others[0]} is trainable, but does not belong to adapter '{adapter_name}'"


def _check_training(model: Any, batch: Mapping[str, Tensor], lr: float) -> None:
    before = _train(model, batch, lr)
    after = model(**batch).loss.item()
    assert after < before, (
        f"with lr={lr} they must reduce the loss; it changed from {before} to {after}"
    )


def _check_gradient(double: Any, batch: Mapping[str, Tensor], *, exact: bool) -> None:
    """In float64, with changed parameters, because initially that of LoRA's lora_A is 0."""
    trained = _trained(double)
    draw = torch.Generator().manual_seed(0)
    disturb([*trained.values()], draw)
    double(**batch).loss.backward()
    for name, parameter in trained.items():
        is_used = parameter.grad is not None and parameter.grad.any()
        assert is_used, f"{name} is trainable but has no gradient: it does not affect the output"
    start = torch.cat([p.detach().flatten() for p in trained.values()])
    gradient = torch.cat([p.grad.flatten() for p in trained.values() if p.grad is not None])
    # along the gradient with random weights: slopes of single entries are below the rounding error
    uphill = gradient * torch.randn(len(gradient), generator=draw).abs().to(gradient)
    direction = uphill / uphill.norm()
    step = min(max(_STEP, _RISE / gradient.norm().item()), _LONGEST)

    def loss(point: int) -> float:
        at = (start + point * step * direction).split([p.numel() for p in trained.values()])
        with torch.no_grad():
            for parameter, values in zip(trained.values(), at, strict=True):
                parameter.copy_(values.view_as(parameter))
        return double(**batch).loss.item()

    slope = sum(weight * loss(point) for point, weight in _POINTS.items()) / step
    distance = abs(gradient @ direction - slope) / gradient.norm()
    assert distance <= _SLOPE or not exact, (
        f"the gradient is off by {distance:.1e} of its norm from finite differences"
    )


def _check_copy(model: Any, batch: Mapping[str, Tensor], lr: float) -> None:
    live = _logits(model, batch)
    twin = copy.deepcopy(model)
    same(_logits(twin, batch), live, "it has different outputs")
    _train(twin, batch, lr)
    same(
        _logits(model, batch),
        live,
        "training it changes the model it was copied from",
    )
    assert not torch.equal(_logits(twin, batch), live), "training does not change it"


def _check_folder(model: Any, make_base: Callable[[], Any], batch: Mapping[str, Tensor]) -> None:
    live = _logits(model, batch)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for options in ({}, {"low_cpu_mem_usage": True}):
            loaded = PeftModel.from_pretrained(make_base(), folder, **options)  # type: ignore[arg-type]
            same(
                _logits(loaded, batch),
                live,
                f"with {options} it changes the outputs: a tensor is not saved",
            )


def _check_second(
    model: Any, config: PeftConfig, batch: Mapping[str, Tensor], lr: float, base: Tensor
) -> None:
    first = _logits(model, batch)
    model.add_adapter("second", config)
    same(_logits(model, batch), first, "adding it changes the active one")
    model.set_adapter("second")
    assert not torch.equal(_logits(model, batch), first), "set_adapter() has no effect"
    _check_trainable(model, "second")
    _train(model, batch, lr)
    model.set_adapter("default")
    same(_logits(model, batch), first, "training it changes the first")
    model.delete_adapter("second")
    same(_logits(model, batch), first, "deleting it changes the first")
    with model.disable_adapter():
        same(
            _logits(model, batch),
            base,
            "disable_adapter() does not restore the outputs of the base",
        )


def _check_merge(model: Any, batch: Mapping[str, Tensor], live: Tensor) -> None:
    for name in ("merge_adapter", "unmerge_adapter", "merge_and_unload"):
        _check_same(
            getattr(model, name)() or model,
            batch,
            live,
            f"{name}() changes the outputs",
        )


def _exported(model: Any, make_base: Callable[[], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        export(model, Path(folder) / "exported")
        stock: Any = PeftModel.from_pretrained(make_base(), f"{folder}/exported")
    for part in (stock.base_model, stock.peft_config["default"]):
        assert type(part).__module__.startswith("peft."), (
            f"to_stock() returns {type(part)}, not a class of PEFT"
        )
    return stock


def _check_same(model: Any, batch: Mapping[str, Tensor], live: Tensor, what: str) -> None:
    close(_logits(model, batch), live, _CLOSE * max(1.0, live.abs().max().item()), what)


def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs).logits


def _trained(model: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _train(model: Any, batch: Mapping[str, Tensor], lr: float) -> float:
    """Five steps; the loss before them."""
    optimizer = torch.optim.AdamW(_trained(model).values(), lr=lr)
    losses = []
    for _ in range(5):
        losses.append(model(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses[0].item()
