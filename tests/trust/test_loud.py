"""Issue 67, section 1: row E, and the list "Loud but wrong"."""

import copy
import io
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.hotswap import prepare_model_for_compiled_hotswap
from torch import nn
from torch.testing import assert_close
from variants import VARIANTS, move, trained

import qpeft
from qpeft import methods
from qpeft.circuits import exact_probabilities, from_qiskit
from qpeft.errors import CheckpointError, ConfigError
from qpeft_lab.data.sources import load_rows
from qpeft_lab.training.generate import Decoding, generate_texts

# -- E: transpiled circuits


@pytest.fixture
def routed():
    """A circuit on three qubits whose transpiled form swaps them, the angles, and the probabilities."""
    qiskit = pytest.importorskip("qiskit")
    from qiskit.circuit import ParameterVector
    from qiskit.quantum_info import Statevector

    angles = np.array([0.3, -0.8, 1.7])
    theta = ParameterVector("theta", 3)
    circuit = qiskit.QuantumCircuit(3)
    for wire in range(3):
        circuit.ry(theta[wire], wire)
    for pair in ((0, 2), (1, 0), (2, 1), (0, 2)):
        circuit.cx(*pair)
        circuit.ry(theta[pair[0]], pair[1])
    state = Statevector(circuit.assign_parameters({theta: angles}).reverse_bits())
    return circuit, torch.tensor(angles), torch.tensor(state.probabilities())


def transpiled(circuit, n_qubits, **options):
    from qiskit import transpile
    from qiskit.transpiler import CouplingMap

    line = CouplingMap.from_line(n_qubits)
    gates = ["rz", "sx", "x", "cx"]
    return transpile(circuit, coupling_map=line, basis_gates=gates, seed_transpiler=0, **options)


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("layout", [None, [2, 0, 1]])
@pytest.mark.parametrize("measured", [False, True])
def test_e_transpiled_circuit_has_the_probabilities_of_the_circuit_before(
    routed, level, layout, measured
):
    circuit, angles, expected = routed
    if measured:
        circuit.measure_all()
    found = transpiled(circuit, 3, optimization_level=level, initial_layout=layout)
    ansatz = from_qiskit(found)
    assert_close(exact_probabilities(ansatz, angles).flatten(), expected)


def test_e_idle_qubits_of_the_device_are_left_out(routed):
    circuit, angles, expected = routed
    ansatz = from_qiskit(transpiled(circuit, 5, optimization_level=0, initial_layout=[1, 2, 3]))
    assert ansatz.n_qubits == 3
    assert_close(exact_probabilities(ansatz, angles).flatten(), expected)


def test_e_routing_over_other_qubits_of_the_device_is_refused(routed):
    found = transpiled(routed[0], 5, optimization_level=0, initial_layout=[0, 2, 4])
    with pytest.raises(ConfigError, match="also acts on qubits"):
        from_qiskit(found)


# -- texts


def test_text_on_a_terminal_of_another_encoding_is_escaped(monkeypatch):
    from qpeft.__main__ import main

    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(
        "qpeft_lab.cli.app.build", lambda: lambda **_: sys.stdout.write("a bird \u2665")
    )
    main()
    sys.stdout.flush()

    assert shown.getvalue().strip() == b"a bird \\u2665"


def test_whole_number_is_a_temperature():
    model = tiny_models.gpt2(vocab_size=300)
    tokenizer = tiny_models.byte_tokenizer()
    (text,) = generate_texts(model, tokenizer, ["a"], Decoding(max_new_tokens=2), temperature=2)
    assert isinstance(text, str)


@pytest.mark.parametrize("by_line", [False, True])
def test_byte_order_mark_is_no_part_of_a_text(tmp_path, by_line):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa bird\n")
    (row,) = load_rows(str(tmp_path / "a.txt"), "train", by_line=by_line)
    assert row == {"text": "a bird" if by_line else "a bird\n"}


def test_text_needs_no_cache(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied", "cache")

    monkeypatch.setattr("datasets.load_dataset", fail)
    (tmp_path / "a.txt").write_text("a bird")
    assert load_rows(str(tmp_path / "a.txt"), "train") == [{"text": "a bird"}]


def test_example_of_a_method_imports_public_names_only():
    text = (Path(__file__).parents[2] / "examples" / "own_method.py").read_text()
    assert "qpeft.core" not in text
    assert "refuse_lora_options" in dir(methods)


# -- models in the hands of others

SOME = ["qpa", "quantum_peft", "sora", "attached to lora", "attached to a prefix"]


@pytest.fixture
def adapted(llama, request):
    return move(VARIANTS[request.param].adapt(llama))


@pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
@pytest.mark.parametrize("adapted", [*SOME, "quic, 1"], indirect=True)
@pytest.mark.parametrize("is_stepped", [False, True], ids=["", "after a step"])
def test_pickled_model_trains_like_the_original(adapted, ids, adapters, is_stepped):
    adapters.train(adapted, ids, steps=is_stepped)
    file = io.BytesIO()
    torch.save(adapted, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)

    assert torch.equal(adapters.logits(loaded, ids), adapters.logits(adapted, ids))

    trained = [adapters.logits(adapters.train(m, ids), ids) for m in (adapted, loaded)]
    assert torch.equal(*trained)


@pytest.mark.parametrize("adapted", SOME[:4], indirect=True)
def test_state_that_peft_gives_of_an_adapter_is_taken_back(adapted, ids, adapters):
    state = {key: t.clone() for key, t in get_peft_model_state_dict(adapted).items()}
    before = adapters.logits(adapted, ids)
    assert state

    move(adapted, seed=2)
    assert not torch.equal(adapters.logits(adapted, ids), before)

    set_peft_model_state_dict(adapted, state)
    assert_close(adapters.logits(adapted, ids), before, atol=0, rtol=0)


@pytest.mark.parametrize("adapted", ["qpa", "attached to a prefix"], indirect=True)
def test_compiled_model_is_saved_and_exported(adapted, ids, tmp_path):
    compiled = torch.compile(adapted, backend="eager")
    assert qpeft.export(compiled, tmp_path / "exported").max_logit_difference <= 1e-6
    qpeft.save(compiled, tmp_path / "saved")


MERGED = [name for name, variant in VARIANTS.items() if variant.merges]


@pytest.mark.filterwarnings("ignore:Unmerge result can be inaccurate")  # of PEFT, for IA3
@pytest.mark.parametrize("adapted", MERGED, indirect=True)
def test_weights_that_trl_sends_to_an_engine_are_those_of_the_merged_base(adapted):
    """TRL recognizes parameters of an adapter by the prefix of its tuner."""
    generation = pytest.importorskip("trl.generation.vllm_generation").VLLMGeneration
    sender = object.__new__(generation)
    sender.model = adapted
    sender._dist = SimpleNamespace(gather_params=lambda _: torch.no_grad(), is_fsdp=False)
    sent = {name: value.clone() for name, value in sender._iter_named_params()}
    merged = dict(copy.deepcopy(adapted).merge_and_unload().named_parameters())

    assert sent.keys() == merged.keys()

    for name, value in sent.items():
        assert_close(value, merged[name].data)


def federated(models):
    """The mean of what PEFT gives of each adapter, as frameworks compute it with NumPy; all take it."""
    states = []
    for model in models:
        holder = getattr(model.base_model, "generators", None)
        with holder.keeping_latent() if holder is not None else nullcontext():
            states.append(get_peft_model_state_dict(model))
    weights = [1 / 7, 2 / 7, 4 / 7]
    mean = {
        key: torch.tensor(
            sum(
                w * state[key].numpy().astype(float)
                for w, state in zip(weights, states, strict=True)
            )
        )
        for key in states[0]
    }
    for model in models:
        set_peft_model_state_dict(model, mean)


@pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
@pytest.mark.parametrize("name", [*SOME[:4], "quantum_peft in frames", "quic, 1"])
def test_states_of_several_models_are_averaged(llama, ids, adapters, tmp_path, name):
    first = VARIANTS[name].adapt(llama)
    models = [move(copy.deepcopy(first), seed) for seed in range(3)]
    parameters = [trained(model) for model in models]
    expected = [(a + 2 * b + 4 * c) / 7 for a, b, c in zip(*parameters, strict=True)]
    federated(models)
    for parameter, mean in zip(parameters[2], expected, strict=True):
        assert_close(parameter, mean)
    qpeft.save(models[1], tmp_path)  # with its fingerprint
    loaded = qpeft.load(copy.deepcopy(models[0]).unload(), tmp_path)

    assert_close(adapters.logits(loaded, ids), adapters.logits(models[2], ids))


@pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
@pytest.mark.parametrize("name", ["qpa", "quantum_peft", "sora", "attached to lora"])
def test_replaced_modules_are_refused(llama, ids, tmp_path, name):
    """PEFT pads lora_A and lora_B by new modules, which would be trained in place of the generator."""
    model = VARIANTS[name].adapt(copy.deepcopy(llama))
    prepare_model_for_compiled_hotswap(model, target_rank=16)
    for use in (
        lambda: model(ids),
        lambda: qpeft.save(model, tmp_path / "a"),
        lambda: qpeft.export(model, tmp_path / "b"),
    ):
        with pytest.raises(ConfigError, match="somebody has replaced modules"):
            use()


def test_wrapped_and_copied_modules_are_those_of_the_adapter(llama, ids, adapters):
    model = VARIANTS["qpa"].adapt(copy.deepcopy(llama))
    expected = adapters.logits(model, ids)
    projections = model.get_base_model().model.layers[0].self_attn.q_proj
    projections.lora_A["default"] = nn.Sequential(projections.lora_A["default"])
    with pytest.raises(AttributeError, match="weight"):  # of PEFT's layer, not a refusal
        model(ids)
    projections.lora_A["default"] = projections.lora_A["default"][0]
    assert torch.equal(adapters.logits(copy.deepcopy(model), ids), expected)


@pytest.mark.filterwarnings("ignore:SoRA")  # no callback here
@pytest.mark.parametrize("n", [3, 64, 100])
@pytest.mark.parametrize("name", ["qpa", "quic, 1"])
def test_states_that_are_added_and_then_divided_are_averaged(llama, name, n):
    """The loop of most examples: in bytes the sum of the fingerprints is one modulo 256."""
    models = [move(VARIANTS[name].adapt(copy.deepcopy(llama)), seed) for seed in (0, 1)]
    states = [get_peft_model_state_dict(models[index % 2]) for index in range(n)]
    mean = {key: tensor.clone() for key, tensor in states[0].items()}
    for state in states[1:]:
        for key in mean:
            mean[key] += state[key]
    mean = {key: total / n for key, total in mean.items()}
    expected = [
        (a * (n - n // 2) + b * (n // 2)) / n for a, b in zip(*map(trained, models), strict=True)
    ]

    set_peft_model_state_dict(models[1], mean)

    for parameter, wanted in zip(trained(models[1]), expected, strict=True):
        assert_close(parameter, wanted)
    other = VARIANTS[name].adapt(copy.deepcopy(llama), seed=9)
    with pytest.raises(CheckpointError, match="other initial values or settings"):
        set_peft_model_state_dict(other, mean)


@pytest.mark.parametrize("adapted", ["quantum_peft"], indirect=True)
def test_averaged_bytes_are_refused(adapted):
    state = {key: t.double() for key, t in get_peft_model_state_dict(adapted).items()}
    with pytest.raises(CheckpointError, match=r"keeping_latent"):
        set_peft_model_state_dict(adapted, state)


@pytest.mark.parametrize("name", ["quanta, gates", "cua", "quic, 1"])
def test_part_of_the_inputs_of_a_map_is_refused(llama, name):
    """Tensor parallelism gives `o_proj` the half that its process has; QuanTA filled it with zeros."""
    model = VARIANTS[name].adapt(copy.deepcopy(llama), target_modules=["o_proj"])
    layer = model.get_base_model().model.layers[0].self_attn.o_proj
    with pytest.raises(ConfigError, match="tensor parallelism"):
        layer(torch.ones(1, layer.in_features // 2))
