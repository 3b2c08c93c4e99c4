"""`qpeft frames`: the file that it writes is used by a run, and by commands that load the adapter of that run."""

import hashlib
import json

import pytest

from qpeft.core import frame_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SHARED = ("--r", "2", "--n-layers", "1", "--share", "type")


def test_frame_file_is_written_and_used(qpeft_cli, base_folder, tmp_path):
    text_file = tmp_path / "text.txt"
    text_file.write_text("The king went into the wood, and the golden bird sang. " * 40)
    file, run = tmp_path / "frames.safetensors", tmp_path / "run"
    data = ("--model", base_folder, "--data", text_file, "--seq-len", "32")
    made = qpeft_cli("frames", *data, *SHARED, "--frame-rank", "4", "--out", tmp_path / "frames", "--json")
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert found["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    again = qpeft_cli("frames", *data, "--out", file)
    assert again.exit_code == 2
    assert "exists, and adapters may refer to it" in again.stderr
    options = ("--method", "quantum_peft", "--frames", file, *SHARED)
    trained = qpeft_cli("train", *data, *options, "--steps", "2", "--out", run)
    assert trained.exit_code == 0, trained.output
    planned = qpeft_cli("plan", "--model", base_folder, *options, "--json")
    stored = json.loads(planned.stdout)["stored_bytes"]
    assert stored < json.loads((run / "result.json").read_text())["stored_bytes"] < stored + 200
    exported = qpeft_cli("export", run, "--out", tmp_path / "exported")
    assert exported.exit_code == 0, exported.output
    assert "Loads in vLLM: yes" in exported.stdout
    file.unlink()
    refused = qpeft_cli("evaluate", "--adapter", run, "--data", text_file)
    assert refused.exit_code == 2
    assert f"frames.safetensors with SHA-256 {found['sha256']}: it is missing" in refused.stderr


@pytest.fixture
def made(qpeft_cli, base_folder, tmp_path):
    """A frame file of two modules in a folder of its own, and options for the model and data."""
    (tmp_path / "text.txt").write_text("The king went into the wood, and the golden bird sang. " * 40)
    (tmp_path / "deep" / "frames").mkdir(parents=True)
    file = tmp_path / "deep" / "frames" / "mine.safetensors"
    data = ("--model", base_folder, "--data", tmp_path / "text.txt", "--seq-len", "32")
    result = qpeft_cli("frames", *data, *SHARED, "--target-modules", "q_proj,up_proj", "--out", file)
    assert result.exit_code == 0, result.output
    assert f"SHA-256: {hashlib.sha256(file.read_bytes()).hexdigest()}\n" in result.stdout
    return file, data


def test_run_with_a_frame_file_in_another_folder_is_used_by_its_commands(qpeft_cli, made, tmp_path, monkeypatch):
    file, data = made
    options = ("--method", "quantum_peft", "--frames", file, *SHARED)
    trained = qpeft_cli("train", *data, *options, "--steps", "2", "--out", tmp_path / "run", "--json")
    assert trained.exit_code == 0, trained.output
    plan = json.loads(qpeft_cli("plan", "--model", data[1], *options, "--json").stdout)
    kinds = {name.rpartition(".")[2] for name in plan["target_modules"]}
    assert kinds == {"q_proj", "up_proj"}  # those of the file
    assert plan["trainable"] == json.loads(trained.stdout)["trainable"]
    commands = {
        "generate": ("--adapter", tmp_path / "run", "--prompt", "The king", "--max-new-tokens", "2"),
        "evaluate": ("--adapter", tmp_path / "run", "--data", tmp_path / "text.txt"),
        "export": (tmp_path / "run" / "adapter", "--out", tmp_path / "exported"),
        "diagnose": (tmp_path / "run", "--samples", "10"),
    }
    for name, given in commands.items():
        monkeypatch.setattr(frame_file, "_KNOWN", {})  # as in a new process
        result = qpeft_cli(name, *given)
        assert result.exit_code == 0, f"{name}: {result.output}"
    assert "entropy rank, updates" in result.stdout  # of diagnose: from the base's shapes and the frame file
    moved = file.rename(tmp_path / "moved.safetensors")
    for name in ("generate", "evaluate", "export"):
        given = [tmp_path / "again" if part == tmp_path / "exported" else part for part in commands[name]]
        monkeypatch.setattr(frame_file, "_KNOWN", {})
        refused = qpeft_cli(name, *given)
        assert refused.exit_code == 2
        assert "--frames PATH of qpeft evaluate, generate and export" in refused.stderr
        assert qpeft_cli(name, *given, "--frames", moved).exit_code == 0


@pytest.mark.parametrize("command", [("evaluate", "--data", "none.txt"), ("generate", "--prompt", "a")], ids=str)
def test_frame_file_without_an_adapter_is_refused(qpeft_cli, base_folder, command):
    result = qpeft_cli(*command, "--model", base_folder, "--frames", "some.safetensors")
    assert result.exit_code == 2
    assert "--frames is for an adapter; add --adapter" in result.stderr


@pytest.mark.parametrize("given", [("--frame", "weights"), ("--frames", "some.safetensors")], ids=str)
def test_frames_of_another_kind_are_refused(qpeft_cli, base_folder, tmp_path, given):
    result = qpeft_cli("frames", "--model", base_folder, "--data", "none.txt", *given, "--out", tmp_path / "f")
    assert result.exit_code == 2
    assert "leave out --frames and --frame" in result.stderr
