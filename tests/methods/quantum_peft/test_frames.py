"""Frames against the full SVD; their gradients against autograd's own; the model is left as it was."""

import copy
import math

import pytest
import torch
from folders import rewrite
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

import qpeft
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError, ConfigError, DataError, TrainingError
from qpeft.methods.quantum_peft import frames
from qpeft.methods.quantum_peft.fit_frames import collect_gradients, fit_frames
from qpeft.methods.quantum_peft.frames import (
    core_frame,
    frame_rank_for,
    leading_frame,
    singular_frame,
)


def gradient(d_out, d_in, decay=0.7, seed=0):
    """A matrix with singular values decay^k, as gradients of the loss have."""
    generator = torch.Generator().manual_seed(seed)
    k = min(d_out, d_in)
    left = torch.linalg.qr(torch.randn(d_out, k, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(d_in, k, generator=generator))[0]
    return (left * decay ** torch.arange(k)) @ right.mT


@pytest.mark.parametrize(
    "d_out, d_in, rank",
    [
        (48, 32, 8),
        (20, 70, 4),
        (16, 16, 16),
        (3, 40, 2),
        (1, 5, 1),
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e-25])
def test_frame_equals_the_full_svd(d_out, d_in, rank, size):
    G = gradient(d_out, d_in) * size
    left, right = leading_frame(G, rank)
    u, s, vt = torch.linalg.svd(-G.double(), full_matrices=False)

    assert left.shape == (d_out, rank)
    assert right.shape == (d_in, rank)

    for frame, exact in ((left, u[:, :rank]), (right, vt[:rank].mT)):
        overlap = (exact.mT @ frame.double()).square().sum() / rank
        assert overlap > 0.995
        assert torch.allclose(frame.mT @ frame, torch.eye(rank), atol=2e-3)
    captured = (left.double().mT @ (-G.double() / size) @ right.double()).square().sum()
    assert captured > 0.999 * (s[:rank] / size).square().sum()
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    assert all(
        frame.dtype == torch.float32 and torch.equal(frame, frame.half().float())
        for frame in (left, right)
    )
    # minus the gradient: with positive weights on the pairs the loss falls
    assert (torch.einsum("ok,oi,ik->k", left, G, right) < 0).all()


@pytest.mark.parametrize("exact", [1024, 16])
def test_singular_frame_equals_the_full_svd(monkeypatch, exact):
    monkeypatch.setattr(frames, "_EXACT", exact)
    W = gradient(40, 30, decay=0.8)
    left, right = singular_frame(W, 6)
    u, s, vt = torch.linalg.svd(W.double())

    assert torch.allclose(
        (left * u[:, :6]).sum(0).abs(), torch.ones(6, dtype=torch.float64), atol=1e-4
    )
    assert torch.allclose(
        core_frame(W, 6)[0] @ right.mT, (u[:, :6] * s[:6]).float() @ vt[:6].float(), atol=1e-3
    )
    assert (left.gather(0, left.abs().argmax(0, keepdim=True)) > 0).all()
    assert all(torch.equal(x, x.half().float()) for x in (left, right))


def test_frame_is_bit_equal_for_every_dtype():
    G = gradient(24, 36).bfloat16()
    frames = [leading_frame(given_, 4) for given_ in (G, G.float(), G.double(), G.float())]
    assert all(
        torch.equal(pair[0], frames[0][0]) and torch.equal(pair[1], frames[0][1]) for pair in frames
    )
    assert torch.equal(G, gradient(24, 36).bfloat16())


def test_frame_of_a_zero_gradient():
    left, right = leading_frame(torch.zeros(6, 9), 4)
    for frame in (left, right):
        assert torch.allclose(frame.mT @ frame, torch.eye(4), atol=2e-3)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_frame_rank(width, frame_rank):
    rank = frame_rank_for(width, frame_rank)
    limit = min(width, frame_rank)
    assert rank & (rank - 1) == 0
    assert rank <= limit < 2 * rank


def test_random_frames():
    frame = SeededInit(3).orthonormal("layer.0.left", 30, 8)
    assert torch.allclose(frame.mT @ frame, torch.eye(8), atol=1e-6)
    assert torch.equal(frame, SeededInit(3).orthonormal("layer.0.left", 30, 8))

    others = [
        SeededInit(3).orthonormal("layer.1.left", 30, 8),
        SeededInit(4).orthonormal("layer.0.left", 30, 8),
    ]
    assert all((frame.mT @ other).square().sum() / 8 < 0.6 for other in others)

    # the frame of a normal matrix, with the triangle's diagonal positive
    drawn = SeededInit(3).normal("layer.0.left", (30, 8))
    assert ((frame.mT @ drawn).diagonal() > 0).all()


TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "down_proj", "up_proj"],
}
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
    return [
        {"input_ids": ids[0]},
        {
            "input_ids": ids[1],
            "labels": masked,
            "attention_mask": torch.ones_like(ids[1]),
        },
    ]


def plain_gradients(base, targets, batches):
    """Autograd's gradient of the weights of an unwrapped model, (d_out, d_in), the mean over the
    batches.
    """
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
    parameters = {
        n: (p.requires_grad, id(p.grad), p.flatten().tolist()) for n, p in model.named_parameters()
    }
    modes = {
        n: (m.training, getattr(m, "_disable_adapters", None)) for n, m in model.named_modules()
    }
    return (
        parameters,
        modes,
        {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
    )


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


@pytest.mark.parametrize(
    "change",
    [
        of_full_fine_tuning,
        frozen_with_checkpointing,
        changed_in_place,
    ],
)
def test_gradients_equal_autograds_whatever_the_model_does(base, targets, batches, change):
    expected = plain_gradients(base, targets, batches)
    config = LoraConfig(
        r=2,
        target_modules=targets,
        lora_dropout=0.5,
        init_lora_weights=False,
    )
    model = get_peft_model(base, config)
    change(model)
    before = state(model)
    with torch.set_grad_enabled(change is not frozen_with_checkpointing):
        found = collect_gradients(model, expected.keys(), iter(batches))

    assert state(model) == before
    assert found.keys() == expected.keys()

    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)
        assert gradient.abs().max() > 1e-4


FIRST, LAST = (f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))
NOTHING = {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}


@pytest.mark.parametrize(
    "batches, error, named",
    [
        ([], DataError, "no batches"),
        ([{"inputs_embeds": torch.zeros(1, 3, 16)}], DataError, "no loss for batch"),
        ({"input_ids": IDS}, DataError, "list of dicts"),
        ([IDS], DataError, "list of dicts"),
        ([{"input_ids": IDS.tolist()}], DataError, "return_tensors='pt'"),
        ([{"input_ids": IDS[0]}], DataError, "return_tensors='pt'"),
        ([{"input_ids": IDS}, NOTHING], TrainingError, "batch 2"),
    ],
)
def test_invalid_batches_raise_and_leave_the_model_as_it_was(llama, batches, error, named):
    model = get_peft_model(llama, LoraConfig(target_modules=["q_proj"])).train()
    before = state(model)
    with pytest.raises(error, match=named):
        collect_gradients(model, [FIRST, LAST], batches)
    assert state(model) == before


def test_missing_and_non_finite_gradients_raise(llama):
    model = get_peft_model(llama, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="fit_frames is for"):
        fit_frames(model, [{"input_ids": IDS}])

    cut = llama.model.layers[0].register_forward_hook(lambda _, args, output: output.detach())
    with pytest.raises(TrainingError, match=f"{FIRST} .* the loss does not depend on it"):
        collect_gradients(model, [FIRST, LAST], [{"input_ids": IDS}])

    cut.remove()
    llama.model.norm.register_forward_hook(
        lambda _, args, out: out.register_hook(lambda g: g * math.inf) and None
    )
    with pytest.raises(TrainingError, match=f"gradient of {FIRST} is not finite"):
        collect_gradients(model, [LAST, FIRST], [{"input_ids": IDS}])


def test_loaded_state_has_its_frames(base, targets, batches):
    config = {"frame": "gradient", "target_modules": targets, "n_layers": 1}
    first, second = (
        get_peft_model(copy.deepcopy(base), qpeft.QuantumPeftConfig(**config)) for _ in range(2)
    )
    qpeft.fit_frames(first, batches)
    with pytest.raises(ConfigError, match=r"call qpeft\.fit_frames"):
        second(**batches[0])
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(**batches[0]).logits, first(**batches[0]).logits)


def test_adapter_is_fitted_once(base, targets, batches):
    expected = plain_gradients(base, targets, batches)
    norm = "ln_f" if base.config.model_type == "gpt2" else "norm"
    more = {"target_modules": targets, "modules_to_save": [norm]}
    model = get_peft_model(
        base, qpeft.QuantumPeftConfig(r=2, frame="gradient", frame_rank=4, **more)
    )
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    fit_frames(model, batches)

    assert trained == [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(p.grad is None for p in model.parameters())

    model(**{"labels": batches[0]["input_ids"], **batches[0]})  # evaluates the generator
    for name, gradient in expected.items():
        layer = model.base_model.model.get_submodule(name)
        directions = torch.linalg.svd(gradient)[2][:4]  # (R, d_in)
        inside = layer.lora_A["default"].weight.detach() @ directions.mT
        torch.testing.assert_close(
            inside @ inside.mT,
            torch.eye(2),
            atol=5e-2,
            rtol=0,
        )
    with pytest.raises(ConfigError, match="once"):
        fit_frames(model, batches)


def test_file_without_its_frames_is_refused_also_over_an_adapter_that_has_them(
    llama, batches, tmp_path
):
    config = qpeft.QuantumPeftConfig(
        r=2,
        frame="gradient",
        frame_rank=4,
        target_modules=["q_proj"],
    )
    model = get_peft_model(llama, config)
    fit_frames(model, batches)
    qpeft.save(model, tmp_path)
    rewrite(tmp_path, lambda saved: {k: v for k, v in saved.items() if ".frames." not in k})

    with pytest.raises(CheckpointError, match="missing"):
        model.load_adapter(tmp_path, "default")


@pytest.mark.parametrize("frame", ["gradient", "sign"])
def test_adapter_before_its_fit_is_saved_but_neither_exported_nor_merged(
    llama, batches, adapters, tmp_path, frame
):
    untouched = copy.deepcopy(llama)
    config = qpeft.QuantumPeftConfig(
        r=2,
        frame=frame,
        frame_rank=4,
        target_modules=["q_proj"],
    )
    model = get_peft_model(llama, config)
    for use in (lambda: qpeft.export(model, tmp_path / "exported"), model.merge_and_unload):
        with pytest.raises(
            ConfigError, match=r"call qpeft\.fit_frames\(model, batches\)|calibration batches first"
        ):
            use()

    assert not (tmp_path / "exported").exists()

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(untouched, tmp_path, is_trainable=True)
    fit_frames(loaded, batches)

    assert torch.isfinite(adapters.logits(loaded, IDS)).all()
