"""Gradients shown to an adapter against autograd's own of the base weights; the model is left as it was."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import qpeft
from qpeft.errors import ConfigError, DataError, TrainingError
from qpeft.methods.quantum_peft.fit_frames import collect_gradients, fit_frames

TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": ["q_proj", "k_proj", "down_proj", "up_proj"]}


@pytest.fixture(params=["gpt2", "llama"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def targets(base):
    return TARGETS[base.config.model_type]


@pytest.fixture
def batches():
    """Two batches of different shapes."""
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(0, 50, shape, generator=generator) for shape in ((3, 10), (1, 7))]
    masked = ids[1].clone()
    masked[:, :3] = -100
    return [{"input_ids": ids[0]}, {"input_ids": ids[1], "labels": masked, "attention_mask": torch.ones_like(ids[1])}]


def plain_gradients(base, targets, batches):
    """Autograd's gradient of the weights of an unwrapped model, (d_out, d_in), the mean over the batches."""
    for batch in batches:
        base(**{"labels": batch["input_ids"], **batch}).loss.backward()
    conv = base.config.model_type == "gpt2"
    found = {
        name: (module.weight.grad.T if conv else module.weight.grad) / len(batches)
        for name, module in base.named_modules()
        if name.split(".")[-1] in targets
    }
    base.zero_grad()
    return found


def wrapped(base, targets, **settings):
    fan = base.config.model_type == "gpt2"
    return get_peft_model(base, LoraConfig(r=2, target_modules=targets, fan_in_fan_out=fan, **settings))


def state(model):
    """All that fitting must leave alone."""
    return (
        {name: (p.requires_grad, p.grad, p.detach().clone()) for name, p in model.named_parameters()},
        {name: (m.training, getattr(m, "_disable_adapters", None)) for name, m in model.named_modules()},
        {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
    )


def assert_same_state(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, (trained, grad, value) in before[0].items():
        assert (after[0][name][0], after[0][name][1]) == (trained, grad), name
        assert torch.equal(after[0][name][2], value), name


def test_against_autograd(base, targets, batches):
    expected = plain_gradients(base, targets, batches)
    model = wrapped(base, targets)
    found = collect_gradients(model, expected.keys(), batches)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)
        assert gradient.abs().max() > 1e-4


def test_adapter_and_dropout_have_no_effect(base, targets, batches):
    expected = plain_gradients(base, targets, batches)
    model = wrapped(base, targets, lora_dropout=0.5, init_lora_weights=False)
    for p in model.parameters():
        p.requires_grad_(True)  # as in full fine-tuning together with an adapter
    model.train()
    model.base_model.model.lm_head.eval()
    before = state(model)
    found = collect_gradients(model, expected.keys(), iter(batches))
    assert_same_state(before, state(model))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)


def test_frozen_model_with_checkpointing_in_no_grad(base, targets, batches):
    expected = plain_gradients(base, targets, batches)
    model = wrapped(base, targets).requires_grad_(False)
    model.gradient_checkpointing_enable()
    before = state(model)
    with torch.no_grad():
        found = collect_gradients(model, expected.keys(), batches)
    assert_same_state(before, state(model))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)


def test_output_modified_in_place(llama, batches):
    """Falcon, for one, adds its residual in place."""
    plain = plain_gradients(llama, ["q_proj"], batches)
    model = wrapped(llama, ["q_proj"])
    for layer in model.base_model.model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda _, args, output: output.mul_(2.0).div_(2.0))
    found = collect_gradients(model, plain.keys(), batches)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)


def test_state_is_restored_after_an_error(base, targets):
    model = wrapped(base, targets).train()
    before = state(model)
    with pytest.raises(TrainingError, match="batch 1"):
        _with_broken_head(model, lambda: collect_gradients(model, _names(model, targets), [{"input_ids": _ids()}]))
    assert_same_state(before, state(model))


def _ids():
    return torch.arange(8).view(1, 8)


def _names(model, targets):
    return [n for n, m in model.base_model.model.named_modules() if n.split(".")[-1] in targets]


def _with_broken_head(model, act):
    norm = next(p for n, p in model.named_parameters() if n.endswith(("ln_f.weight", "model.norm.weight")))
    kept = norm.detach().clone()
    norm.data.fill_(math.nan)
    try:
        act()
    finally:
        norm.data.copy_(kept)


def test_invalid_batches_raise(llama):
    model = wrapped(llama, ["q_proj"])
    names = _names(model, ["q_proj"])
    with pytest.raises(DataError, match="no batches"):
        collect_gradients(model, names, [])
    with pytest.raises(DataError, match="no loss for batch"):
        collect_gradients(model, names, [{"inputs_embeds": torch.zeros(1, 3, 16)}])
    nothing = {"input_ids": _ids(), "labels": torch.full_like(_ids(), -100)}
    with pytest.raises(TrainingError, match="batch 2"):
        collect_gradients(model, names, [{"input_ids": _ids()}, nothing])


def test_missing_and_non_finite_gradients_raise(llama):
    model = wrapped(llama, ["q_proj"])
    first, last = _names(model, ["q_proj"])
    inner = model.base_model.model.model
    cut = inner.layers[0].register_forward_hook(lambda _, args, output: output.detach())
    with pytest.raises(TrainingError, match=f"{first} .* the loss does not depend on it"):
        collect_gradients(model, [first, last], [{"input_ids": _ids()}])
    cut.remove()
    inner.norm.register_forward_hook(lambda _, args, output: output.register_hook(lambda g: g * math.inf) and None)
    with pytest.raises(TrainingError, match=f"gradient of {first} is not finite"):
        collect_gradients(model, [last, first], [{"input_ids": _ids()}])


def test_adapters_that_need_no_fit_raise(llama, batches):
    with pytest.raises(ConfigError, match="fit_frames is for"):
        fit_frames(wrapped(llama, ["q_proj"]), batches)


def test_adapter_is_fitted_once(base, targets, batches):
    expected = plain_gradients(base, targets, batches)
    norm = "ln_f" if base.config.model_type == "gpt2" else "norm"
    config = qpeft.QuantumPeftConfig(
        r=2, frame="gradient", frame_rank=4, target_modules=targets, modules_to_save=[norm]
    )
    model = get_peft_model(base, config)
    generator = model.base_model.generators["default"]
    assert generator.needs_fit
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    fit_frames(model, batches)
    assert not generator.needs_fit
    assert trained == [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(p.grad is None for p in model.parameters())

    model(**{"labels": batches[0]["input_ids"], **batches[0]})  # evaluates the generator
    for name, gradient in expected.items():
        layer = model.base_model.model.get_submodule(name)
        directions = torch.linalg.svd(gradient)[2][:4]  # (R, d_in)
        inside = layer.lora_A["default"].weight.detach() @ directions.mT
        torch.testing.assert_close(inside @ inside.mT, torch.eye(2), atol=5e-2, rtol=0)
    with pytest.raises(ConfigError, match="once"):
        fit_frames(model, batches)


@pytest.mark.parametrize("wrong", ["a dict", "tensors"])
def test_batches_of_another_form_raise(llama, batches, wrong):
    model = get_peft_model(llama, qpeft.QuantumPeftConfig(r=2, frame="gradient", target_modules=["q_proj"]))
    ids = batches[0]["input_ids"]
    given = {"a dict": batches[0], "tensors": [ids]}[wrong]
    with pytest.raises(DataError, match=r"fit_frames.*list of dicts"):
        fit_frames(model, given)


@pytest.mark.parametrize("settings", [{"frame": "gradient"}, {"frame": "sign"}])
def test_export_before_the_fit_names_the_fit(llama, settings, tmp_path):
    model = get_peft_model(llama, qpeft.QuantumPeftConfig(target_modules=TARGETS["llama"], **settings))
    with pytest.raises(ConfigError, match=r"call qpeft\.fit_frames\(model, batches\)") as refused:
        qpeft.export(model, tmp_path / "exported")
    assert "probe" not in str(refused.value)
    assert not (tmp_path / "exported").exists()


def test_adapter_saved_before_its_fit(llama, batches, adapters, tmp_path):
    untouched = copy.deepcopy(llama)
    config = qpeft.QuantumPeftConfig(r=2, frame="gradient", frame_rank=4, target_modules=["q_proj"])
    model = get_peft_model(llama, config)
    with pytest.raises(ConfigError, match="with calibration batches first"):
        model.merge_and_unload()
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(untouched, str(tmp_path), is_trainable=True)
    fit_frames(loaded, batches)
    assert torch.isfinite(adapters.logits(loaded, _ids())).all()
