"""Gradients for frames against autograd's own of the base weights; the model is left as it was."""

import copy
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import qpeft
from qpeft.errors import ConfigError, DataError, TrainingError
from qpeft.methods.quantum_peft.fit_frames import collect_gradients, fit_frames

TARGETS = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": ["q_proj", "k_proj", "down_proj", "up_proj"]}
IDS = torch.arange(8).view(1, 8)


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


def of_full_fine_tuning(model):
    model.requires_grad_(True).train()
    model.base_model.model.lm_head.eval()


def frozen_with_checkpointing(model):
    model.requires_grad_(False).gradient_checkpointing_enable()


def changed_in_place(model):
    """Falcon, for one, adds its residual in place."""
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.register_forward_hook(lambda _, args, output: output.mul_(2.0).div_(2.0))


@pytest.mark.parametrize("change", [of_full_fine_tuning, frozen_with_checkpointing, changed_in_place])
def test_gradients_equal_autograds_whatever_the_model_does(base, targets, batches, change):
    expected = plain_gradients(base, targets, batches)
    config = LoraConfig(r=2, target_modules=targets, lora_dropout=0.5, init_lora_weights=False)
    model = get_peft_model(base, config)
    change(model)
    before = state(model)
    with torch.set_grad_enabled(change is not frozen_with_checkpointing):
        found = collect_gradients(model, expected.keys(), iter(batches))
    assert_same_state(before, state(model))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)
        assert gradient.abs().max() > 1e-4


FIRST, LAST = (f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))
NOTHING = {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}


@pytest.mark.parametrize(
    ("batches", "error", "named"),
    [
        ([], DataError, "no batches"),
        ([{"inputs_embeds": torch.zeros(1, 3, 16)}], DataError, "no loss for batch"),
        ({"input_ids": IDS}, DataError, "list of dicts"),
        ([IDS], DataError, "list of dicts"),
        ([{"input_ids": IDS}, NOTHING], TrainingError, "batch 2"),
    ],
)
def test_invalid_batches_raise_and_leave_the_model_as_it_was(llama, batches, error, named):
    model = get_peft_model(llama, LoraConfig(target_modules=["q_proj"])).train()
    before = state(model)
    with pytest.raises(error, match=named):
        collect_gradients(model, [FIRST, LAST], batches)
    assert_same_state(before, state(model))


def test_missing_and_non_finite_gradients_raise(llama):
    model = get_peft_model(llama, LoraConfig(target_modules=["q_proj"]))
    cut = llama.model.layers[0].register_forward_hook(lambda _, args, output: output.detach())
    with pytest.raises(TrainingError, match=f"{FIRST} .* the loss does not depend on it"):
        collect_gradients(model, [FIRST, LAST], [{"input_ids": IDS}])
    cut.remove()
    llama.model.norm.register_forward_hook(lambda _, args, out: out.register_hook(lambda g: g * math.inf) and None)
    with pytest.raises(TrainingError, match=f"gradient of {FIRST} is not finite"):
        collect_gradients(model, [LAST, FIRST], [{"input_ids": IDS}])


def test_adapters_that_need_no_fit_raise(llama, batches):
    with pytest.raises(ConfigError, match="fit_frames is for"):
        fit_frames(get_peft_model(llama, LoraConfig(target_modules=["q_proj"])), batches)


def test_adapter_is_fitted_once(base, targets, batches):
    expected = plain_gradients(base, targets, batches)
    norm = "ln_f" if base.config.model_type == "gpt2" else "norm"
    more = {"target_modules": targets, "modules_to_save": [norm]}
    model = get_peft_model(base, qpeft.QuantumPeftConfig(r=2, frame="gradient", frame_rank=4, **more))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    fit_frames(model, batches)
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


@pytest.mark.parametrize("frame", ["gradient", "sign"])
def test_adapter_before_its_fit_is_saved_but_neither_exported_nor_merged(llama, batches, adapters, tmp_path, frame):
    untouched = copy.deepcopy(llama)
    config = qpeft.QuantumPeftConfig(r=2, frame=frame, frame_rank=4, target_modules=["q_proj"])
    model = get_peft_model(llama, config)
    for use in (lambda: qpeft.export(model, tmp_path / "exported"), model.merge_and_unload):
        with pytest.raises(ConfigError, match=r"call qpeft\.fit_frames\(model, batches\)|calibration batches first"):
            use()
    assert not (tmp_path / "exported").exists()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(untouched, tmp_path, is_trainable=True)
    fit_frames(loaded, batches)
    assert torch.isfinite(adapters.logits(loaded, IDS)).all()
