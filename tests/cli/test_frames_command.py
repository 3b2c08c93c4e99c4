"""`qpeft frames`: the file that it writes is used by a run, and by commands that load the adapter of that run."""

import hashlib
import json

import pytest

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
