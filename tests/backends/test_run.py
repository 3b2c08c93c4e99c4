"""A circuit as a function of its angles: exact or unbiased gradients, refused options, training."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

import qpeft
from qpeft.backends import Backend, CircuitRun, ExactBackend, Jobs
from qpeft.backends.forecast import forecast
from qpeft.circuits import Ansatz, probabilities
from qpeft.errors import ConfigError
from qpeft.methods.qpa.features import CircuitFeature

LADDER = Ansatz("ry_ladder", 3, 2)
WEIGHTS = torch.arange(8, dtype=torch.float64)


class Sampler(Backend):
    """Counts only."""

    name = "sampler"
    default_shots = 300


@pytest.fixture
def angles():
    return (0.1 * (1 + torch.arange(6, dtype=torch.float64)).reshape(2, 3)).requires_grad_()


def make(shots=None, gradient="auto", seed=0, ansatz=LADDER, backend=None, **options):
    return CircuitRun(ansatz, Jobs(backend or ExactBackend(), shots, seed=seed), gradient, **options)


def gradient(run, angles):
    return torch.autograd.grad(WEIGHTS @ run(angles), angles)[0]


@pytest.mark.parametrize("rule", ["adjoint", "parameter-shift"])
def test_exact_rules_equal_autograd_without_shots(angles, rule):
    torch.testing.assert_close(
        gradient(make(gradient=rule), angles), gradient(probabilities, angles), atol=1e-12, rtol=0
    )


@pytest.mark.filterwarnings("ignore:1000 shots")
@pytest.mark.parametrize("rule", ["parameter-shift", "spsa"])
def test_sampled_gradients_are_unbiased(angles, rule):
    """Mean of 300 gradients of 1000 shots within 4 standard errors, and the spread is that of sampling."""
    found = torch.stack([gradient(make(1000, rule, seed), angles) for seed in range(300)])
    error = found.std(dim=0) / np.sqrt(300)
    bias = 0.0 if rule == "parameter-shift" else 0.02  # SPSA's step is finite: a share of the slope is lost
    exact = gradient(probabilities, angles)
    assert ((found.mean(dim=0) - exact).abs() < 4 * error + bias * exact.abs()).all()
    assert (error > 0).all()


def test_gradient_is_one_job(angles):
    run = make(1000)
    gradient(run, angles)
    assert (run.jobs.used.jobs, run.jobs.used.circuits, run.jobs.used.shots) == (2, 13, 13_000)
    assert run.circuits_per_step == 13


def test_frequencies_have_the_multinomial_spread(angles):
    draws = torch.stack([make(1000, seed=seed)(angles.detach()) for seed in range(2000)])
    p = probabilities(angles.detach())
    assert torch.equal(draws.sum(dim=1).round(decimals=9), torch.ones(2000, dtype=torch.float64))
    torch.testing.assert_close(draws.var(dim=0), p * (1 - p) / 1000, atol=2e-6, rtol=0.15)


def test_counts_depend_only_on_seed_and_angles(angles):
    """A resumed run draws the same counts as an uninterrupted one."""
    run = make(100)
    first, other = run(angles.detach()), run(angles.detach() + 1)
    assert torch.equal(run(angles.detach()), first)
    assert torch.equal(make(100)(angles.detach()), first)
    assert not torch.equal(make(100, seed=1)(angles.detach()), first)
    assert not torch.equal(other, first)


@given(counts=st.floats(0.1, 5), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_smoothed_probabilities_are_positive_and_sum_to_one(counts, seed):
    theta = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)  # all shots hit the first outcome
    run = make(100, seed=seed, smoothing=counts)
    p = run(theta)
    torch.testing.assert_close(p.sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(p.min(), torch.tensor(counts / (100 + 8 * counts), dtype=torch.float64))
    shift = 1e-3  # the gradient is that of the smoothed expectation, here of the exact backend's
    kept = 100 / (100 + 8 * counts)
    run.jobs.backend = Noiseless()
    numeric = (WEIGHTS @ (probabilities(theta + shift) - probabilities(theta - shift)) / (2 * shift) * kept).item()
    assert gradient(run, theta).sum().item() == pytest.approx(numeric, abs=1e-4)


class Noiseless(ExactBackend):
    """Returns exact probabilities also for shots."""

    def run(self, ansatz, angles, shots, seed):
        return super().run(ansatz, angles, None, seed)


def test_dtype_is_that_of_the_angles():
    run = make(2000)
    theta = torch.rand(2, 3, requires_grad=True)
    p = run(theta)
    assert p.dtype == torch.float32
    p[3].backward()
    assert theta.grad is not None
    assert theta.grad.shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 100, "gradient": "adjoint"}, "gradient='adjoint' needs exact probabilities; use gradient='para"),
        ({"smoothing": 0.5}, "smoothing applies to counts, but shots is not set"),
        ({"shots": 10**7, "ansatz": Ansatz("ry_ladder", 15, 1)}, "15 qubits are too many for exact"),
        ({"backend": Sampler(), "gradient": "adjoint"}, "gradient='adjoint' needs exact probabilities"),
    ],
)
def test_incompatible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_sampler_without_default_shots_needs_shots():
    backend = Sampler()
    assert Jobs(backend).shots == 300
    backend.default_shots = None
    with pytest.raises(ConfigError, match="sampler returns counts and no exact probabilities; set shots"):
        make(backend=backend)


def test_wide_circuits_run_if_allowed():
    ansatz = Ansatz("ry_ladder", 15, 1)
    with pytest.warns(UserWarning, match="100 shots for 32768 outcomes"):
        assert make(100, ansatz=ansatz, allow_wide=True)(torch.zeros(1, 15))[0] == 1
    assert make(ansatz=ansatz).gradient == "adjoint"  # the simulator itself has no limit here


def test_few_shots_warn():
    with pytest.warns(UserWarning, match="159 shots for 16 outcomes: sampling noise will dominate"):
        make(159, ansatz=Ansatz("ry_ladder", 4, 1))


def test_chosen_gradient_rule_is_reported():
    described = "exact: 3 qubits, 1,000 shots per circuit, gradients by parameter-shift, 13 circuits per step"
    assert str(make(1000)) == described
    assert str(make()) == "exact: 3 qubits, exact probabilities, gradients by adjoint, 2 circuits per step"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"shots": 2.5}, "shots must be a whole number, got 2.5"),
        ({"shots": "4096"}, "shots must be a whole number, got '4096'"),
        ({"shots": 10**20}, "shots must be below 9,223,372,036,854,775,808, got 1000"),
        ({"shots": 100, "shot_budget": -5}, "shot_budget must be at least 1, got -5"),
        ({"gradient": "guess"}, "unknown gradient 'guess'; choose one of auto, adjoint, parameter-shift, spsa"),
        ({"shots": 100, "smoothing": -1.0}, "smoothing must be at least 0, got -1.0"),
        ({"noise": float("nan")}, "noise must be a finite number, got nan"),
        ({"shots": 100, "retries": -1}, "retries must be a whole number, 0 or more, got -1"),
        (
            {"shots": 100, "log": "nowhere/jobs.jsonl"},
            "log: the folder nowhere does not exist; create it, or choose another file",
        ),
    ],
)
def test_values_out_of_range_are_refused_before_any_job(llama, adapters, options, message):
    model = adapters.qpa(llama, chunk_size=64)
    with pytest.raises(ConfigError, match=message):
        qpeft.set_backend(model, **options)
    assert all(feature.backend is None for feature in model.modules() if isinstance(feature, CircuitFeature))


def test_shots_as_numpy_integers(llama, adapters, tmp_path):
    model = adapters.qpa(llama, chunk_size=64)
    run = qpeft.set_backend(model, shots=np.int64(5000), log=tmp_path / "jobs.jsonl")
    run(torch.zeros(run.ansatz.angle_shape))
    assert run.jobs.used.shots == 5000


def test_subclass_of_the_exact_backend_is_called(llama, ids, adapters):
    class Mine(ExactBackend):
        calls = 0

        def run(self, *arguments):
            self.calls += 1
            return super().run(*arguments)

    mine = Mine()
    model = adapters.qpa(llama, chunk_size=64)
    assert qpeft.set_backend(model, mine) is not None
    adapters.logits(model, ids)
    assert mine.calls == 1


def test_frozen_angles_have_no_gradient_circuits(llama, ids, adapters):
    model = adapters.qpa(llama, chunk_size=64, feature_source="qnn_frozen")
    run = qpeft.set_backend(model, shots=5000)
    assert str(run).endswith("frozen angles, 1 circuit per step")
    adapters.train(model, ids, steps=3)
    assert run.jobs.used.circuits == 3


def test_training_sends_one_job_per_value_and_gradient(llama, ids, adapters):
    model = adapters.qpa(llama, chunk_size=64)
    run = qpeft.set_backend(model, shots=5000)
    adapters.train(model, ids, steps=3)
    assert run.jobs.used.circuits == 3 * run.circuits_per_step
    assert repr(run) == str(run)


class Counting(ExactBackend):
    """Counts what a device would receive."""

    def __init__(self):
        self.jobs = self.circuits = 0

    def run(self, ansatz, angles, shots, seed):
        self.jobs, self.circuits = self.jobs + 1, self.circuits + len(angles)
        return super().run(ansatz, angles, shots, seed)


SEVERAL = {"n_generators": 3, "chunk_size": 64, "hidden": (), "features": 4}


@pytest.mark.parametrize(
    "settings", [SEVERAL, {**SEVERAL, "feature_source": "qnn_frozen"}, {**SEVERAL, "n_generators": 1}]
)
def test_circuits_of_a_step_are_those_that_the_device_receives(llama, ids, adapters, settings):
    device = Counting()
    model = adapters.qpa(llama, **settings)
    run = qpeft.set_backend(model, device, shots=5000)
    planned = qpeft.plan(llama.config, model.peft_config["default"], backend=Counting(), shots=5000, steps=4)
    adapters.train(model, ids, steps=4)
    assert (device.circuits, device.jobs) == (4 * run.circuits_per_step, 4 * run.jobs_per_step)
    assert run.jobs.used.circuits == device.circuits
    found = planned.circuits
    assert (found["circuits"], found["circuits_per_step"]) == (device.circuits, run.circuits_per_step)
    assert (found["shots"], found["jobs_per_step"]) == (5000 * device.circuits, run.jobs_per_step)
    assert planned.n_circuits == settings["n_generators"]


def test_shot_budget_counts_the_circuits_of_all_generators(llama, ids, adapters):
    model = adapters.qpa(llama, **SEVERAL)
    each = 1 + 2 * next(m for m in model.modules() if isinstance(m, CircuitFeature)).ansatz.n_angles
    config = model.peft_config["default"]
    for budget, message in [
        (2 * each * 5000, f"2 steps of {3 * each} circuits with 5,000 shots need {6 * each * 5000:,} shots"),
        (6 * each * 5000 - 1, r"more than the shot budget"),
    ]:
        run = qpeft.set_backend(model, shots=5000, shot_budget=budget)
        with pytest.raises(ConfigError, match=message):
            run.check_budget(2)
        with pytest.raises(ConfigError, match=message):
            qpeft.plan(llama.config, config, shots=5000, shot_budget=budget, steps=2)
    run = qpeft.set_backend(model, shots=5000, shot_budget=6 * each * 5000)
    run.check_budget(2)
    adapters.train(model, ids, steps=2)
    assert run.jobs.used.shots == 6 * each * 5000
    assert f"exact: 3 circuits of {run.ansatz.n_qubits} qubits" in str(run)
    assert str(run).endswith(f"{3 * each} circuits per step")


def test_seconds_of_a_forecast_are_those_of_all_circuits(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("qpeft.backends.forecast.time.perf_counter", lambda: next(ticks))
    one, three = (forecast(make(1000, n_circuits=n), 10) for n in (1, 3))
    assert three.seconds_per_step == 3 * one.seconds_per_step
    assert three.seconds == 3 * one.seconds


def test_unknown_backend_is_refused(llama, adapters):
    model = adapters.qpa(llama, chunk_size=64)
    with pytest.raises(ConfigError, match="unknown backend 'abacus'; choose one of exact, pennylane:DEVICE"):
        qpeft.set_backend(model, "abacus")


def test_training_with_shots_evaluates_and_exports_exactly(llama, ids, adapters, tmp_path):
    base = adapters.logits(llama, ids)
    model = adapters.qpa(llama, chunk_size=64, feature_map="squash")
    qpeft.set_backend(model, shots=2000)
    noisy = adapters.logits(model, ids)
    torch.testing.assert_close(noisy, base, atol=1e-2, rtol=0)  # sampling noise around the exact start
    assert not torch.equal(noisy, base)
    before = model(input_ids=ids, labels=ids).loss.item()
    assert adapters.train(model, ids, steps=10)(input_ids=ids, labels=ids).loss < before
    report = qpeft.export(model, tmp_path / "exported")
    assert report.max_logit_difference <= 1e-6
    qpeft.set_backend(model)
    exact = adapters.logits(model, ids)
    stock = PeftModel.from_pretrained(model.unload(), tmp_path / "exported").eval()
    torch.testing.assert_close(adapters.logits(stock, ids), exact, atol=1e-6, rtol=0)


def test_model_without_a_circuit_is_refused(llama, adapters):
    with pytest.raises(ConfigError, match="the model has no circuit that a backend can run"):
        qpeft.set_backend(adapters.qpa(llama, feature_source="none"), shots=100)
