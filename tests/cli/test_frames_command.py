"""`qpeft frames`: the file that it writes is used by a run, and by commands that load the adapter of that run."""

import hashlib

import pytest

from qpeft.core import frame_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SHARED = ("--r", "2", "--n-layers", "1", "--share", "type")


def test_frame_file_in_another_folder_is_used_by_every_command(qpeft_cli, answer, base_folder, text, tmp_path):
    def call(command, *options):
        frame_file._KNOWN.clear()  # as in a new process
        return qpeft_cli(command, *options)

    (tmp_path / "deep" / "frames").mkdir(parents=True)
    file, run = tmp_path / "deep" / "frames" / "mine.safetensors", tmp_path / "run"
    data = ("--model", base_folder, "--data", text, "--seq-len", "32")
    made = answer("frames", *data, *SHARED, "--target-modules", "q_proj,up_proj", "--out", file)
    assert made["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert qpeft_cli("frames", *data, "--out", file).exit_code == 2  # adapters may refer to it

    options = ("--method", "quantum_peft", "--frames", file, *SHARED)
    trained = answer("train", *data, *options, "--steps", "2", "--out", run)
    plan = answer("plan", "--model", base_folder, *options)
    assert {name.rpartition(".")[2] for name in plan["target_modules"]} == {"q_proj", "up_proj"}  # those of the file
    assert plan["trainable"] == trained["trainable"]

    commands = {
        "generate": ("--adapter", run, "--prompt", "The king", "--max-new-tokens", "2"),
        "evaluate": ("--adapter", run, "--data", text),
        "export": (run / "adapter", "--out", tmp_path / "exported"),
    }
    for name, given in commands.items():
        assert call(name, *given).exit_code == 0, name
    assert call("diagnose", run, "--samples", "10").exit_code == 0
    moved = file.rename(tmp_path / "moved.safetensors")
    for name, given in commands.items():
        refused = call(name, *given)
        assert refused.exit_code == 2
        assert "--frames" in refused.stderr
        assert call(name, *given, "--frames", moved).exit_code == 0
