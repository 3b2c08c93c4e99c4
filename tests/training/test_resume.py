"""The resume matrix: a run of every kind, stopped at any moment, ends with the bits of an
uninterrupted run.

Its folder, its data, its base and the files of a user may be moved before it resumes, but not
changed. Runs whose circuits are computed by a backend are counted, resume after an outage, and are
exported exactly.
"""

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from folders import read_rows, write_rows
from runs import Killed, Recorder, assert_same_result, kill_at
from safetensors.torch import load_file, save_file

from qpeft import user_code
from qpeft.circuits import ansatz
from qpeft.errors import BackendError, CheckpointError, ConfigError, TrainingError
from qpeft.files import read_json
from qpeft.methods.quantum_peft.fit_frames import save_frames
from qpeft_lab import train
from qpeft_lab.progress import Progress
from qpeft_lab.training import fit, outputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
    pytest.mark.filterwarnings("ignore:the base model has no weights for bert.pooler"),
]

SMALL = {"r": 2, "n_layers": 2, "features": 4}
QPA = {"method": "qpa", "method_settings": SMALL}
IMAGES = {"task": "image-classification", "model": "tiny_vit", "data": "bar_files"}
KINDS = {
    "lora": {},
    "qpa with shots": {**QPA, "backend_settings": {"shots": 2048}},
    "4 bits": {"load_in_4bit": True},
    "epochs in bfloat16": {"steps": None, "epochs": 1, "dtype": "bfloat16"},
    "numbers": {"task": "text-regression", "model": "tiny_encoder", "data": "number_files"},
    "image classes": {**IMAGES, **QPA},
    "a whole model": {**IMAGES, "method": "full"},
}


@pytest.fixture
def number_files(opinion_files, tmp_path):
    """The texts of two classes with numbers as labels."""
    text = opinion_files[0].read_text().replace("\tgood", "\t1").replace("\tbad", "\t-2.5")
    (file := tmp_path / "numbers.tsv").write_text(text)
    return [file]


def train_fails(error, message, asked, progress=None):
    """A run that is killed or refused."""
    with pytest.raises(error, match=message):
        train(asked, progress)


@pytest.fixture
def run(settings, request):
    """The result of a run of a kind; fixtures are named in `KINDS`."""

    def make(kind, out, progress=None):
        named = {
            name: request.getfixturevalue(KINDS[kind][name])
            for name in ("model", "data")
            if name in KINDS[kind]
        }
        if "data" in named:
            named = {"model": str(named["model"]), "data": str(named["data"][0])}
        return train(settings(out, **{**KINDS[kind], **named}), progress)

    return make


def after_step(step):
    def crash(again, monkeypatch):
        with pytest.raises(Killed):
            again(kill_at(step))

    return crash


def within(module, name):
    """A kill while a function is called."""

    def kill(*_, **__):
        raise Killed

    def crash(again, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setattr(
                module, name, type("Killer", (), {"__call__": kill, "__getattr__": kill})()
            )
            with pytest.raises(Killed):
                again()

    return crash


def while_a_checkpoint_is_removed(again, monkeypatch):
    within(shutil, "rmtree")(again, monkeypatch)
    assert list(again.out.rglob("*.unfinished"))


def several_times(again, monkeypatch):
    for step in (1, 4, 7):
        after_step(step)(again, monkeypatch)


def by_ctrl_c(again, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="Stopped after step 3 of 7"):
        again(Recorder(lambda step: signal.raise_signal(signal.SIGINT) if step == 2 else None))
    assert signal.getsignal(signal.SIGINT) is before


def by_a_full_disk(again, monkeypatch):
    save = torch.save

    def fill(obj, path, *args, **kwargs):
        if "checkpoint-4" in str(path):
            Path(path).write_bytes(b"half")
            # torch's own
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"
            )
        return save(obj, path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fill)
        with pytest.raises(TrainingError, match="disk"):
            again()


def and_lost_files(again, monkeypatch):
    """Of its two checkpoints, the last has no marker that can be read, or lacks a file; and a row
    is incomplete.
    """
    after_step(5)(again, monkeypatch)
    checkpoints = again.out / "checkpoints"

    assert {path.name for path in checkpoints.iterdir()} == {"checkpoint-2", "checkpoint-4"}

    (checkpoints / "checkpoint-4" / "rng_state.pth").unlink()
    with (again.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    after_step(5)(again, monkeypatch)
    (checkpoints / "checkpoint-4" / "complete").write_bytes(b"\xff")


def and_damaged_a_file(again, monkeypatch):
    """Each time in the last checkpoint, which is removed."""
    for name in ("optimizer.pt", "trainer_state.json"):
        after_step(5)(again, monkeypatch)
        file = again.out / "checkpoints" / "checkpoint-4" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.warns(UserWarning, match="checkpoint-4 is damaged"):
            after_step(3)(again, monkeypatch)


CRASHES = {
    "after a step": after_step(5),
    "several times": several_times,
    "within a checkpoint": within(torch, "save"),
    "before it is marked": within(fit, "mark_complete"),
    "while a checkpoint is removed": while_a_checkpoint_is_removed,
    "before the adapter": within(outputs, "save"),
    "by Ctrl-C": by_ctrl_c,
    "by a full disk": by_a_full_disk,
    "and lost files": and_lost_files,
    "and damaged a file": and_damaged_a_file,
}
# a run of LoRA is killed after a step by most of the others
CASES = [("lora", crash) for crash in CRASHES if crash != "after a step"]
CASES += [(kind, "after a step") for kind in KINDS if kind != "lora"]


@pytest.fixture(scope="module")
def finished():
    """The uninterrupted run of each kind."""
    return {}


@pytest.mark.parametrize("kind, crash", CASES)
def test_stopped_run_resumes_to_the_same_bits(run, settings, finished, monkeypatch, kind, crash):
    unbroken = finished[kind] = finished.get(kind) or run(kind, "unbroken")

    def again(progress=None):
        return run(kind, "run", progress)

    again.out = Path(settings().out)
    CRASHES[crash](again, monkeypatch)

    assert not (again.out / "result.json").exists()

    resumed = again()
    assert_same_result(resumed.out, unbroken.out)
    assert resumed.before == unbroken.before
    assert resumed.after == unbroken.after


# -- files of a user

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ANSATZ = EXAMPLES / "own_ansatz.py"
METHOD = EXAMPLES / "own_method.py"
FRAMED = {"r": 2, "n_layers": 1, "share": "type", "bits": 16, "lambda_bits": 8}
IN_FRAMES = {
    "method": "quantum_peft",
    "method_settings": {**FRAMED, "frame": "gradient", "frame_rank": 8},
}


@pytest.fixture
def with_file(settings, tmp_path):
    """The file of a kind, and settings of a run with it."""

    def make(kind):
        file = tmp_path / ("f.safetensors" if kind == "frames" else "own_of_run.py")
        if kind == "frames":
            save_frames(fit.prepare(settings(**IN_FRAMES), Progress()).model, file)
        elif kind == "ansatz":
            file.write_text(ANSATZ.read_text().replace("cz_ring", "ring_of_run"))
        else:
            file.write_text("from qpeft.backends import ExactBackend\n\ndevice = ExactBackend()\n")

        def asked(file, out):
            if kind == "backend":
                return settings(
                    out, **QPA, backend_settings={"backend": f"{file}:device", "shots": 1024}
                )
            if kind == "ansatz":
                return settings(
                    out, method="qpa", method_settings={**SMALL, "ansatz": f"{file}:ring_of_run"}
                )
            return settings(
                out, method="quantum_peft", method_settings={**FRAMED, "frames": str(file)}
            )

        return file, asked

    return make


@pytest.mark.parametrize("kind", ["ansatz", "backend", "frames"])
def test_file_of_a_user_may_be_moved_but_neither_missing_nor_changed(with_file, tmp_path, kind):
    file, asked = with_file(kind)
    unbroken = train(asked(file, "unbroken"))
    train_fails(Killed, None, asked(file, "killed"), kill_at(5))
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.move(file, tmp_path / "moved"))
    train_fails(ConfigError, file.name, asked(file, "killed"))
    content = moved.read_bytes()
    moved.write_bytes(content + b"#")
    train_fails(CheckpointError, f"{kind} was", asked(moved, "killed"))
    moved.write_bytes(content)
    ansatz._families.pop("ring_of_run", None)  # as in a new process

    assert_same_result(train(asked(moved, "killed")).out, unbroken.out)


def test_finished_run_of_a_changed_method_is_refused(settings, tmp_path, monkeypatch):
    code = METHOD.read_text().replace("NOLA", "NOLA_OF_RUN").replace("nola", "nola_of_run")
    (file := tmp_path / "own_method_of_run.py").write_text(code)
    monkeypatch.chdir(tmp_path)

    def again(file):
        return train(
            settings(method=f"{file}:METHOD", method_settings={"r": 2, "n_bases": 4}, steps=1)
        )

    # another spelling of the path is the same file
    assert [again(path).already_finished for path in (file, file.name)] == [False, True]

    file.write_text(code + "\n")
    user_code._used.clear()  # as in a new process
    with pytest.raises(CheckpointError, match="method was"):
        again(file)


# -- moved and changed runs


def test_moved_run_resumes_with_moved_data_and_base(settings, text_file, tiny_model, tmp_path):
    unbroken = train(settings("unbroken"))
    train_fails(Killed, None, settings(), kill_at(3))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    base = shutil.copytree(tiny_model, tmp_path / "base")
    copy = shutil.copy(text_file, tmp_path / "copy.txt")
    progress = Recorder()
    moved = {"model": str(base), "data": os.path.relpath(copy), "report_to": ["tensorboard"]}
    result = train(settings("moved", **moved), progress)

    assert ("start", 7, 2) in progress.events
    assert list(result.out.rglob("events.out.tfevents.*"))
    assert_same_result(result.out, unbroken.out)
    assert read_json(result.out / "config.json")["settings"]["data"] == os.path.relpath(copy)
    assert train(settings("moved")).already_finished


def test_finished_run_on_another_split_is_refused(settings, text_file, tmp_path, monkeypatch):
    """The splits are in one folder, whose content is the same."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (folder := tmp_path / "tales").mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"text": f"{split} {line}"} for line in text_file.read_text().splitlines()]
        write_rows(folder / f"{split}.jsonl", rows)
    named = {"data": f"{folder}::train", "eval_data": f"{folder}::validation"}
    result = train(settings(**named))

    train_fails(
        CheckpointError, "eval_data was", settings(**named | {"eval_data": f"{folder}::test"})
    )
    train_fails(CheckpointError, "data was", settings(**named | {"data": f"{folder}::test"}))
    moved = folder.rename(tmp_path / "moved")
    named = {name: value.replace(str(folder), str(moved)) for name, value in named.items()}
    assert train(settings(**named)).after == result.after


@pytest.mark.parametrize("is_finished", [True, False])
def test_folder_of_another_run_is_refused(settings, text_file, tiny_model, tmp_path, is_finished):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    own = partial(settings, model=str(base))
    result = train(own()) if is_finished else train_fails(Killed, None, own(), kill_at(1))
    others = {"lr": 0.5, "method_settings": {"r": 2}, "seed": 1, "steps": 9}
    for changes in (
        *({name: value} for name, value in others.items()),
        {"steps": None, "epochs": 2.0},
    ):
        field = "r" if "method_settings" in changes else min(changes)
        train_fails(CheckpointError, f"{field} was", own(**changes))
    text = text_file.read_text()
    tensors = load_file(base / "model.safetensors")
    text_file.write_text(text.replace("fox", "wolf"))
    train_fails(CheckpointError, "data was", own())
    text_file.write_text(text)
    save_file(
        {name: t + 1e-3 for name, t in tensors.items()},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    train_fails(CheckpointError, "model was", own())
    if result is not None:  # without base and data the result is shown
        shutil.rmtree(base)
        text_file.unlink()
        progress = Recorder()
        again = train(own(), progress)
        assert {**again.to_dict(), "already_finished": False} == result.to_dict()
        assert progress.events == []


# -- backends

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
        return settings(
            out,
            **{**chosen, "gradient_accumulation_steps": 1, "backend_settings": backend, **changes},
        )

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
    assert used["shots"] == STEPS * N_CIRCUITS * 512

    jobs = read_rows(result.out / "jobs.jsonl")
    assert sum(job["circuits"] for job in jobs if job["event"] == "answered") == used["circuits"]
    assert sum(str(event).startswith("circuits on exact") for event in progress.events) == 1

    exact = train(on_backend("exact", {}))
    assert exact.circuits is None
    assert exact.before.loss == result.before.loss  # scored without shots
    assert exact.after.loss != result.after.loss  # trained with them


@pytest.mark.long
def test_device_outage_keeps_completed_steps(on_backend, device):
    plain = train(on_backend("plain"))
    chosen = on_backend(
        backend_settings={"backend": f"{device}:make", "shots": 512}, save_every=None
    )
    down = device.parent / "down"
    train_fails(
        BackendError,
        "no answer",
        chosen,
        Recorder(lambda step: down.touch() if step == 4 else None),
    )
    train_fails(BackendError, "unreliable failed", chosen)
    down.unlink()
    resumed = Recorder()
    result = train(chosen, resumed)
    started = next(event for event in resumed.events if event[0] == "start")

    assert started[2] in (3, 4)  # on hardware every step is saved
    assert_same_result(result.out, plain.out)


@pytest.mark.long
def test_run_resumes_with_a_larger_shot_budget(on_backend):
    needed = 512 * (STEPS * N_CIRCUITS)
    little = {"shots": 512, "shot_budget": needed - 1}
    train_fails(ConfigError, "shot budget", on_backend(backend_settings=little))

    assert not Path(on_backend().out).exists()

    tight = {"shots": 512, "shot_budget": needed}
    train_fails(Killed, None, on_backend(backend_settings=tight), kill_at(5))
    # the lost step is not in it
    train_fails(ConfigError, "shot budget", on_backend(backend_settings=tight))
    result = train(on_backend(backend_settings={"shots": 512, "shot_budget": 2 * needed}))

    assert_same_result(result.out, train(on_backend("whole")).out)


@pytest.mark.parametrize(
    "backend, message",
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
    train_fails(ConfigError, message, chosen)
    assert not Path(chosen.out).exists()
