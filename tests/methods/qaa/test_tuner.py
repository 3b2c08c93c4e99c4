"""QAA as a PEFT tuner: equation, initial values, folders, dtypes, errors."""

import copy
import json

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import qpeft
from qpeft.errors import CheckpointError, ConfigError, UnsupportedTypeError
from qpeft.methods.qaa.settings import ANSATZE, FEATURE_SOURCES


def adapted(base, **settings):
    return get_peft_model(base, qpeft.QAAConfig(**{"task_type": "CAUSAL_LM", **settings})).eval()


def branches(model, adapter_name="default"):
    """The adapter's branch at each module, by the module's name."""
    return {
        name.removeprefix("base_model.model."): module.qaa_branch[adapter_name]
        for name, module in model.named_modules()
        if hasattr(module, "qaa_branch") and adapter_name in module.qaa_branch
    }


def shake(model, adapter_name="default"):
    """Change the parameters, so that the adapter has an effect."""
    with torch.no_grad():
        for branch in branches(model, adapter_name).values():
            for parameter in branch.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "settings", [{}, {"ansatz": "rxyz", "n_layers": 2}, {"carry_norm": True}, {"use_offset": False}]
)
def test_output_equals_the_equation(llama, settings):
    projection = copy.deepcopy(llama.model.layers[0].self_attn.q_proj)
    model = shake(adapted(llama, alpha=8, **settings))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    branch, x = layer.qaa_branch["default"], torch.randn(3, 5, 16)
    angles = branch.features.angles()
    z = qpeft.circuits.amplitude_expectations(x, angles, settings.get("ansatz", "square"))
    f = (18 / 2) ** 0.5 * z
    if settings.get("carry_norm"):
        f = f * x.norm(dim=-1, keepdim=True) / 4
    c = 0 if branch.c is None else branch.c
    expected = projection(x) + 8 / 4 * (f @ branch.V.T + c)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(layer(x), projection(x), atol=1e-2)


SETTINGS = [
    *({"ansatz": ansatz} for ansatz in ANSATZE),
    *({"feature_source": source} for source in FEATURE_SOURCES),
    {"train_circuit": False},
    {"share_circuit": True},
    {"readout": "probs", "allow_large": True},
    {"target_modules": "all-linear", "carry_norm": True},
    {"target_modules": ["lm_head"]},
    {"target_modules": r".*\.1\.attn\.c_proj", "use_offset": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_initial_logits_training_and_loading(gpt2, ids, adapters, settings, tmp_path):
    fresh, before = copy.deepcopy(gpt2), adapters.logits(gpt2, ids)
    model = adapted(gpt2, **settings)
    assert torch.equal(adapters.logits(model, ids), before)
    loss = model(input_ids=ids, labels=ids).loss.item()
    adapters.train(model, ids, steps=5, lr=5e-3)
    assert model(input_ids=ids, labels=ids).loss.item() < loss
    trained = adapters.logits(model, ids)
    qpeft.save(model, tmp_path / "adapter")
    assert torch.equal(adapters.logits(qpeft.load(fresh, tmp_path / "adapter").eval(), ids), trained)
    with model.disable_adapter():
        assert torch.equal(adapters.logits(model, ids), before)
    assert torch.equal(adapters.logits(model.unload(), ids), before)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Linear(6, 4, bias=False), lambda: Conv1D(4, 6)])
def test_linear_and_conv1d_initially_equal_the_base(make):
    base = nn.Sequential(make())
    x, layer = torch.randn(7, 6), copy.deepcopy(base[0])
    model = get_peft_model(base, qpeft.QAAConfig(target_modules=["0"]))
    assert torch.equal(model(x), layer(x))
    shake(model)
    branch = model.base_model.model[0].qaa_branch["default"]
    torch.testing.assert_close(model(x), layer(x) + branch(x))
    assert branch(x).shape == (7, 4)


def test_gpt2_adapts_queries_and_values(gpt2):
    layer = copy.deepcopy(gpt2.transformer.h[0].attn.c_attn)
    model = shake(adapted(gpt2))
    found = model.base_model.model.transformer.h[0].attn.c_attn
    x = torch.randn(2, 3, 16)
    y, plain = found(x), layer(x)
    assert found.qaa_branch["default"].V.shape == (32, 4)
    assert torch.equal(y[..., 16:32], plain[..., 16:32])
    assert not torch.isclose(y[..., :16], plain[..., :16]).any()
    assert not torch.isclose(y[..., 32:], plain[..., 32:]).any()


@pytest.mark.parametrize(
    ("name", "targets"),
    [("DebertaV2", {"query_proj", "value_proj"}), ("Deberta", {"in_proj"}), ("GPTNeo", {"q_proj", "v_proj"})],
)
def test_default_targets_include_those_of_lora(name, targets):
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    types = (
        {"attention_types": [[["global"], 2]], "num_layers": 2, "num_heads": 2}
        if name == "GPTNeo"
        else {"intermediate_size": 24}
    )
    config = getattr(transformers, f"{name}Config")(**{**small, **types})
    model = adapted(getattr(transformers, f"{name}Model")(config), task_type="FEATURE_EXTRACTION")
    assert set(model.peft_config["default"].target_modules) == targets
    assert {name.rpartition(".")[2] for name in model.targeted_module_names} == targets


def test_default_targets(gpt2, llama):
    assert adapted(gpt2).peft_config["default"].target_modules == ["c_attn"]
    model = adapted(llama)
    assert {name.rpartition(".")[2] for name in branches(model)} == {"q_proj", "v_proj"}
    angles = [branch.features.angles() for branch in branches(model).values()]
    assert not torch.equal(angles[0], angles[1])


def test_angles_have_no_gradient_in_the_first_step(llama, ids):
    model = adapted(llama)
    taus = [branch.features.angles.tau for branch in branches(model).values()]
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(tau.grad is not None and not tau.grad.any() for tau in taus)
    optimiser.step()
    optimiser.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(tau.grad.any() for tau in taus)


def test_frozen_angles_and_controls_train_no_angle(llama):
    for settings in ({"train_circuit": False}, {"feature_source": "quadratic"}, {"feature_source": "linear"}):
        model = adapted(copy.deepcopy(llama), **settings)
        assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"V", "c"}
    model = adapted(llama, feature_source="none")
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {"c"}


def test_shared_circuit_is_saved_once_per_width(llama, ids, adapters, tmp_path):
    fresh = copy.deepcopy(llama)
    model = adapted(llama, share_circuit=True, target_modules=["q_proj", "v_proj", "down_proj"])
    found = branches(model)
    assert len({id(branch.features) for branch in found.values()}) == 2
    assert len([n for n, _ in model.named_parameters() if n.endswith("tau")]) == 2
    copied = branches(copy.deepcopy(model))
    assert len({id(branch.features) for branch in copied.values()}) == 2
    adapters.train(model, ids)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert len([name for name in stored if name.endswith("tau")]) == 2
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(copy.deepcopy(fresh), tmp_path, **options).eval()
        assert torch.equal(adapters.logits(loaded, ids), adapters.logits(model, ids))
        assert len({id(branch.features) for branch in branches(loaded).values()}) == 2
    groups = {group["name"]: len(group["params"]) for group in qpeft.param_groups(model, lr=1e-3)}
    assert groups == {"angles": 2, "V": 6, "offset": 6}


def rewritten(folder, change):
    """The folder with changed tensors and without their SHA-256."""
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "weights_sha256": None}))
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def test_folder_with_other_settings_or_damage_raises(gpt2, ids, adapters, tmp_path):
    fresh = copy.deepcopy(gpt2)
    model = adapters.train(adapted(gpt2), ids)
    model.save_pretrained(tmp_path)
    path, text = tmp_path / "adapter_config.json", (tmp_path / "adapter_config.json").read_text()
    for old, new in (
        ('"seed": 0', '"seed": 1'),
        ('"ansatz": "square"', '"ansatz": "rxyz"'),
        ('"alpha": 16', '"alpha": 8'),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match="other initial values or settings"):
            qpeft.load(copy.deepcopy(fresh), tmp_path)
    path.write_text(text)

    def drop(state):
        return {name: tensor for name, tensor in state.items() if not name.endswith("1.attn.c_attn.qaa_branch.V")}

    def damage(state):
        return {name: tensor * torch.nan if name.endswith(".V") else tensor for name, tensor in state.items()}

    for change, message in ((damage, "contains NaN or Inf"), (drop, "missing .*c_attn.qaa_branch.default.V")):
        with pytest.raises(CheckpointError, match=message):
            qpeft.load(copy.deepcopy(fresh), rewritten(tmp_path, change))


def test_half_precision_file_is_loaded_in_float32(llama, ids, adapters, tmp_path):
    fresh, model = copy.deepcopy(llama), shake(adapted(llama))
    model.save_pretrained(tmp_path)

    def halve(state):
        return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}

    rewritten(tmp_path, halve)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = qpeft.load(copy.deepcopy(fresh), tmp_path, **options).eval()
        assert {p.dtype for branch in branches(loaded).values() for p in branch.parameters()} == {torch.float32}
        torch.testing.assert_close(adapters.logits(loaded, ids), adapters.logits(model, ids), atol=1e-2, rtol=0)


def test_float64_model_has_a_float64_branch(llama, ids, adapters):
    model = shake(adapted(copy.deepcopy(llama)))
    expected = adapters.logits(model, ids)
    torch.testing.assert_close(adapters.logits(model.double(), ids), expected.double(), atol=1e-5, rtol=0)
    branch = next(iter(branches(adapted(llama.double())).values()))
    assert branch.V.dtype == torch.float64
    x = torch.randn(3, 16, dtype=torch.float64)
    with torch.no_grad():
        branch.V.normal_()
    part, c = branch(x), branch.c
    assert not c.any()
    for factor in (7, -3):
        torch.testing.assert_close(branch(factor * x), part, atol=1e-12, rtol=0)


class Shared(nn.Module):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x))


def test_module_with_two_names_is_adapted_once():
    model = get_peft_model(Shared(), qpeft.QAAConfig(target_modules=["first", "second"]))
    assert list(branches(model)) == ["first"]
    x = torch.randn(2, 4)
    assert torch.equal(model(x), Shared.forward(model.get_base_model(), x))


def test_input_of_width_one_warns():
    with pytest.warns(UserWarning, match=r"QAA on an input of width 1 has constant features\."):
        model = get_peft_model(nn.Sequential(nn.Linear(1, 3)), qpeft.QAAConfig(target_modules=["0"]))
    shake(model)
    branch = model.base_model.model[0].qaa_branch["default"]
    torch.testing.assert_close(branch(torch.tensor([[1.0], [-7.0]]))[0], branch(torch.tensor([[0.1]]))[0])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"target_modules": ["c_atn"]}, ConfigError, "'c_atn' matches no module; nearest names: c_attn"),
        (
            {"target_modules": ["wte"]},
            UnsupportedTypeError,
            r"QAA cannot adapt transformer\.wte: expected Linear or Conv1D, got Embedding\.",
        ),
        (
            {"readout": "probs"},
            ConfigError,
            r"readout='probs' would train 556 parameters at transformer\.h\.0\.attn\.c_attn, not fewer than the 512 of "
            r"the full weight\. Use readout='z'\.",
        ),
        (
            {"out_slices": [[0, 16], [40, 49]]},
            ConfigError,
            r"out_slices \[40, 49\) is outside 0\.\.48 for transformer\.h\.0\.attn\.c_attn\.",
        ),
        ({"out_slices": [[-1, 16]]}, ConfigError, r"out_slices \[-1, 16\) is outside 0\.\.48"),
    ],
)
def test_unsuitable_targets_raise_and_do_not_change_the_model(gpt2, settings, error, message):
    names = [name for name, _ in gpt2.named_modules()]
    with pytest.raises(error, match=message):
        adapted(gpt2, **settings)
    assert [name for name, _ in gpt2.named_modules()] == names
    assert all(p.requires_grad for p in gpt2.parameters())


def test_model_without_known_projections_raises():
    with pytest.raises(ConfigError, match=r"name target_modules yourself, of: first, second"):
        get_peft_model(Named(), qpeft.QAAConfig())


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()


def test_out_slices(llama):
    model = adapted(llama, out_slices=[[2, 5], [7, 8]])
    assert {tuple(branch.V.shape) for branch in branches(model).values()} == {(4, 4)}


def test_exclude_modules(gpt2):
    model = adapted(gpt2, target_modules="all-linear", exclude_modules=["c_attn"])
    assert {name.rpartition(".")[2] for name in branches(model)} == {"c_proj", "c_fc"}
    model.add_adapter("other", qpeft.QAAConfig(target_modules="all-linear"))
    assert len(branches(model, "other")) == 8
