"""QAA as a PEFT tuner: equation, targets, gradients, folders, dtypes."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

import qpeft
from qpeft.errors import CheckpointError


def adapted(base, **settings):
    return get_peft_model(base, qpeft.QAAConfig(**{"task_type": "CAUSAL_LM", **settings})).eval()


def branches(model, adapter_name="default"):
    """The adapter's branch at each module, by the module's name."""
    return {
        name.removeprefix("base_model.model."): module.qaa_branch[adapter_name]
        for name, module in model.named_modules()
        if hasattr(module, "qaa_branch") and adapter_name in module.qaa_branch
    }


def shake(model):
    """Change the parameters, so that the adapter has an effect."""
    with torch.no_grad():
        for branch in branches(model).values():
            for parameter in branch.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("settings", [{}, {"ansatz": "rxyz", "n_layers": 2}, {"carry_norm": True}])
def test_output_equals_the_equation(llama, settings):
    projection = copy.deepcopy(llama.model.layers[0].self_attn.q_proj)
    model = shake(adapted(llama, alpha=8, **settings))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    branch, x = layer.qaa_branch["default"], torch.randn(3, 5, 16)
    z = qpeft.circuits.amplitude_expectations(x, branch.features.angles(), settings.get("ansatz", "square"))
    f = (18 / 2) ** 0.5 * z
    if settings.get("carry_norm"):
        f = f * x.norm(dim=-1, keepdim=True) / 4
    torch.testing.assert_close(layer(x), projection(x) + 8 / 4 * (f @ branch.V.T + branch.c), atol=1e-5, rtol=1e-5)


def test_gpt2_adapts_queries_and_values(gpt2):
    layer = copy.deepcopy(gpt2.transformer.h[0].attn.c_attn)
    model = shake(adapted(gpt2))
    assert model.peft_config["default"].target_modules == ["c_attn"]
    found = model.base_model.model.transformer.h[0].attn.c_attn
    x = torch.randn(2, 3, 16)
    changed = ~torch.isclose(found(x), layer(x))
    assert found.qaa_branch["default"].V.shape == (32, 4)
    assert changed[..., :16].all()
    assert not changed[..., 16:32].any()
    assert changed[..., 32:].all()


def test_default_targets_of_llama_have_angles_of_their_own(llama):
    model = adapted(llama)
    assert {name.rpartition(".")[2] for name in branches(model)} == {"q_proj", "v_proj"}
    first, second, *_ = (branch.features.angles() for branch in branches(model).values())
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"seed": 0', '"seed": 1'), ('"ansatz": "square"', '"ansatz": "rxyz"'), ('"alpha": 16', '"alpha": 8')],
)
def test_folder_with_other_settings_is_refused(gpt2, tmp_path, old, new):
    adapted(copy.deepcopy(gpt2)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace(old, new))
    assert new in path.read_text()
    with pytest.raises(CheckpointError, match="settings"):
        qpeft.load(gpt2, tmp_path)


def test_float64_model_has_a_float64_branch(llama, ids, adapters):
    model = shake(adapted(copy.deepcopy(llama)))
    expected = adapters.logits(model, ids)
    torch.testing.assert_close(adapters.logits(model.double(), ids), expected.double(), atol=1e-5, rtol=0)
    branch = next(iter(branches(adapted(llama.double())).values()))
    assert branch(torch.randn(3, 16)).dtype == branch.V.dtype == torch.float64


def test_module_with_two_names_is_adapted_once():
    base = nn.ModuleDict({"first": (linear := nn.Linear(4, 4)), "second": linear})
    model = get_peft_model(base, qpeft.QAAConfig(target_modules=["first", "second"]))
    assert list(branches(model)) == ["first"]
