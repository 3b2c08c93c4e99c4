"""`qpeft circuits draw, count, export`, for an ansatz and for the circuit of an adapter."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from qiskit import qasm3
from qiskit.quantum_info import Statevector

import qpeft
from qpeft.circuits import Ansatz, probabilities


def answered(qpeft_cli, *arguments):
    result = qpeft_cli("circuits", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="session")
def live_angles(adapter_folder, base_folder):
    """The angles (L, N) of the adapter in a model."""
    from transformers import AutoModelForCausalLM

    from qpeft.methods.qpa.features import CircuitFeature

    model = qpeft.load(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), adapter_folder)
    (feature,) = [module for module in model.modules() if isinstance(module, CircuitFeature)]
    return feature.angles().detach().double()


# draw


def test_draw_prints_the_drawing_of_the_ansatz(qpeft_cli):
    result = qpeft_cli("circuits", "draw", "--n-qubits", 4, "--n-layers", 2, "--width", 200)
    assert result.exit_code == 0
    assert result.stdout == Ansatz("ry_ladder", 4, 2).draw(200) + "\n"


def test_draw_fits_the_terminal(qpeft_cli):
    narrow, wide = (qpeft_cli("circuits", "draw", env={"COLUMNS": columns}).stdout for columns in ("90", "300"))
    assert "4 more" not in wide
    assert " more " in narrow
    assert max(map(len, narrow.splitlines())) <= 90 < max(map(len, wide.splitlines()))


@pytest.mark.parametrize("ansatz", ["ry_ladder", "two_design", "square", "qaa", "rxyz"])
def test_each_ansatz_is_drawn(qpeft_cli, ansatz):
    found = answered(qpeft_cli, "draw", "--ansatz", ansatz, "--n-qubits", 3, "--n-layers", 2)
    assert found["drawing"] == Ansatz(ansatz, 3, 2).draw()
    assert (found["ansatz"], found["n_qubits"], found["n_layers"], found["angles"]) == (ansatz, 3, 2, None)


OWN = """
from qpeft.circuits import Gate, register_ansatz
register_ansatz("turns", lambda n, layers: (layers, n),
                lambda n, layers: [[Gate("rx", (i,), (j, i)) for i in range(n)] for j in range(layers)])
"""


def test_ansatz_of_a_file_is_counted(qpeft_cli, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    found = answered(qpeft_cli, "count", "--ansatz", f"{tmp_path / 'own.py'}:turns", "--n-qubits", 3, "--n-layers", 2)
    assert (found["ansatz"], found["gates"], found["depth"]) == ("turns", {"rx": 6}, 2)
    refused = qpeft_cli("circuits", "draw", "--ansatz", f"{tmp_path / 'no.py'}:turns")
    assert refused.exit_code == 2
    assert re.search(r"no\.py:turns: the file .* does not exist", " ".join(refused.stderr.split()))


def test_draw_lists_the_trained_angles_of_an_adapter(qpeft_cli, adapter_folder, live_angles):
    found = answered(qpeft_cli, "draw", "--adapter", adapter_folder)
    np.testing.assert_allclose(found["angles"], live_angles.numpy(), atol=0)
    n_layers, n_qubits = live_angles.shape
    assert (found["n_layers"], found["n_qubits"]) == (n_layers, n_qubits)
    shown = qpeft_cli("circuits", "draw", "--adapter", adapter_folder).stdout
    rows = [line.split() for line in shown.splitlines()[-n_layers:]]
    np.testing.assert_allclose(np.array(rows, dtype=float), live_angles.numpy(), atol=5e-5)


# count


def test_counts_of_the_default_circuit(qpeft_cli):
    """QPA's default circuit: 8 layers of 7 rotations and 6 CNOTs."""
    found = answered(qpeft_cli, "count")
    assert (found["ansatz"], found["n_qubits"], found["n_layers"]) == ("ry_ladder", 7, 8)
    assert found["n_angles"] == 56
    assert found["gates"] == {"ry": 56, "cx": 48}
    assert found["two_qubit_gates"] == 48
    assert found["depth"] == 28
    assert found["transpiled"]["line"]["two_qubit_gates"] == 48
    assert set(found["transpiled"]) == {"all-to-all", "line", "heavy-hex"}


def test_counts_are_printed(qpeft_cli):
    result = qpeft_cli("circuits", "count", "--ansatz", "two_design", "--n-qubits", 3, "--n-layers", 1)
    assert result.stdout.startswith("two_design, n_qubits=3, n_layers=1\n")
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert ["angles", "7"] in lines
    assert ["gates", "9", "ry", "7,", "cz", "2"] in lines
    assert ["two-qubit", "gates", "2"] in lines
    assert [line[0] for line in lines[-3:]] == ["all-to-all", "line", "heavy-hex"]
    assert "rz, sx, x, cx" in result.stdout


def test_count_without_qiskit_names_the_extra_to_install(qpeft_cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "qiskit.transpiler", None)
    result = qpeft_cli("circuits", "count")
    assert result.exit_code == 0
    assert "the size after transpiling needs Qiskit: pip install qiskit qiskit-aer" in result.stdout
    assert re.search(r"depth +28", result.stdout)
    assert answered(qpeft_cli, "count")["transpiled"] is None


# export


def test_openqasm_export_has_the_probabilities_of_the_adapter(qpeft_cli, adapter_folder, live_angles):
    text = qpeft_cli("circuits", "export", "--adapter", adapter_folder).stdout
    found = Statevector(qasm3.loads(text).reverse_bits()).probabilities()
    np.testing.assert_allclose(found, probabilities(live_angles).numpy(), atol=1e-12)


@pytest.mark.parametrize("form", ["pennylane", "qiskit"])
def test_python_export_has_the_probabilities_of_the_adapter(qpeft_cli, adapter_folder, live_angles, form, tmp_path):
    out = tmp_path / "new" / "circuit.py"
    result = qpeft_cli("circuits", "export", "--adapter", adapter_folder, "--format", form, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Written to {out}.\n"
    namespace = {"__name__": "circuit"}
    exec(compile(out.read_text(encoding="utf-8"), str(out), "exec"), namespace)
    found = namespace["probabilities"](namespace["ANGLES"])
    np.testing.assert_allclose(found, probabilities(live_angles).numpy(), atol=1e-12)


def test_export_without_an_adapter_has_free_angles(qpeft_cli, tmp_path):
    result = qpeft_cli("circuits", "export", "--n-qubits", 2, "--n-layers", 1)
    assert result.stdout == Ansatz("ry_ladder", 2, 1).to_openqasm()
    found = answered(qpeft_cli, "export", "--n-qubits", 2, "--n-layers", 1, "--format", "qiskit")
    assert "ANGLES" not in found["text"]
    assert (found["format"], found["out"], found["angles"]) == ("qiskit", None, None)
    out = tmp_path / "circuit.qasm"
    found = answered(qpeft_cli, "export", "--out", out)
    assert found["out"] == str(out)
    assert found["text"] is None
    assert out.read_text(encoding="utf-8") == Ansatz("ry_ladder", 7, 8).to_openqasm()


def test_long_lines_of_an_export_are_not_wrapped(qpeft_cli, adapter_folder):
    text = qpeft_cli("circuits", "export", "--adapter", adapter_folder, "--format", "qiskit", env={"COLUMNS": "40"})
    compile(text.stdout, "circuit.py", "exec")
    assert max(map(len, text.stdout.splitlines())) > 60


# other adapters


@pytest.fixture(scope="module")
def make_adapter(base_folder, tmp_path_factory):
    """Saves an untrained adapter of any config on the tiny base."""

    def make(config, generator=None):
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        folder = tmp_path_factory.mktemp("adapter") / "adapter"
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32), config)
        if generator is not None:
            qpeft.attach(model, generator)
        qpeft.save(model, folder)
        return folder

    return make


SMALL = {"target_modules": ["q_proj", "v_proj"], "r": 2, "task_type": "CAUSAL_LM"}
GENERATOR = {"hidden": (6, 5), "chunk_size": 16, "n_layers": 2, "seed": 3}


def test_frozen_and_attached_circuits_have_their_initial_angles(qpeft_cli, make_adapter):
    """Untrained, so both have the angles that seed 3 draws."""
    from peft import LoraConfig

    frozen = make_adapter(qpeft.QPAConfig(feature_source="qnn_frozen", **SMALL, **GENERATOR))
    attached = make_adapter(LoraConfig(**SMALL), qpeft.QPAGeneratorConfig(**GENERATOR))
    first, second = (answered(qpeft_cli, "draw", "--adapter", folder)["angles"] for folder in (frozen, attached))
    assert np.shape(first) == np.shape(second)
    assert first == second
    assert np.abs(first).max() <= np.pi


@pytest.fixture(scope="module")
def three_circuits(make_adapter):
    """An adapter with three generators, and another one attached to a LoRA: the same angles."""
    from peft import LoraConfig

    several = {**GENERATOR, "hidden": (), "features": 4, "n_generators": 3}
    own = make_adapter(qpeft.QPAConfig(**SMALL, **several))
    return own, make_adapter(LoraConfig(**SMALL), qpeft.QPAGeneratorConfig(**several))


def test_every_circuit_of_an_adapter_can_be_chosen(qpeft_cli, three_circuits):
    from qpeft.core.seeded_init import SeededInit

    for folder in three_circuits:
        drawn = [answered(qpeft_cli, "draw", "--adapter", folder, "--circuit", n) for n in (1, 2, 3)]
        assert [(found["circuit"], found["n_circuits"]) for found in drawn] == [(1, 3), (2, 3), (3, 3)]
        angles = np.array([found["angles"] for found in drawn])
        np.testing.assert_array_equal(angles, SeededInit(3).uniform("angles", angles.shape, np.pi).double().numpy())
        assert answered(qpeft_cli, "draw", "--adapter", folder)["angles"] == drawn[0]["angles"]
        for number in (1, 2, 3):
            arguments = ("export", "--adapter", folder, "--circuit", number)
            text = qpeft_cli("circuits", *arguments).stdout
            assert text.startswith(f"// circuit {number} of 3 of the adapter\n")
            found = Statevector(qasm3.loads(text).reverse_bits()).probabilities()
            np.testing.assert_allclose(found, probabilities(torch.from_numpy(angles[number - 1])).numpy(), atol=1e-12)
            compile(answered(qpeft_cli, *arguments, "--format", "qiskit")["text"], "circuit.py", "exec")
        assert answered(qpeft_cli, "count", "--adapter", folder)["n_circuits"] == 3


def test_circuit_of_several_is_named(qpeft_cli, three_circuits, adapter_folder, tmp_path):
    folder = three_circuits[0]
    assert re.search(r"n_generators\W+3\b", (folder / "README.md").read_text(encoding="utf-8"))
    assert "circuit 1 of 3" in qpeft_cli("circuits", "draw", "--adapter", folder).stdout
    assert "each of 3 circuits" in qpeft_cli("circuits", "count", "--adapter", folder).stdout
    written = qpeft_cli("circuits", "export", "--adapter", folder, "--circuit", 2, "--out", tmp_path / "two.qasm")
    assert "Circuit 2 of 3 is written" in written.stdout
    diagnosed = answered_diagnosis(qpeft_cli, folder, "--circuit", 3)
    assert diagnosed["facts"]["Circuit"] == "3 of 3; each has angles of its own"
    law = [
        answered_diagnosis(qpeft_cli, folder, "--circuit", n)["findings"][0]["figures"]["start"]["ipr"] for n in (1, 2)
    ]
    assert law[0] != law[1]
    for arguments, message in [
        (("circuits", "draw", "--adapter", folder, "--circuit", 4), "has 3 circuits; choose one from 1 to 3"),
        (("diagnose", folder, "--samples", 10, "--circuit", 4), "has 3 circuits; choose one from 1 to 3"),
        (("circuits", "export", "--adapter", adapter_folder, "--circuit", 2), "has 1 circuit; leave it out"),
        (("circuits", "draw", "--circuit", 2), "--circuit chooses one of the circuits of an adapter"),
    ]:
        result = qpeft_cli(*arguments)
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.stderr.split())


def answered_diagnosis(qpeft_cli, folder, *arguments):
    result = qpeft_cli("diagnose", folder, "--samples", 10, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("ansatz", ["efficient_su2", "two_design"])
def test_angles_of_other_shapes_are_listed(qpeft_cli, make_adapter, ansatz):
    folder = make_adapter(qpeft.QPAConfig(ansatz=ansatz, **SMALL, **GENERATOR))
    result = qpeft_cli("circuits", "draw", "--adapter", folder)
    assert result.exit_code == 0, result.output
    shown = result.stdout.partition("angles in radians, of shape (")[2].split("\n", 2)[2]
    expected = answered(qpeft_cli, "draw", "--adapter", folder)["angles"]
    np.testing.assert_allclose(np.array(shown.split(), dtype=float), np.ravel(expected), atol=5e-5)


def test_run_folder_is_accepted_for_its_adapter(qpeft_cli, adapter_folder, tmp_path):
    (tmp_path / "adapter").symlink_to(adapter_folder)
    found, expected = (answered(qpeft_cli, "draw", "--adapter", folder) for folder in (tmp_path, adapter_folder))
    assert found == expected


@pytest.mark.parametrize("method", ["no circuit", "quantum_peft", "lora"])
def test_adapters_without_a_circuit_of_qpa_are_refused(qpeft_cli, make_adapter, method):
    from peft import LoraConfig

    config = {
        "no circuit": lambda: qpeft.QPAConfig(feature_source="none", **SMALL, **GENERATOR),
        "quantum_peft": lambda: qpeft.QuantumPeftConfig(**SMALL),
        "lora": lambda: LoraConfig(**SMALL),
    }[method]()
    result = qpeft_cli("circuits", "draw", "--adapter", make_adapter(config))
    assert result.exit_code == 2
    assert "has no circuit whose probabilities" in " ".join(result.stderr.split())


# bad input, help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw", "--ansatz", "ry_lader"], "unknown ansatz 'ry_lader'; did you mean 'ry_ladder'"),
        (["draw", "--n-qubits", "0"], "--n-qubits must be at least 1, got 0"),
        (["count", "--n-layers", "-1"], "--n-layers must be at least 1, got -1"),
        (["draw", "--width", "3"], "--width"),
        (["export", "--format", "cirq"], "unknown format 'cirq'; choose one of openqasm, pennylane, qiskit"),
        (["export", "--out", "."], "is a folder; give a file"),
        (["draw", "--adapter", "nowhere"], "no adapter at nowhere"),
        (["draw", "--adapter", "nowhere", "--n-qubits", "3"], "--adapter determines the circuit; leave out --ansatz"),
        (["drw"], "draw"),
    ],
)
def test_bad_input_exits_with_code_2(qpeft_cli, arguments, message):
    result = qpeft_cli("circuits", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_help_lists_the_commands_and_has_examples(qpeft_cli):
    text = qpeft_cli("circuits", "--help", env={"COLUMNS": "80"}).stdout
    assert all(f"\n│ {name} " in text for name in ("draw", "count", "export"))
    for name in ("draw", "count", "export"):
        text = qpeft_cli("circuits", name, "--help", env={"COLUMNS": "80"}).stdout
        assert f"qpeft circuits {name}" in text.split("Examples", 1)[1]
        assert max(map(len, text.splitlines())) <= 80


def test_help_loads_no_heavy_module():
    code = """
import contextlib, io, sys
from qpeft.cli.app import build
for name in ("draw", "count", "export"):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        build()(["circuits", name, "--help"])
assert "qpeft.cli.circuits" in sys.modules
print({"torch", "qiskit", "pennylane", "peft", "transformers", "numpy"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
