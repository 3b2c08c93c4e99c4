"""A circuit as a function of its angles: gradients, refused options, training; jobs: costs,
failures, budget, log.
"""

import copy
import threading
from functools import partial

import numpy as np
import pytest
import torch
from folders import read_rows
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close

import qpeft
from circuits import SHARED, by_pennylane, random_angles, value_and_gradient
from qpeft.backends import Backend, CircuitRun, ExactBackend, Jobs
from qpeft.circuits import Ansatz, exact_probabilities, probabilities
from qpeft.errors import BackendError, CheckpointError, ConfigError
from qpeft.methods.qpa.generator import CircuitFeature

LADDER = Ansatz("ry_ladder", 3, 2)
WEIGHTS = torch.arange(8, dtype=torch.float64)


@pytest.fixture
def angles():
    return (0.1 * (1 + torch.arange(6, dtype=torch.float64)).reshape(2, 3)).requires_grad_()


def make(shots=None, seed=0, ansatz=LADDER, backend=None):
    return CircuitRun(ansatz, Jobs(backend or ExactBackend(), shots, seed=seed))


def gradient(run, angles):
    return torch.autograd.grad(WEIGHTS @ run(angles), angles)[0]


def test_parameter_shift_equals_autograd_without_shots(angles):
    assert make().circuits_per_step == 13
    assert_close(gradient(make(), angles), gradient(probabilities, angles), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", SHARED)
def test_shared_and_scaled_angles_are_shifted_gate_by_gate(name):
    """Against autograd of the exact simulator, and PennyLane's backpropagation."""
    ansatz = SHARED[name]
    run = make(ansatz=ansatz)
    n_gates = sum(gate.slot is not None for gate in ansatz.gates())

    assert not ansatz.has_shift_rule
    assert run.circuits_per_step == 1 + 2 * n_gates

    at = random_angles(ansatz)
    p, slopes = value_and_gradient(run, at, WEIGHTS)
    for reference in (partial(exact_probabilities, ansatz), by_pennylane(ansatz)):
        expected_p, expected = value_and_gradient(reference, at, WEIGHTS)
        assert_close(p, expected_p, atol=1e-10, rtol=0)
        assert_close(slopes, expected, atol=1e-10, rtol=0)

    assert run.jobs.used["circuits"] == run.circuits_per_step
    assert run.jobs.used["jobs"] == 2
    assert make(ansatz=ansatz).forecast(1)["jobs_per_step"] == 2


@pytest.mark.filterwarnings("ignore:1000 shots")
def test_sampled_gradients_are_unbiased(angles):
    """Mean of 300 gradients of 1000 shots within 4 standard errors, and the spread is that of
    sampling.
    """
    slopes = torch.stack([gradient(make(1000, seed=seed), angles) for seed in range(300)])
    error = slopes.std(dim=0) / np.sqrt(300)
    exact = gradient(probabilities, angles)

    assert ((slopes.mean(dim=0) - exact).abs() < 4 * error).all()
    assert (error > 0).all()


def test_counts_depend_only_on_seed_and_angles(angles):
    """A resumed run draws the same counts as an uninterrupted one."""
    run = make(100)
    first = run(angles.detach())
    other = run(angles.detach() + 1)

    assert torch.equal(run(angles.detach()), first)
    assert torch.equal(make(100)(angles.detach()), first)
    assert not torch.equal(make(100, seed=1)(angles.detach()), first)
    assert not torch.equal(other, first)


def test_shots_that_cannot_work_are_refused_and_few_warn():
    many = Ansatz("ry_ladder", 15, 1)
    with pytest.raises(ConfigError, match="at most 14 qubits"):
        make(10**7, ansatz=many)

    make(ansatz=many)  # exact probabilities have no limit
    counts_only = Backend()
    counts_only.name = "sampler"

    with pytest.raises(ConfigError, match="set shots"):
        make(backend=counts_only)

    with pytest.warns(UserWarning, match="159 shots are few for 4 qubits"):
        make(159, ansatz=Ansatz("ry_ladder", 4, 1))


@pytest.mark.parametrize(
    "options, named",
    [
        ({"shots": 0}, "shots"),
        ({"shots": 2.5}, "shots"),
        ({"shots": "4096"}, "shots"),
        ({"shots": 10**20}, "shots"),
        ({"shots": 100, "shot_budget": -5}, "shot_budget"),
        ({"noise": float("nan")}, "noise"),
        ({"noise": 1.0}, "noise"),
        ({"backend": "abacus"}, "backend 'abacus'"),
        ({"shots": 100, "log": "nowhere/jobs.jsonl"}, "nowhere"),
    ],
)
def test_values_out_of_range_are_refused_before_any_job(llama, adapters, options, named):
    model = adapters.qpa(llama, chunk_size=64)
    with pytest.raises((ConfigError, FileNotFoundError), match=named):
        qpeft.set_backend(model, **options)
    assert all(
        feature.backend is None
        for feature in model.modules()
        if isinstance(feature, CircuitFeature)
    )


class Counting(ExactBackend):
    """Counts what a device would receive."""

    def __init__(self):
        self.jobs = self.circuits = 0

    def run(self, ansatz, angles, shots, seed):
        self.jobs, self.circuits = self.jobs + 1, self.circuits + len(angles)
        return super().run(ansatz, angles, shots, seed)


SEVERAL = {"n_generators": 3, "chunk_size": 64, "hidden": (), "features": 4}


@pytest.mark.parametrize(
    "settings",
    [SEVERAL, {**SEVERAL, "feature_source": "qnn_frozen"}, {**SEVERAL, "n_generators": 1}],
)
def test_circuits_of_a_step_are_those_that_the_device_receives(llama, ids, adapters, settings):
    device = Counting()
    model = adapters.qpa(llama, **settings)
    run = qpeft.set_backend(model, device, shots=5000)
    planned = qpeft.plan(
        llama.config, model.peft_config["default"], backend=Counting(), shots=5000, steps=4
    )
    adapters.train(model, ids, steps=4)
    found = planned.circuits

    assert device.circuits == 4 * run.circuits_per_step
    assert device.jobs == 4 * found["jobs_per_step"]
    assert run.jobs.used["circuits"] == device.circuits
    assert found["circuits"] == device.circuits
    assert found["circuits_per_step"] == run.circuits_per_step
    assert found["shots"] == 5000 * device.circuits
    assert planned.sizes["n_circuits"] == settings["n_generators"]


def test_micro_batches_share_the_circuits_of_a_step(llama, ids, adapters):
    model = adapters.qpa(llama, **SEVERAL)
    run = qpeft.set_backend(model, device := Counting(), shots=5000)
    model(ids, labels=ids).loss.backward()
    once = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model(ids, labels=ids).loss.backward()
    twice = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    assert device.circuits == run.circuits_per_step
    assert_close(twice, [2 * gradient for gradient in once])


@pytest.mark.parametrize("source", ["qnn", "qnn_frozen"])
def test_every_step_has_shot_noise_of_its_own(llama, adapters, source):
    """Frozen angles are equal in all steps; a map could learn noise that is equal, too."""
    model = adapters.qpa(llama, chunk_size=64, feature_source=source)
    generator = model.base_model.generators["default"]
    qpeft.set_backend(model, shots=2000)
    (circuit,) = [part for part in generator.modules() if isinstance(part, CircuitFeature)]
    measured = []
    circuit.register_forward_hook(lambda *called: measured.append(called[-1].detach()))
    for _ in range(2):
        generator()
    with torch.no_grad():
        next(p for p in generator.parameters() if p.requires_grad and p.ndim == 2).add_(1e-3)
    generator()

    first, again, later = measured
    assert torch.equal(first, again)  # in one state
    assert not torch.equal(first, later)


def test_shot_budget_counts_the_circuits_of_all_generators(llama, ids, adapters):
    model = adapters.qpa(llama, **SEVERAL)
    each = 1 + 2 * next(m for m in model.modules() if isinstance(m, CircuitFeature)).ansatz.n_angles
    config = model.peft_config["default"]
    for budget in (2 * each * 5000, 6 * each * 5000 - 1):
        run = qpeft.set_backend(model, shots=5000, shot_budget=budget)
        with pytest.raises(ConfigError, match="shot_budget"):
            run.forecast(2)
        with pytest.raises(ConfigError, match="shot_budget"):
            qpeft.plan(llama.config, config, shots=5000, shot_budget=budget, steps=2)
    run = qpeft.set_backend(model, shots=5000, shot_budget=6 * each * 5000)
    run.forecast(2)
    adapters.train(model, ids, steps=2)

    assert run.jobs.used["shots"] == 6 * each * 5000


def test_training_with_shots_evaluates_and_exports_exactly(llama, ids, adapters, tmp_path):
    base = adapters.logits(llama, ids)
    model = adapters.qpa(llama, chunk_size=64, feature_map="squash")
    qpeft.set_backend(model, shots=2000)
    noisy = adapters.logits(model, ids)

    assert_close(noisy, base, atol=1e-2, rtol=0)  # sampling noise around the exact start
    assert not torch.equal(noisy, base)

    before = model(input_ids=ids, labels=ids).loss.item()
    assert adapters.train(model, ids, steps=10)(input_ids=ids, labels=ids).loss < before

    report = qpeft.export(model, tmp_path / "exported")
    assert report.max_logit_difference <= 1e-6

    qpeft.set_backend(model)
    exact = adapters.logits(model, ids)
    stock = PeftModel.from_pretrained(model.unload(), tmp_path / "exported").eval()

    assert_close(adapters.logits(stock, ids), exact, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:Adapter default was active which is now deleted")
def test_adapters_that_are_added_or_loaded_later_run_on_the_backend(llama, adapters, tmp_path):
    model = adapters.qpa(llama)
    run = qpeft.set_backend(model, shots=5000)
    model.save_pretrained(tmp_path)
    model.add_adapter("added", copy.deepcopy(model.peft_config["default"]))
    model.delete_adapter("default")
    model.load_adapter(tmp_path, "loaded")
    later = [model.base_model.generators[name].feature for name in ("added", "loaded")]

    assert all(circuit.backend.jobs is run.jobs for circuit in later)

    qpeft.set_backend(model)
    model.add_adapter("plain", copy.deepcopy(model.peft_config["added"]))
    later.append(model.base_model.generators["plain"].feature)
    assert [circuit.backend for circuit in later] == [None] * 3


@pytest.mark.parametrize("is_attached", [False, True])
def test_adapter_merged_with_exact_values_is_unmerged_with_them(llama, ids, adapters, is_attached):
    """PEFT unmerges in a forward pass, for which the backend would draw other values."""
    base = adapters.logits(llama, ids)
    weights = copy.deepcopy(llama.state_dict())
    if is_attached:
        host = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"]))
        model = qpeft.attach(host, qpeft.QPAGeneratorConfig(chunk_size=64, feature_map="squash"))
    else:
        model = adapters.qpa(llama, chunk_size=64, feature_map="squash")
    adapters.train(model, ids, steps=3).eval()
    qpeft.set_backend(model, shots=2000)
    model.merge_adapter()
    with model.disable_adapter():
        assert_close(adapters.logits(model, ids), base, atol=1e-6, rtol=0)
    state = model.unload().state_dict()
    for name, weight in weights.items():
        assert_close(state[name], weight, atol=1e-7, rtol=0)


def test_backend_is_not_saved_with_a_whole_model(llama, ids, adapters, tmp_path):
    model = adapters.train(adapters.qpa(llama, chunk_size=64), ids, steps=3).eval()
    exact = adapters.logits(model, ids)
    backend = ExactBackend()
    backend.handle = threading.Lock()  # a device that cannot be pickled
    run = qpeft.set_backend(model, backend, shots=500)
    torch.save(model, tmp_path / "model.pt")
    used = run.jobs.used["jobs"]
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_close(adapters.logits(loaded, ids), exact, atol=1e-6, rtol=0)
    assert run.jobs.used["jobs"] == used
    with pytest.raises(AssertionError):  # the model itself keeps it
        assert_close(adapters.logits(model, ids), exact, atol=1e-6, rtol=0)


def test_model_without_a_circuit_is_refused(llama, adapters):
    with pytest.raises(ConfigError, match="no circuit"):
        qpeft.set_backend(adapters.qpa(llama, feature_source="none"), shots=100)


# -- jobs


SMALL = Ansatz("ry_ladder", 2, 1)
ANGLES = np.array([[[0.3, 0.7]], [[0.1, 0.2]]])  # two sets


class Answering(ExactBackend):
    """Its first answer is this one, or this error."""

    name = "answering"

    def __init__(self, answer):
        self.answers = [answer]

    def run(self, ansatz, angles, shots, seed):
        found = self.answers.pop() if self.answers else super().run(ansatz, angles, shots, seed)
        if isinstance(found, BaseException):
            raise found
        return np.asarray(found, dtype=float)


def costs(jobs):
    return tuple(jobs.used[name] for name in ("jobs", "circuits", "shots"))


def test_deep_copies_share_device_and_budget():
    backend = ExactBackend()
    backend.handle = threading.Lock()  # a device that cannot be copied
    jobs = Jobs(backend, 100, shot_budget=300)
    copy.deepcopy(jobs).run(SMALL, ANGLES)

    assert jobs.used["shots"] == 200
    with pytest.raises(BackendError, match="budget"):
        jobs.run(SMALL, ANGLES)


@pytest.mark.parametrize(
    "answer",
    [
        ConnectionError("queue is down\nsecond line"),
        [[1, 0, 0, 0]],
        [[1, 0, 0, 0], [np.nan, 0, 0, 1]],
        [[1, 0, 0, 0], [0.5, 0, 0, 0]],
        [[1, 0, 0, 0], [1.5, -0.5, 0, 0]],
    ],
    ids=str,
)
def test_failed_job_raises_and_later_jobs_run(tmp_path, answer):
    jobs = Jobs(Answering(answer), 100)
    jobs.log_to(tmp_path / "jobs.jsonl")
    with pytest.raises(
        BackendError, match=r"answering failed: .*(queue is down|not probabilities)\. Checkpoints"
    ):
        jobs.run(SMALL, ANGLES)
    assert np.array_equal(jobs.run(SMALL, ANGLES), Jobs(ExactBackend(), 100).run(SMALL, ANGLES))
    assert costs(jobs) == (1, 2, 400)  # a device may have run what it did not answer

    entries = read_rows(tmp_path / "jobs.jsonl")
    assert [entry["event"] for entry in entries] == ["sent", "sent", "answered"]


def test_shots_of_a_killed_job_count_as_used(tmp_path):
    jobs = Jobs(Answering(KeyboardInterrupt()), 100)
    jobs.log_to(tmp_path / "jobs.jsonl")
    with pytest.raises(KeyboardInterrupt):
        jobs.run(SMALL, ANGLES)

    again = Jobs(ExactBackend(), 100)
    again.log_to(tmp_path / "jobs.jsonl")
    assert costs(again) == (0, 0, 200)


def test_log_is_continued_after_an_incomplete_line(tmp_path):
    path = tmp_path / "jobs.jsonl"
    begun = Jobs(ExactBackend(), 100)
    begun.log_to(path)
    begun.run(SMALL, ANGLES)
    whole = path.read_text()
    # a kill in the middle of a line, or before its end
    for broken in (whole + '{"job": 2, "circ', whole.removesuffix("\n")):
        path.write_text(broken)
        jobs = Jobs(ExactBackend(), 100, shot_budget=300)
        jobs.log_to(path)
        assert costs(jobs) == (1, 2, 200)
        assert path.read_text() == whole

    with pytest.raises(BackendError, match="300"):
        jobs.run(SMALL, ANGLES)

    path.write_text('{"loss": 3.2}\n')
    with pytest.raises(CheckpointError, match=r"jobs\.jsonl"):
        jobs.log_to(path)


def test_distributed_training_is_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="exact simulator"):
        Jobs(ExactBackend()).run(SMALL, ANGLES)
