"""`qpeft circuits draw, count, export`, for an ansatz and for the circuit of an adapter; `qpeft
diagnose`.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from qiskit import qasm3
from qiskit.quantum_info import Statevector

from qpeft.circuits import Ansatz, Gate, probabilities, register_ansatz, to_openqasm
from qpeft_lab.cli.circuits import draw
from qpeft_lab.diagnose.adapters import Adapter


@pytest.fixture
def angles(adapter_folder):
    """The angles (L, N) of the adapter, which equal those of the model."""
    return Adapter(adapter_folder).circuit().angles


def test_ansatz_is_drawn(answer):
    answered = answer("circuits draw --ansatz two_design --n-qubits 3 --n-layers 2")
    assert answered["drawing"] == Ansatz("two_design", 3, 2).draw()
    assert answered["ansatz"] == "two_design"
    assert answered["n_qubits"] == 3
    assert answered["n_layers"] == 2
    assert answered["angles"] is None


def test_draw_lists_the_trained_angles_of_an_adapter(qpeft_cli, answer, adapter_folder, angles):
    np.testing.assert_array_equal(
        answer(f"circuits draw --adapter {adapter_folder}")["angles"], angles.numpy()
    )
    shown = qpeft_cli(f"circuits draw --adapter {adapter_folder}").stdout
    rows = [line.split() for line in shown.splitlines()[-len(angles) :]]
    np.testing.assert_allclose(np.array(rows, dtype=float), angles.numpy(), atol=5e-5)


@pytest.mark.parametrize("is_in_order", [True, False])
def test_columns_of_drawn_angles_are_wires_only_if_they_are(capsys, is_in_order):
    name = f"in_order_{is_in_order}"
    wires = [0, 1, 2] if is_in_order else [2, 1, 0]
    register_ansatz(
        name,
        lambda n, layers: (layers, n),
        lambda n, layers: [
            [Gate("ry", (wires[w],), (layer, w)) for w in range(n)] for layer in range(layers)
        ],
    )
    ansatz = Ansatz(name, 3, 2)
    choice = SimpleNamespace(circuit=lambda: (ansatz, np.zeros((2, 3))))
    draw.__wrapped__(choice=choice).print()
    assert ("one column for each wire" in capsys.readouterr().out) == is_in_order


def test_note_says_of_how_many_circuits_the_first_is_shown(qpeft_cli, save_adapter):
    shown = qpeft_cli(f"circuits draw --adapter {save_adapter(n_generators=2)}", code=0)
    assert "the adapter has 2 circuits; this is the first one" in " ".join(shown.stderr.split())


def test_counts_of_the_default_circuit(answer):
    """QPA's default circuit: 8 layers of 7 rotations and 6 CNOTs."""
    answered = answer("circuits count")
    assert answered["ansatz"] == "ry_ladder"
    assert answered["n_qubits"] == 7
    assert answered["n_layers"] == 8
    assert answered["n_angles"] == 56
    assert answered["gates"] == {"ry": 56, "cx": 48}
    assert answered["two_qubit_gates"] == 48
    assert answered["depth"] == 28


def test_export_has_the_probabilities_of_the_adapter_or_free_angles(
    qpeft_cli, adapter_folder, angles, tmp_path
):
    text = qpeft_cli(f"circuits export --adapter {adapter_folder}").stdout
    found = Statevector(qasm3.loads(text).reverse_bits()).probabilities()
    np.testing.assert_allclose(found, probabilities(angles).numpy(), atol=1e-12)

    expected = to_openqasm(Ansatz("ry_ladder", 2, 1))
    target = tmp_path / "new" / "circuit"
    link = tmp_path / "link"
    link.symlink_to(target)
    free = "circuits export --n-qubits 2 --n-layers 1"

    assert qpeft_cli(free).stdout == expected

    for mode in (0o644, 0o600):  # written through a link, with the permissions of its target
        qpeft_cli(f"{free} --out {link}", code=0)
        assert link.is_symlink()
        assert target.read_text(encoding="utf-8") == expected
        target.chmod(mode)
        target.write_text("of before")
    assert target.stat().st_mode & 0o777 == 0o600


# diagnose


def test_run_is_diagnosed_with_every_measurement_and_is_not_changed(
    answer, base_folder, text, tmp_path
):
    sizes = "--hidden 6,5 --chunk-size 32 --steps 4 --batch-size 2 --seq-len 32 --lr 0.01"
    answer(
        (f"train --model {base_folder} --data {text} --out {tmp_path}/run {sizes} --eval-blocks 4"),
    )
    before = sorted((tmp_path / "run").rglob("*"))
    answered = answer(f"diagnose {tmp_path}/run --samples 20 --html {tmp_path}/page.html")

    assert sorted((tmp_path / "run").rglob("*")) == before

    by_key = answered["findings"]
    assert tuple(by_key) == ("random", "redundant", "gradients", "expressive", "moved", "rank")

    page = (tmp_path / "page.html").read_text()
    assert all(finding["question"] in page for finding in by_key.values())
    assert "http" not in page
    assert set(by_key["random"]["measurements"]) == {"random angles", "start", "trained"}

    angles = by_key["redundant"]["measurements"]["angles"]
    n_qubits = answered["facts"]["n_qubits"]
    n_layers = answered["facts"]["n_layers"]

    assert angles["angles"] == n_qubits * n_layers
    assert angles["independent"] == min(n_qubits * n_layers, 2**n_qubits - 1)
    assert 0 < by_key["moved"]["measurements"]["angles"]["mean"] < 1

    updates = by_key["rank"]["measurements"]["updates of the weights"]
    assert updates["matrices"] == 14
    assert updates["numerical_rank"] <= 8
    assert all(finding["sentences"] or finding["left_out"] for finding in by_key.values())
    assert answer(f"diagnose {tmp_path}/run --samples 20")["findings"] == by_key, "equal seeds"
