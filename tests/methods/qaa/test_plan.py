"""Counts of QAA, against its formula and against what is trained."""

import pytest
from peft import get_peft_model
from transformers import GPT2Config, LlamaConfig

import qpeft
from qpeft.errors import ConfigError
from qpeft.methods.qaa.settings import FEATURE_SOURCES


@pytest.fixture(scope="module")
def gpt2_small():
    return GPT2Config()


def test_default_on_gpt2(gpt2_small):
    plan = qpeft.plan(gpt2_small, qpeft.QAAConfig())
    assert plan.trainable == plan.deployed == 203_112 == 12 * (30 + 1536 * 10 + 1536)
    assert plan.trainable_parts == {"angles": 360, "V": 184_320, "c": 18_432, "other": 0}
    assert plan.stored_bytes == 812_448
    assert (plan.n_qubits, plan.n_circuits, plan.dead_angles) == (10, 12, 0)
    assert (plan.method, plan.needs_qpeft, plan.exported_bytes) == ("qaa", True, None)
    assert len(plan.target_modules) == 12


def test_one_square_site():
    """30 + 7,680 + 768 parameters: a LoRA of rank 5.52."""
    config = LlamaConfig(vocab_size=10, hidden_size=768, num_hidden_layers=1, num_attention_heads=12)
    plan = qpeft.plan(config, qpeft.QAAConfig(target_modules=["q_proj"]))
    assert plan.trainable == 8478


@pytest.mark.parametrize(
    ("ansatz", "n_layers", "angles", "dead"),
    [("square", 2, 60, 0), ("qaa", 1, 10, 0), ("rxyz", 1, 30, 10), ("rxyz", 3, 90, 10)],
)
def test_dead_angles_are_counted_and_named(gpt2_small, ansatz, n_layers, angles, dead):
    plan = qpeft.plan(
        gpt2_small, qpeft.QAAConfig(ansatz=ansatz, n_layers=n_layers, target_modules=r".*\.h\.0\.attn\.c_attn")
    )
    assert plan.trainable_parts["angles"] == angles
    assert plan.dead_angles == dead
    notes = [note for note in plan.notes if "have no effect" in note]
    assert notes == ([f"{dead} angles of the last RZ block have no effect"] if dead else [])


def test_shared_circuits_count_once(gpt2_small):
    plan = qpeft.plan(gpt2_small, qpeft.QAAConfig(share_circuit=True, ansatz="rxyz", target_modules="all-linear"))
    assert plan.n_circuits == 2  # of input widths 768 and 3,072
    assert plan.trainable_parts["angles"] == 30 + 36
    assert (plan.dead_angles, plan.n_qubits) == (22, 12)
    assert any(note == "22 angles of the last RZ block have no effect" for note in plan.notes)


@pytest.mark.parametrize("source", FEATURE_SOURCES)
def test_plans_of_controls_equal_their_parameters(gpt2, source):
    config = qpeft.QAAConfig(feature_source=source, target_modules="all-linear", modules_to_save=["ln_f"])
    plan = qpeft.plan(gpt2, config)
    assert plan.trainable == get_peft_model(gpt2, config).get_nb_trainable_parameters()[0]
    assert plan.trainable_parts["other"] == 32
    assert any("is a control" in note for note in plan.notes) == (source != "qnn")
    assert (plan.n_circuits is None) == (source != "qnn")


def test_large_readout_needs_allow_large(gpt2_small):
    with pytest.raises(
        ConfigError, match=r"would train 1574430 parameters at transformer\.h\.0\.attn\.c_attn, not fewer"
    ):
        qpeft.plan(gpt2_small, qpeft.QAAConfig(readout="probs"))
    plan = qpeft.plan(gpt2_small, qpeft.QAAConfig(readout="probs", allow_large=True))
    assert plan.trainable == 12 * 1_574_430
    assert any("readout probs" in note for note in plan.notes)
