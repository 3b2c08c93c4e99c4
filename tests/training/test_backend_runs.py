"""Runs whose circuits are computed by a backend: counted, robust to device failures, exported exactly."""

import json
from pathlib import Path

import pytest
from runs import Killed, Recorder, assert_same_result, kill_at

from qpeft.errors import BackendError, ConfigError
from qpeft_lab import train

STEPS = 6
N_CIRCUITS = 21  # a step: 5 qubits in 2 layers
GENERATOR = {"r": 4, "chunk_size": 80, "hidden": (4, 8), "n_layers": 2}

DEVICE = '''
from pathlib import Path

from qpeft.backends import ExactBackend


class Unreliable(ExactBackend):
    """Fails if there is a file `down` in its folder."""

    name = "unreliable"
    is_simulator = False

    def run(self, ansatz, angles, shots, seed):
        if (Path(__file__).parent / "down").exists():
            raise ConnectionError("no answer")
        return super().run(ansatz, angles, shots, seed)


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
        backend = {"shots": 512} if backend_settings is None else backend_settings
        chosen = {"method": "qpa", "method_settings": GENERATOR, "steps": STEPS, "lr": 5e-3}
        return settings(out, **{**chosen, "gradient_accumulation_steps": 1, "backend_settings": backend, **changes})

    return make


@pytest.fixture
def device(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(DEVICE)
    return path


def test_run_counts_its_circuits_and_scores_the_exported_adapter(on_backend):
    progress = Recorder()
    result = train(on_backend(), progress)
    used = result.circuits
    assert used["circuits"] == STEPS * N_CIRCUITS
    assert (used["shots"], used["gradient"]) == (STEPS * N_CIRCUITS * 512, "parameter-shift")
    jobs = [json.loads(line) for line in (result.out / "jobs.jsonl").read_text().splitlines()]
    assert sum(job["circuits"] for job in jobs if job["event"] == "answered") == used["circuits"]
    assert sum(str(event).startswith("circuits on exact") for event in progress.events) == 1
    exact = train(on_backend("exact", {}))
    assert exact.circuits is None
    assert exact.before.loss == result.before.loss  # scored without shots
    assert exact.after.loss != result.after.loss  # trained with them


@pytest.mark.long
def test_device_outage_keeps_completed_steps(on_backend, device):
    plain = train(on_backend("plain"))
    chosen = on_backend(backend_settings={"backend": f"{device}:make", "shots": 512}, save_every=None)
    down = device.parent / "down"
    with pytest.raises(BackendError, match="no answer"):
        train(chosen, Recorder(lambda step: down.touch() if step == 4 else None))
    with pytest.raises(BackendError, match="unreliable failed"):  # the checkpoint is not blamed
        train(chosen)
    down.unlink()
    resumed = Recorder()
    result = train(chosen, resumed)
    started = next(event for event in resumed.events if event[0] == "start")
    assert started[2] in (3, 4)  # on hardware every step is saved
    assert_same_result(result.out, plain.out)


@pytest.mark.long
def test_run_resumes_with_a_larger_shot_budget(on_backend):
    needed = 512 * (STEPS * N_CIRCUITS)
    with pytest.raises(ConfigError, match="shot budget"):
        train(on_backend(backend_settings={"shots": 512, "shot_budget": needed - 1}))
    assert not Path(on_backend().out).exists()
    tight = {"shots": 512, "shot_budget": needed}
    with pytest.raises(Killed):
        train(on_backend(backend_settings=tight), kill_at(5))
    with pytest.raises(ConfigError, match="shot budget"):
        train(on_backend(backend_settings=tight))  # the step that was lost is not in it
    result = train(on_backend(backend_settings={"shots": 512, "shot_budget": 2 * needed}))
    assert_same_result(result.out, train(on_backend("whole")).out)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ({"backend": "exact", "noise": 0.1}, "noise"),
        ({"backend": "qiskit:aer", "shots": 100, "noise": 0.1}, "does not simulate noise"),
        ({"backend": "{device}:broken"}, "RuntimeError: no credentials"),
        ({"backend": "{device}:text"}, "lightning.qubit"),
    ],
)
def test_invalid_backend_settings_are_refused(on_backend, device, backend, message):
    given = {k: v.format(device=device) if isinstance(v, str) else v for k, v in backend.items()}
    chosen = on_backend(backend_settings=given)
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        train(chosen)
    assert not Path(chosen.out).exists()
