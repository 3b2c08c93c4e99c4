"""Each field of each method changes its adapter, is refused or warned of, or is known to have no
effect.
"""

import dataclasses

import pytest
import torch
from peft import get_peft_model
from torch import nn

from qpeft import methods
from qpeft.errors import ConfigError, QpeftWarning
from qpeft.methods.method import imported

# the fields that may be without effect, of which each is documented:
CIRCUIT = ["n_layers", "ansatz", "angle_scale"]  # a control takes all settings of its circuit
ANGLES = ["bits", "angle_scale"]  # accepted with frozen angles
SHAPES = ["share", "construction"]  # for several matrices of a type, and other widths
SEED = ["seed"]  # of what is drawn; a run sets it for every method
CASES = [
    ("qpa", {}, []),
    ("qpa", {"hidden": (4,)}, []),
    ("qpa", {"feature_source": "qnn_frozen"}, CIRCUIT),
    ("qpa", {"feature_source": "free"}, CIRCUIT),
    ("qpa", {"feature_source": "none"}, CIRCUIT),
    ("quantum_peft", {}, SHAPES),
    ("quantum_peft", {"family": "lie"}, SHAPES),
    # frame_rank is reduced to what fits; core has no angles
    (
        "quantum_peft",
        {"family": "core", "frame": "random"},
        [*SHAPES, "frame_rank", "angle_scale"],
    ),
    ("quantum_peft", {"freeze_angles": True}, [*SHAPES, *ANGLES]),
    ("qaa", {}, []),
    ("qaa", {"readout": "last_r"}, []),
    ("qaa", {"feature_source": "linear"}, [*CIRCUIT, "train_circuit"]),
    ("qaa", {"feature_source": "givens"}, CIRCUIT),  # ansatze with as many angles are equal
    ("qaa", {"feature_source": "none"}, [*CIRCUIT, *SEED, "train_circuit", "carry_norm"]),
    ("cua", {}, []),
    ("quic", {}, SEED),
    ("quic", {"order": 1}, SEED),
    ("quanta", {}, []),
    ("quanta", {"form": "mpo"}, []),
    ("bottleneck", {}, []),
    ("sora", {}, ["shrink_budget"]),  # of training
]


def other_values(field, value):
    if "choices" in field.metadata:
        return [other for other in field.metadata["choices"] if other != value]
    if isinstance(value, bool):
        return [not value]
    return [value + 1] if isinstance(value, int | float) else []


def outputs_and_gradients(config):
    """Of a model of two maps, after its trained parameters have been moved."""
    torch.manual_seed(0)
    base = nn.ModuleDict({"first": nn.Linear(12, 16), "second": nn.Linear(16, 12)})
    model = get_peft_model(base, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data += torch.randn_like(p) / 10
    y = base["second"](base["first"](torch.randn(3, 12)))
    y.square().sum().backward()
    return [y, *(p.grad for p in trained)]


@pytest.mark.filterwarnings("ignore:SoRA")
@pytest.mark.parametrize("method, settings, without_effect", CASES, ids=str)
def test_every_field_has_an_effect_or_is_named(method, settings, without_effect):
    record = methods.get(method)
    usual = {"target_modules": ["first", "second"], **settings}
    if method == "qpa":
        usual["chunk_size"] = 16
    config = record.config_class(**usual)
    expected = outputs_and_gradients(config)

    silent = set()
    for field in dataclasses.fields(imported(record.options)):
        if field.name in usual:
            continue
        for value in other_values(field, getattr(config, field.name)):
            try:
                changed = outputs_and_gradients(record.config_class(**{**usual, field.name: value}))
            except (ConfigError, QpeftWarning):  # warnings are errors here
                continue
            pairs = zip(changed, expected, strict=False)
            if len(changed) == len(expected) and all(a.equal(b) for a, b in pairs):
                silent.add(field.name)
    assert silent <= set(without_effect)
