"""QAA and CUA with measured circuits: shots and noise of every circuit on an input, their forecast
and budget.
"""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from qiskit.primitives import BackendSamplerV2
from qiskit.providers.fake_provider import GenericBackendV2
from qiskit.transpiler import CouplingMap
from torch import nn
from torch.testing import assert_close
from variants import move

import qpeft
from qpeft.backends import BackendSettings, ExactBackend
from qpeft.circuits import exact_probabilities
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import BackendError, CheckpointError, ConfigError
from qpeft.methods.cua.model import CUARotation
from qpeft_lab.training.input_circuits import angles_on_inputs, circuit_on_inputs
from qpeft_lab.training.measured import measured_scores

QAA = qpeft.QAAConfig
CUA = partial(qpeft.CUAConfig, readout="magnitude")
LORA = LoraConfig(target_modules="all-linear")
MODELS = {  # with their circuits on a batch of 27 tokens
    "qaa": (QAA(carry_norm=True), 4 * 27),
    "qchft": (
        QAA(
            ansatz="all_pairs",
            readout="last_r",
            n_layers=2,
            target_modules=["down_proj"],
        ),
        2 * 27,
    ),
    "cua": (CUA(target_modules=["v_proj"]), 2 * 27 * 4),
    "cua behind maps": (
        CUA(target_modules=["down_proj", "gate_proj"], side="output", block_size=16),
        2 * 2 * 27,
    ),
}


def sweep(model, ids, points, seen=None, folder=Path(), **settings):
    """Exact logits, and costs and logits of measured circuits at each point; `seen` gets the costs,
    and each score.
    """
    seen = [] if seen is None else seen
    score = lambda: seen.append("score") or model(input_ids=ids).logits.detach()  # noqa: E731
    points = [BackendSettings(**settings, **point) for point in points]
    folder_of = lambda point: folder / f"{point.shots} {point.noise}"  # noqa: E731
    with torch.no_grad():
        return measured_scores(
            model,
            score,
            points,
            forecast=seen.extend,
            folder_of=folder_of,
        )


def scored(model, ids, seen=None, folder=Path(), **settings):
    """The costs of one point; exact and measured logits."""
    exact, ((costs, found),) = sweep(model, ids, [settings], seen, folder)
    return costs, {"adapted": exact, "measured": found}


@pytest.fixture(params=MODELS)
def adapted(request, llama):
    config, circuits = MODELS[request.param]
    return move(get_peft_model(llama, config), spread=0.3), circuits


def test_many_shots_give_the_exact_outputs_and_few_do_not(adapted, ids):
    model, circuits = adapted
    exact = model(input_ids=ids).logits.detach()
    for settings, tolerance in (({"noise": 0.0}, 1e-5), ({"shots": 10**9}, 2e-3)):
        costs, found = scored(model, ids, **settings)
        assert costs["circuits"] == circuits
        assert costs["shots"] == circuits * settings.get("shots", 0)
        for logits in found.values():
            assert_close(logits, exact, atol=tolerance, rtol=0)
    few, again = (scored(model, ids, shots=20)[1]["measured"] for _ in range(2))

    assert (few - exact).abs().max() > 5e-3
    assert torch.equal(few, again)  # counts depend on the seed
    assert torch.equal(model(input_ids=ids).logits, exact)  # nothing is left in the model


@torch.no_grad()
def test_cua_has_the_check_values_of_noise_and_counts():
    """C4: lam = 0.119; and without noise the counts of NumPy's generator."""
    x = torch.arange(1, 5, dtype=torch.float64)
    k = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    rotation = CUARotation(CUA(), "f", (4, 4), SeededInit(0)).double()
    rotation.angles.tau.data = k[None].double()
    model, score = nn.ModuleDict({"f": rotation}), lambda: x + rotation(x)
    _, [(_, noisy), (_, counted)] = measured_scores(
        model, score, [BackendSettings(noise=0.119), BackendSettings(shots=8192)]
    )
    expected = torch.tensor([1.200433, 1.333292, 1.026517, 5.072234], dtype=torch.float64)

    assert_close(noisy, expected, atol=1e-6, rtol=0)

    counts = 8192 * counted.square() / x.square().sum()
    assert counts.round().tolist() == [151, 276, 60, 7705]


@torch.no_grad()
def test_noise_shrinks_the_features_of_qaa_and_zero_inputs_have_none(llama):
    layer = get_peft_model(llama, QAA()).model.model.layers[0].self_attn.q_proj
    features = layer.qpeft_adapter["default"].features
    x = torch.randn(5, 16)
    x[0] = 0
    score = lambda: features(x, layer.qpeft_adapter["default"].measure)  # noqa: E731
    _, [(_, found)] = measured_scores(layer, score, [BackendSettings(noise=0.3)])

    assert_close(found, 0.7 * features(x), atol=1e-5, rtol=0)


def test_budget_is_checked_after_the_forecast_and_before_any_shot(llama, ids):
    model = get_peft_model(llama, QAA())
    seen = []
    scored(model, ids, shots=100, shot_budget=100 * 108)

    with pytest.raises(ConfigError, match="10,800 more shots"):
        scored(model, ids, seen, shots=100, shot_budget=100 * 108 - 1)
    assert seen == [
        "score",
        {
            "noise": 0.0,
            "shots_per_circuit": 100,
            "circuits": 108,
            "shots": 10_800,
        },
    ]


@pytest.mark.parametrize("place", ["simulated", "device"])
def test_points_share_a_forecast_and_a_budget_and_have_counts_of_their_own(
    llama, ids, tmp_path, place
):
    model = move(get_peft_model(llama, MODELS["cua"][0]), spread=0.3)
    device = Flaky()
    settings = {"backend": device} if place == "device" else {}
    run = partial(
        sweep, model, ids, [{"shots": 64}, {"shots": 4096}], folder=tmp_path / "all", **settings
    )

    with pytest.raises(ConfigError, match="898,560 more shots"):
        run(seen := [], shot_budget=216 * 4160 - 1)
    assert seen[0] == "score"
    assert [costs["shots"] for costs in seen[1:]] == [216 * 64, 216 * 4096]
    assert not device.jobs

    exact, ((_, few), (_, many)) = run(shot_budget=216 * 4160)
    assert 0 < (many - exact).abs().mean() < (few - exact).abs().mean() / 4

    for shots, logits in ((64, few), (4096, many)):
        alone = scored(model, ids, shots=shots, folder=tmp_path / "alone", **settings)[1][
            "measured"
        ]
        assert torch.equal(alone, logits)


@pytest.mark.parametrize(
    "config",
    [
        QAA(feature_source="quadratic"),
        qpeft.CUAConfig(),
        CUA(side="output", block_size=6),
        qpeft.QuICConfig(),
        LORA,
    ],
)
def test_adapters_without_measured_circuits_are_refused(llama, ids, config):
    with pytest.raises(ConfigError, match="no circuits that are measured"):
        scored(model := get_peft_model(llama, config), ids, seen := [], shots=100)
    assert not seen
    with pytest.raises(ConfigError, match="measured by qpeft evaluate"):
        qpeft.set_backend(model, shots=100)


# on devices: an input is prepared by rotations


class Flaky(ExactBackend):
    """Counts circuits, and does not answer the job `fails`."""

    def __init__(self, fails=None):
        self.fails, self.jobs, self.circuits = fails, 0, 0

    def run(self, ansatz, angles, shots, seed):
        self.jobs += 1
        if self.jobs == self.fails:
            raise ConnectionError("queue is down")
        self.circuits += len(angles)
        return super().run(ansatz, angles, shots, seed)


@pytest.mark.parametrize(
    "backend",
    [
        "pennylane:default.qubit",
        Flaky(),
    ],
    ids=["pennylane", "own"],
)
def test_devices_without_shots_give_the_exact_outputs(adapted, ids, tmp_path, backend):
    model, circuits = adapted
    costs, found = scored(model, ids, folder=tmp_path, backend=backend)
    assert costs["circuits"] == circuits
    assert_close(found["measured"], found["adapted"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_qubits", [1, 2, 3, 4])
@pytest.mark.parametrize("sign", [1, -1])  # of the determinant
def test_any_orthogonal_matrix_and_ansatz_is_a_circuit_on_inputs(n_qubits, sign):
    q = torch.linalg.qr(torch.randn(5, 2**n_qubits, 2**n_qubits, dtype=torch.float64)).Q
    q[:, 0] *= torch.where(torch.linalg.det(q) * sign > 0, 1, -1)[:, None]
    a = torch.nn.functional.normalize(torch.randn(7, 5, 2**n_qubits, dtype=torch.float64), dim=-1)
    a[0, 0] = torch.eye(2**n_qubits)[-1]
    ansatz = circuit_on_inputs(2**n_qubits, None)
    angles = angles_on_inputs(a.numpy(), None, q.numpy())

    assert ansatz.n_angles == 2**n_qubits - 1 + 2**n_qubits * (2**n_qubits - 1) // 2

    found = exact_probabilities(ansatz, torch.from_numpy(angles).flatten(0, 1)).view(a.shape)
    assert_close(
        found,
        torch.einsum("mij,rmj->rmi", q, a).square(),
        atol=1e-13,
        rtol=0,
    )


# Qiskit's, on fake devices
@pytest.mark.filterwarnings("ignore:.*has no QubitProperties:UserWarning")
@pytest.mark.parametrize("name", ["qiskit:aer", "fake"])
def test_counts_of_qiskit_are_those_of_the_exact_probabilities(llama, ids, tmp_path, name):
    fake = GenericBackendV2(
        4,
        coupling_map=CouplingMap.from_line(4),
        noise_info=False,
        seed=1,
    )
    backend = (
        BackendSamplerV2(backend=fake, options={"seed_simulator": 0}) if name == "fake" else name
    )
    for number, config in enumerate(
        (QAA(target_modules=["q_proj"]), CUA(target_modules=["v_proj"]))
    ):
        model = move(get_peft_model(copy.deepcopy(llama), config), spread=0.3)
        _, found = scored(
            model, ids[:1], folder=tmp_path / f"{number}", backend=backend, shots=20_000
        )
        error, few = (found[name] - found["adapted"] for name in ("measured", "adapted"))
        assert 0 < error.abs().max() < 0.05
        assert not few.any()


def test_a_failed_job_loses_nothing_and_the_budget_counts_it(llama, ids, tmp_path):
    model = move(get_peft_model(llama, MODELS["cua"][0]), spread=0.3)
    run = partial(scored, model, torch.cat([ids] * 3), folder=tmp_path, shots=100)
    whole = Flaky()
    expected = scored(
        model, torch.cat([ids] * 3), folder=tmp_path / "whole", shots=100, backend=whole
    )[1]

    assert whole.jobs == 4
    assert whole.circuits == 648

    first = Flaky(fails=3)
    with pytest.raises(BackendError, match="queue is down"):
        run(backend=first, shot_budget=64_800)
    with pytest.raises(
        ConfigError, match="32,400 more shots are needed, and 58,000"
    ):  # sent, 256 + 68 + 256
        run(backend=(second := Flaky()), shot_budget=64_800)
    assert not second.jobs

    costs, found = run(backend=second, shot_budget=90_400)
    assert costs["circuits"] == 648
    assert costs["jobs"] == 4
    assert costs["answered_before"] == first.circuits
    assert first.circuits + second.circuits == 648
    assert torch.equal(found["measured"], expected["measured"])

    again = Flaky(fails=1)
    assert torch.equal(run(backend=again, shot_budget=1)[1]["measured"], expected["measured"])
    assert not again.jobs

    # its 68 circuits are sent again
    (tmp_path / "100 0.0" / "1.safetensors").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match="6,800 more shots"):
        run(backend=again, shot_budget=6_799)
    assert torch.equal(run(backend=Flaky())[1]["measured"], expected["measured"])
    with pytest.raises(CheckpointError, match="other inputs"):
        run(backend=move(model, seed=1, spread=0.5) and again)
    assert not again.jobs


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"backend": "abacus"}, "abacus"),
        ({"backend": "qiskit:aer"}, "set shots"),
        ({"shots": -1}, "shots"),
    ],
)
def test_unusable_devices_are_refused_before_any_job(llama, ids, tmp_path, settings, named):
    with pytest.raises(ConfigError, match=named):
        scored(get_peft_model(llama, QAA()), ids, folder=tmp_path, **settings)
    assert not any(tmp_path.iterdir())
