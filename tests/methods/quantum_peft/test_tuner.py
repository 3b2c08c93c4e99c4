"""Quantum-PEFT as a PEFT method: initial values, training, saving, export as a LoRA, errors."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from folders import edit_config
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.testing import assert_close
from variants import of_family

import qpeft
from qpeft.errors import CheckpointError, ConfigError, TiedWeightError


def quantum_peft(base, **settings):
    small = {
        "r": 3,
        "n_layers": 1,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }
    return get_peft_model(base, qpeft.QuantumPeftConfig(**of_family({**small, **settings})))


@pytest.fixture(params=["gpt2", "llama"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    "settings, scale",
    [
        ({}, 50.0),
        ({"family": "lie"}, 15.0),
        ({"family": "lie", "frame": "random"}, 50.0),
        ({"angle_scale": 2.0}, 2.0),
    ],
)
def test_learning_rate_of_angles_is_scaled_by_what_the_columns_need(settings, scale):
    assert qpeft.QuantumPeftConfig(**settings).angle_scale == scale


def test_layers_of_a_type_share_circuits_but_not_lambda(llama, ids, adapters):
    own = quantum_peft(copy.deepcopy(llama))
    model = adapters.train(quantum_peft(llama, share="type"), ids)
    first, second = (
        model.get_submodule(f"base_model.model.model.layers.{i}.self_attn.q_proj") for i in (0, 1)
    )

    assert torch.equal(first.lora_A["default"].weight, second.lora_A["default"].weight)
    assert not torch.equal(first.lora_B["default"].weight, second.lora_B["default"].weight)
    assert model.get_nb_trainable_parameters()[0] < own.get_nb_trainable_parameters()[0]


def test_weight_frames_need_the_weights(llama):
    with torch.device("meta"):
        on_meta = type(llama)(llama.config)
    with pytest.raises(ConfigError, match=r"needs the weight of .*q_proj"):
        quantum_peft(on_meta, frame="weights")

    broken = copy.deepcopy(llama)
    quantized = copy.deepcopy(llama)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan

    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj"):
        quantum_peft(broken, frame="weights")

    quantized.model.layers[0].mlp.up_proj.weight = nn.Parameter(
        torch.zeros(24, 16, dtype=torch.int8), False
    )
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.up_proj"):
        quantum_peft(quantized, frame="weights")


def _factors(generator):
    """The name and the parameters of each factor."""
    rows = zip(
        generator.angles().split([shape.numel() for shape in generator.shapes]),
        generator.shapes,
        strict=True,
    )
    for part, (angles, shape) in zip(generator.parts, rows, strict=True):
        yield from zip(dict.fromkeys(part.units), angles.view(shape), strict=True)


def signed_svd(matrix):
    """The three leading singular triples, with the largest entry of each left vector positive."""
    u, s, vt = torch.linalg.svd(matrix)
    signs = u[:, :3].gather(0, u[:, :3].abs().argmax(0, keepdim=True)).sign()
    return u[:, :3] * signs, s[:3], vt[:3] * signs.mT


@pytest.mark.parametrize("frame", ["weights", "sign"])
def test_core_in_frames_is_lora_xs_or_lora_sb(base, ids, adapters, frame):
    """W + U S R V^T with the truncated SVD of W (LoRA-XS, arXiv 2405.17604), or W + B R A with
    those of Adam's first step, -sign(gradient) (LoRA-SB, arXiv 2411.19557); only R is trained.
    """
    base.requires_grad_(True)
    base(input_ids=ids, labels=ids).loss.backward()
    known = {
        n: p.detach().clone() if frame == "weights" else -p.grad.sign()
        for n, p in base.named_parameters()
    }
    base.zero_grad()
    model = quantum_peft(base, frame=frame, family="core", lora_alpha=2)
    if frame == "sign":
        qpeft.fit_frames(model, [{"input_ids": ids, "labels": ids}])
    adapters.train(model, ids, steps=5)
    cores = dict(_factors(model.base_model.generators["default"]))
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            matrix = known[f"{name}.weight"].double()
            delta = layer.get_delta_weight("default").double()
            matrix, delta = (matrix.mT, delta.mT) if layer.fan_in_fan_out else (matrix, delta)
            u, s, vt = signed_svd(matrix)
            core = cores[f"{name}.u"].view(3, 3).detach().double()
            assert core.any()
            expected = 2 * (u * s if frame == "weights" else u) @ core @ vt
            assert_close(
                delta,
                expected,
                atol=2e-2 * expected.abs().max().item(),
                rtol=0,
            )

    assert model.get_nb_trainable_parameters()[0] == 9 * len(model.base_model.targeted_module_names)


def test_modules_that_share_a_weight_have_factors_of_their_own_and_are_not_merged(llama):
    first, second = (llama.model.layers[i].self_attn.q_proj for i in (0, 1))
    second.weight = first.weight
    model = quantum_peft(llama, target_modules=["q_proj"])
    assert sum(isinstance(module, LoraLayer) for module in model.modules()) == 2
    with pytest.raises(TiedWeightError, match="shares its weight with"):
        model.merge_and_unload()


def test_checkpoint_of_other_settings_or_another_base_raises(llama, gpt2, tmp_path):
    quantum_peft(copy.deepcopy(llama)).save_pretrained(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"another base model|does not match this model"):
        PeftModel.from_pretrained(gpt2, tmp_path / "saved")
    for change in (
        {"seed": 1},
        {"n_layers": 2},
        {"construction": "pad"},
        {"lora_alpha": 15},
    ):
        edit_config(shutil.copytree(tmp_path / "saved", tmp_path / str(change)), **change)
        with pytest.raises(CheckpointError):
            PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / str(change))


def test_factors_equal_pennylanes_columns(llama, ids, adapters):
    """lora_B lora_A = s U diag(lambda) V^T, with U and V from PennyLane's SimplifiedTwoDesign."""
    qml = pytest.importorskip("pennylane")
    model = adapters.train(
        quantum_peft(llama, target_modules=["layers.0.self_attn.q_proj"], n_layers=2), ids
    )
    generator = model.base_model.generators["default"]
    angles = {name: row.double() for name, row in _factors(generator)}
    device = qml.device("default.qubit", wires=4)

    @qml.qnode(device)
    def column(theta, index):
        qml.BasisState([int(bit) for bit in f"{index:04b}"], wires=range(4))
        qml.SimplifiedTwoDesign(theta[:4], theta[4:].reshape(2, 3, 2), wires=range(4))
        return qml.state()

    spread = (0, 5, 10)  # 0000, 0101, 1010
    u, v = (
        torch.stack(
            [
                column(angles[f"model.layers.0.self_attn.q_proj.{side}"].detach(), i).real
                for i in spread
            ],
            1,
        )
        for side in "uv"
    )
    expected = 16 * (u * generator.lam().detach().double()) @ v.mT
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")

    assert_close(
        layer.get_delta_weight("default").double(),
        expected,
        atol=1e-6,
        rtol=0,
    )


FRAMED = {"share": "type", "frame": "random", "frame_rank": 8}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"family": "lie"},
        FRAMED,
    ],
    ids=["pauli", "lie", "framed"],
)
def test_generator_is_not_affected_by_autocast(llama, ids, adapters, settings):
    """Even where backward is called inside."""
    model = adapters.train(quantum_peft(llama, **settings), ids).train()
    binding = model.base_model.generators.bindings["default"]
    generator = model.base_model.generators["default"]
    weights = torch.randn(sum(binding.sizes))
    model.zero_grad()
    (generator() @ weights).backward()
    expected = {name: p.grad.clone() for name, p in generator.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=ids)
        tensors = [slot.owner.__dict__[slot.name] for slot in binding.slots]
        parts = zip(tensors, weights.split(binding.sizes), strict=True)
        sum((tensor.flatten() * part).sum() for tensor, part in parts).backward()
    for name, parameter in generator.named_parameters():
        assert_close(
            parameter.grad,
            expected[name],
            atol=1e-5,
            rtol=1e-5,
            msg=name,
        )
