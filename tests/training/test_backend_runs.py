"""Runs whose circuits are computed by a backend: resumed after kills, robust to device failures, exported exactly."""

import json
from pathlib import Path

import pytest
import torch
from runs import Killed, Recorder, kill_at, weights

import qpeft
from qpeft.errors import BackendError, CheckpointError, ConfigError
from qpeft.training import train

STEPS = 6
N_CIRCUITS = 21  # a step: 5 qubits in 2 layers

DEVICE = '''
import random
from pathlib import Path

from qpeft.backends import ExactBackend


class Unreliable(ExactBackend):
    """Fails at random; always if there is a file `down` in its folder."""

    name = "unreliable"
    is_simulator = False
    draws = random.Random(0)

    def run(self, ansatz, angles, shots, seed):
        if (Path(__file__).parent / "down").exists() or self.draws.random() < 0.3:
            raise ConnectionError("no answer")
        return super().run(ansatz, angles, shots, seed)


device = Unreliable()


def make(n_qubits):
    assert n_qubits == 5
    return Unreliable()


def broken(n_qubits):
    raise RuntimeError("no credentials")


text = "lightning.qubit"
'''


@pytest.fixture
def on_backend(settings):
    """Settings of a QPA run of six steps of 21 circuits, with 512 shots."""

    def make(out="run", backend_settings=None, **changes):
        generator = {"r": 4, "chunk_size": 80, "hidden": (4, 8), "n_layers": 2}
        backend = {"shots": 512} if backend_settings is None else backend_settings
        chosen = {"method": "qpa", "method_settings": generator, "steps": STEPS, "lr": 5e-3}
        return settings(out, **{**chosen, "gradient_accumulation_steps": 1, "backend_settings": backend, **changes})

    return make


@pytest.fixture(autouse=True)
def _retries_without_delay(monkeypatch):
    monkeypatch.setattr("qpeft.backends.jobs.time.sleep", lambda seconds: None)


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(DEVICE)
    return path


def assert_same_adapter(one, two):
    ours, theirs = weights(one.adapter), weights(two.adapter)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def jobs(result):
    return [json.loads(line) for line in (result.out / "jobs.jsonl").read_text().splitlines()]


def test_run_counts_its_circuits_and_scores_the_exported_adapter(on_backend):
    progress = Recorder()
    result = train(on_backend(), progress)
    assert result.circuits is not None
    assert result.circuits["circuits"] == STEPS * N_CIRCUITS
    assert result.circuits["shots"] == result.circuits["circuits"] * 512
    assert result.circuits["gradient"] == "parameter-shift"
    answered = [entry for entry in jobs(result) if entry["event"] == "answered"]
    assert sum(entry["circuits"] for entry in answered) == result.circuits["circuits"]
    note = "circuits on exact: 5 qubits, 512 shots per circuit, gradients by parameter-shift, 21 circuits per step"
    assert note in progress.events
    assert "Trained with 126 circuits of 512 shots on exact" in (result.out / "README.md").read_text()
    exact = train(on_backend("exact", {}))
    assert exact.circuits is None
    assert exact.before.loss == result.before.loss  # scored without shots
    assert exact.after.loss != result.after.loss  # trained with them


@pytest.mark.long
def test_killed_run_resumes_to_the_same_result(on_backend):
    whole = train(on_backend("whole"))

    with pytest.raises(Killed):
        train(on_backend(), kill_at(5))
    resumed = Recorder()
    result = train(on_backend(), resumed)
    assert ("start", STEPS, 4) in resumed.events
    assert_same_adapter(result, whole)
    assert result.circuits is not None
    assert result.circuits["circuits"] > STEPS * N_CIRCUITS  # step 5 was paid for twice


def test_log_of_jobs_is_not_written_through_a_link(on_backend, tmp_path):
    with pytest.raises(Killed):
        train(on_backend(), kill_at(1))
    (tmp_path / "run" / "jobs.jsonl").rename(tmp_path / "mine")
    (tmp_path / "run" / "jobs.jsonl").symlink_to(tmp_path / "mine")
    before = (tmp_path / "mine").read_text()
    with pytest.raises(ConfigError, match=r"jobs\.jsonl is not a regular file"):
        train(on_backend())
    assert (tmp_path / "mine").read_text() == before


@pytest.mark.long
def test_random_device_failures_do_not_change_the_result(on_backend, device):
    plain = train(on_backend("plain"))
    progress = Recorder()
    result = train(on_backend(backend_settings={"backend": f"{device}:device", "shots": 512}), progress)
    assert "a job on unreliable (mine.py:device) failed (no answer); retrying in 1 s" in progress.events
    assert_same_adapter(result, plain)
    assert result.circuits is not None
    assert result.circuits["failures"] > 0
    assert result.circuits["circuits"] == STEPS * N_CIRCUITS
    assert result.circuits["shots"] > 512 * result.circuits["circuits"]  # what was sent again counts
    assert {entry["error"] for entry in jobs(result)} == {None, "no answer"}


@pytest.mark.long
def test_device_outage_keeps_completed_steps(on_backend, device):
    plain = train(on_backend("plain"))
    chosen = on_backend(backend_settings={"backend": f"{device}:make", "shots": 512}, save_every=None)
    down = device.parent / "down"
    with pytest.raises(
        BackendError, match=r"unreliable \(mine.py:make\) failed 9 times, the last time with: no answer"
    ):
        train(chosen, Recorder(lambda step: down.touch() if step == 4 else None))
    with pytest.raises(BackendError, match=r"unreliable \(mine.py:make\) failed"):  # the checkpoint is not blamed
        train(chosen)
    down.unlink()
    resumed = Recorder()
    result = train(chosen, resumed)
    started = next(event for event in resumed.events if event[0] == "start")
    assert started[2] in (3, 4)  # on hardware every step is saved
    assert_same_adapter(result, plain)


@pytest.mark.long
def test_run_resumes_with_a_larger_shot_budget(on_backend):
    needed = 512 * (STEPS * N_CIRCUITS)
    with pytest.raises(
        ConfigError, match=f"6 steps of 21 circuits with 512 shots need {needed:,} shots, more than the shot"
    ):
        train(on_backend(backend_settings={"shots": 512, "shot_budget": needed - 1}))
    assert not Path(on_backend().out).exists()

    tight = {"shots": 512, "shot_budget": needed}
    with pytest.raises(Killed):
        train(on_backend(backend_settings=tight), kill_at(5))
    with pytest.raises(ConfigError, match=r"in addition to the [\d,]+ already used, more than the shot budget of"):
        train(on_backend(backend_settings=tight))  # the step that was lost is not in it
    result = train(on_backend(backend_settings={"shots": 512, "shot_budget": 2 * needed}))
    assert_same_adapter(result, train(on_backend("whole")))


def test_changed_shots_are_refused_on_resume(on_backend):
    with pytest.raises(Killed):
        train(on_backend(), kill_at(3))
    with pytest.raises(CheckpointError, match="other settings: shots was 512, now 64"):
        train(on_backend(backend_settings={"shots": 64}))


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ({"backend": "abacus"}, "unknown backend 'abacus'; choose one of exact, pennylane:DEVICE"),
        ({"backend": "exact", "noise": 0.1}, "backend exact does not simulate noise; use pennylane:default.mixed"),
        ({"noise": 1.5}, "noise must be below 1, got 1.5"),
        ({"shots": 0}, "shots must be at least 1, got 0"),
        ({"gradient": "guess"}, "unknown gradient 'guess'; choose one of auto"),
        ({"shot": 5}, "unknown backend setting 'shot'; choose one of backend, shots"),
        ({"shots": 100, "gradient": "adjoint"}, "gradient='adjoint' needs exact probabilities"),
        ({"backend": "nowhere.py:device"}, "the file nowhere.py does not exist"),
        ({"backend": "{device}:absent"}, "has no attribute 'absent'"),
        ({"backend": "{device}:broken"}, "RuntimeError: no credentials"),
        ({"backend": "{device}:text"}, "is a string; it must be a device or sampler, or return one"),
    ],
)
def test_invalid_backend_settings_are_refused(on_backend, device, backend, message):
    given = {k: v.format(device=device) if isinstance(v, str) else v for k, v in backend.items()}
    chosen = on_backend(backend_settings=given)
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        train(chosen)
    assert not Path(chosen.out).exists()


def test_backend_is_refused_for_other_methods(on_backend):
    with pytest.raises(ConfigError, match="method lora has no circuit that can run on a backend; leave out shots"):
        on_backend(method="lora", method_settings={}).check()
    chosen = on_backend(method_settings={"r": 4, "chunk_size": 80, "hidden": (4, 8), "feature_source": "free"})
    with pytest.raises(ConfigError, match="the model has no circuit that a backend can run"):
        train(chosen)


def test_plan_forecasts_the_circuits_of_the_run(on_backend, tiny_model):
    config = qpeft.QPAConfig(
        r=4, chunk_size=80, hidden=(4, 8), n_layers=2, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    found = qpeft.plan(str(tiny_model), config, shots=512, steps=STEPS)
    result = train(on_backend())
    assert found.circuits is not None
    assert result.circuits is not None
    for name in ("circuits", "shots", "gradient", "backend", "shots_per_circuit"):
        assert found.circuits[name] == result.circuits[name]
    assert found.circuits["seconds"] >= 0
    assert qpeft.plan(str(tiny_model), config).circuits is None
    classical = qpeft.QPAConfig(
        feature_source="none", task_type="CAUSAL_LM", target_modules="all-linear", hidden=(4, 8)
    )
    with pytest.raises(ConfigError, match="has no circuit that a backend can run"):
        qpeft.plan(str(tiny_model), classical, shots=100)


def test_changed_backend_file_is_refused(on_backend, device):
    (device.parent / "down").touch()
    chosen = {"backend": f"{device}:device", "shots": 512}
    with pytest.raises(BackendError):
        train(on_backend(backend_settings=chosen))
    device.write_text(DEVICE + "\n")
    with pytest.raises(CheckpointError, match=r"other files: backend was sha256 .* now sha256"):
        train(on_backend(backend_settings=chosen))
