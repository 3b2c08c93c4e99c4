"""The contract of a PEFT method."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qpeft.core.adapter_form import own_kind
from qpeft.core.checkpoint import CONFIG, WEIGHTS
from qpeft.core.export import export
from qpeft.core.generator_holder import GeneratorHolder, holder_of
from qpeft.errors import CheckpointError, ConfigError
from qpeft.testing.finite_differences import slope

_CLOSE = 1e-5  # relative to the largest logit or to the norm of a gradient, in float32
_STEP = 1e-2  # of differences: float64 models still compute norms and losses in float32, an error of about 1e-3
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
        five steps of AdamW reduce the loss; its gradient matches finite differences (1 %) in a few random directions;
        after a change of the parameters, no trainable tensor has a missing or zero gradient;
        micro-batches give the gradient of the whole batch; a deep copy is independent; `disable_adapter`;
        a second adapter next to the first; `save_pretrained` and `from_pretrained` keep the outputs exactly;
        damaged folders of a generated adapter, and those of another seed, are refused;
        `merge_and_unload`, `merge_adapter` and `unmerge_adapter`;
        `qpeft.export` produces an adapter that PEFT loads as one of its own types.

    A tuner that declares by `own_kind` that PEFT has no equivalent must refuse merging and export.

    Args:
        make_base: Returns a small model without dropout that also runs in float64, with the same weights at every call.
        make_config: Returns the config of the method.
        batch: Inputs and `labels` of at least two rows, without padding; the loss must be the mean over rows.
        lr: Learning rate of AdamW.
        starts_at_base: Whether the untrained adapter leaves the outputs unchanged.
        exact_gradient: Whether it trains with the exact gradient of the loss; DoRA, for example, detaches a norm.
    """
    base = _logits(make_base(), batch)
    assert torch.equal(_logits(make_base(), batch), base), "make_base() must return the same weights at every call"
    model = get_peft_model(make_base(), make_config()).eval()  # type: ignore[arg-type]
    if starts_at_base:
        assert torch.equal(_logits(model, batch), base), "an untrained adapter changes the outputs"
    _check_trainable(model, "default")
    _check_learns(model, batch, lr)
    _check_gradient(model, batch, exact=exact_gradient)
    _check_micro_batches(model, batch)
    _check_copy(model, batch, lr)
    with model.disable_adapter():
        assert torch.equal(_logits(model, batch), base), "disable_adapter() does not restore the outputs of the base"
    with tempfile.TemporaryDirectory() as folder:
        _check_folder(model, make_base, batch, Path(folder) / "compact")
        _check_second(model, make_config, batch, lr)
        if kind := own_kind(model):
            _check_refuses_to_merge(model, kind, Path(folder) / "exported")
        else:
            _check_merge(model, batch)
            _check_export(model, make_base, batch, Path(folder) / "exported")


def _check_trainable(model: Any, adapter_name: str) -> None:
    trained = [name.split(".") for name, p in model.named_parameters() if p.requires_grad]
    assert trained, "there are no trainable parameters"
    holder = holder_of(model)
    own = {holder.container, "modules_to_save"} if holder is not None else {adapter_name}
    others = [".".join(name) for name in trained if adapter_name not in name or not own & set(name)]
    assert not others, f"{others[0]} is trainable, but does not belong to adapter '{adapter_name}'"


def _check_learns(model: Any, batch: Mapping[str, Tensor], lr: float) -> None:
    before = _loss(model, batch).item()
    with _reported("five steps of AdamW fail; `forward` must not cache between steps"):
        _train(model, batch, lr)
    after = _loss(model, batch).item()
    assert after < before, (
        f"five steps of AdamW with lr={lr} must reduce the loss; it changed from {before:.6f} to {after:.6f}"
    )


def _check_gradient(model: Any, batch: Mapping[str, Tensor], *, exact: bool) -> None:
    """Check a float64 copy with changed parameters, because initially the gradient of LoRA's lora_A is 0."""
    with _reported("a float64 copy of the model does not run"):
        double = copy.deepcopy(model).double()
        _loss(double, batch)
    draw = torch.Generator().manual_seed(0)
    names, parameters = zip(*[(n, p) for n, p in double.named_parameters() if p.requires_grad], strict=True)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=draw).to(parameter), alpha=0.02)
    found = _gradients(double, [batch])
    unused = [name for name in names if name not in found or not found[name].any()]
    assert not unused, f"{unused[0]} is trainable but has no gradient: it does not affect the output"
    gradients = [found[name] for name in names]
    for _ in range(3 if exact else 0):
        _check_slope(lambda: _loss(double, batch), parameters, gradients, draw)


def _check_slope(
    value: Callable[[], Tensor], parameters: Sequence[Tensor], gradients: Sequence[Tensor], draw: torch.Generator
) -> None:
    """Compare slopes along the gradient with random weights; those of single entries are below the rounding error."""
    uphill = [g * torch.randn(g.shape, generator=draw, dtype=g.dtype).abs().to(g.device) for g in gradients]
    length, norm = (torch.cat([t.flatten() for t in tensors]).norm().item() for tensors in (uphill, gradients))
    directions = [tensor / length for tensor in uphill]
    by_autograd = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
    distance = abs(by_autograd - slope(value, parameters, directions, _STEP)) / norm
    assert distance <= _SLOPE, f"the gradient is off by {distance:.1e} of its norm from finite differences"


def _check_micro_batches(model: Any, batch: Mapping[str, Tensor]) -> None:
    n_rows = len(next(iter(batch.values())))
    whole = _gradients(model, [batch])
    rows = _gradients(model, [{name: tensor[i : i + 1] for name, tensor in batch.items()} for i in range(n_rows)])
    for name, gradient in whole.items():
        distance = (rows[name] - gradient).norm() / (gradient.norm() + 1e-6)
        assert distance <= 1e-3, f"the gradient of {name} by rows is off by {distance:.1e} from that of the whole batch"


def _check_copy(model: Any, batch: Mapping[str, Tensor], lr: float) -> None:
    live = _logits(model, batch)
    with _reported("copy.deepcopy(model) fails"):
        twin = copy.deepcopy(model)
    assert torch.equal(_logits(twin, batch), live), "a deep copy has different outputs"
    _train(twin, batch, lr)
    assert torch.equal(_logits(model, batch), live), "training a deep copy changes the model it was copied from"
    assert not torch.equal(_logits(twin, batch), live), "training does not change a deep copy"


def _check_folder(model: Any, make_base: Callable[[], nn.Module], batch: Mapping[str, Tensor], folder: Path) -> None:
    live = _logits(model, batch)
    model.save_pretrained(str(folder))
    for options in ({}, {"low_cpu_mem_usage": True}):
        with _reported(f"from_pretrained fails on a folder of save_pretrained, with options {options}"):
            loaded = PeftModel.from_pretrained(make_base(), str(folder), **options).eval()  # type: ignore[arg-type]
        assert torch.equal(_logits(loaded, batch), live), (
            f"from_pretrained, with options {options}, changes the outputs: a tensor is not saved"
        )
    if holder_of(model) is not None:
        _check_damage(make_base, folder)


def _check_damage(make_base: Callable[[], nn.Module], folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name, tensor = next((name, t) for name, t in tensors.items() if GeneratorHolder.container in name and t.ndim)
    damages = {
        f"without {name}": {k: v for k, v in tensors.items() if k != name},
        f"with NaN in {name}": {**tensors, name: torch.full_like(tensor, torch.nan, dtype=torch.float32)},
        f"with an unknown {name}.more": {**tensors, f"{name}.more": tensor.clone()},
    }
    for damage, kept in damages.items():
        with _refused(f"a folder {damage} is loaded", CheckpointError):
            PeftModel.from_pretrained(make_base(), _rewritten(folder, kept))  # type: ignore[arg-type]
    with _refused("the folder of another seed is loaded: include init.hexdigest() in the fingerprint", CheckpointError):
        PeftModel.from_pretrained(make_base(), _rewritten(folder, tensors, other_seed=True))  # type: ignore[arg-type]


def _rewritten(folder: Path, tensors: dict[str, Tensor], *, other_seed: bool = False) -> str:
    """A copy with these tensors, without the hashes that would be checked before the method's own checks."""
    copied = shutil.copytree(folder, folder.with_name("rewritten"), dirs_exist_ok=True)
    save_file(tensors, copied / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    changed: dict[str, Any] = {name: None for name in ("start_hash", "weights_sha256") if name in config}
    if other_seed:
        changed["seed"] = config.get("seed", 0) + 1
    (copied / CONFIG).write_text(json.dumps({**config, **changed}), encoding="utf-8")
    return str(copied)


def _check_second(model: Any, make_config: Callable[[], PeftConfig], batch: Mapping[str, Tensor], lr: float) -> None:
    first = _logits(model, batch)
    with _reported("a second adapter cannot be added"):
        model.add_adapter("second", make_config())
    assert torch.equal(_logits(model, batch), first), "adding a second adapter changes the active one"
    model.set_adapter("second")
    assert not torch.equal(_logits(model, batch), first), "set_adapter() has no effect"
    _check_trainable(model, "second")
    _train(model, batch, lr)
    model.set_adapter("default")
    assert torch.equal(_logits(model, batch), first), "training the second adapter changes the first"
    model.delete_adapter("second")
    assert torch.equal(_logits(model, batch), first), "deleting the second adapter changes the first"


def _check_merge(model: Any, batch: Mapping[str, Tensor]) -> None:
    live, other = _logits(model, batch), copy.deepcopy(model)
    with _reported("merge_adapter() fails"):
        other.merge_adapter()
    _close(_logits(other, batch), live, "merge_adapter() changes the outputs")
    with _reported("unmerge_adapter() fails"):
        other.unmerge_adapter()
    _close(_logits(other, batch), live, "unmerge_adapter() does not undo merge_adapter()")
    with _reported("merge_and_unload() fails"):
        merged = other.merge_and_unload()
    _close(_logits(merged, batch), live, "merge_and_unload() changes the outputs")


def _check_export(model: Any, make_base: Callable[[], nn.Module], batch: Mapping[str, Tensor], folder: Path) -> None:
    live = _logits(model, batch)
    with _reported("qpeft.export fails"):
        export(model, folder)
    stock: Any = PeftModel.from_pretrained(make_base(), str(folder)).eval()  # type: ignore[arg-type]
    for part in (stock.base_model, stock.peft_config["default"]):
        assert type(part).__module__.startswith("peft."), (
            f"to_stock() returns {type(part)}, which is not a class of PEFT"
        )
    _close(_logits(stock, batch), live, "the exported adapter has different outputs in PEFT")
    assert torch.equal(_logits(model, batch), live), "qpeft.export changes the model"


def _check_refuses_to_merge(model: Any, kind: str, folder: Path) -> None:
    for what, call in (("merged", model.merge_and_unload), ("exported", lambda: export(model, folder))):
        with _refused(
            f"{kind} can be {what}, although its tuner declares by own_kind that PEFT has no equivalent", ConfigError
        ):
            call()


def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.eval()(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits


def _loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).loss


def _train(model: Any, batch: Mapping[str, Tensor], lr: float) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(5):
        optimizer.zero_grad()
        _loss(model, batch).backward()
        optimizer.step()
    optimizer.zero_grad()


def _gradients(model: Any, parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    for part in parts:
        (_loss(model, part) / len(parts)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def _close(found: Tensor, expected: Tensor, sentence: str) -> None:
    distance = (found - expected).abs().max().item()
    assert distance <= _CLOSE * max(1.0, expected.abs().max().item()), f"{sentence}: off by {distance:.1e}"


@contextmanager
def _reported(sentence: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the author's code does
        raise AssertionError(f"{sentence}: {type(error).__name__}: {error}") from error


@contextmanager
def _refused(sentence: str, kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    except Exception as error:  # whatever the author's code does
        raise AssertionError(
            f"{sentence}: not refused by {kind.__name__}, but {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(sentence)
