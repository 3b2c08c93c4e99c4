"""A run with a frame file: it resumes bit-equal, also after the file is moved, and refuses another file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import Killed, assert_same_result, kill_at
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import qpeft
from qpeft.core import frame_file
from qpeft.errors import CheckpointError, ConfigError
from qpeft.training import train
from qpeft.training.prepare import prepare
from qpeft.training.progress import Progress

FIELDS = {"r": 2, "n_layers": 1, "share": "type", "bits": 16, "lambda_bits": 8}

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")


@pytest.fixture
def make(settings, tmp_path):
    """Settings of a run with a frame file, which is in the folder of the runs."""
    file = tmp_path / "frames.safetensors"
    given = settings("fitted", method="quantum_peft", method_settings={**FIELDS, "frame": "gradient", "frame_rank": 8})
    model = prepare(given, Progress()).model
    given.record.ask("save_frames", model, file)

    def run(out, **others):
        return settings(out, method="quantum_peft", method_settings={**FIELDS, "frames": str(file), **others})

    return run, file


def test_killed_run_resumes_and_refuses_another_file(make, tmp_path):
    run, file = make
    unbroken = train(run("unbroken"))
    assert json.loads((unbroken.out / "config.json").read_text())["identity"]["frames"]
    given = run("killed")
    with pytest.raises(Killed):
        train(given, kill_at(5))
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.copy(file, tmp_path / "moved"))
    file.unlink()
    with pytest.raises(ConfigError, match=r"there is no frame file .*frames\.safetensors"):
        train(given)
    given = replace(given, method_settings={**given.method_settings, "frames": str(moved)})
    content = moved.read_bytes()
    moved.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="holds a run with other files: frames was"):
        train(given)
    moved.write_bytes(content)
    assert_same_result(train(given).out, unbroken.out)


def test_adapter_of_a_run_finds_the_file_above_it(make, tiny_model, monkeypatch):
    run, file = make
    result = train(run("run"))
    assert result.after.loss != result.before.loss
    assert result.stored_bytes < 700
    monkeypatch.setattr(frame_file, "_KNOWN", {})  # as in a new process
    loaded = qpeft.load(AutoModelForCausalLM.from_pretrained(tiny_model, dtype="float32"), result.adapter)
    assert loaded.peft_config["default"].frames == str(file)


def test_same_result_as_with_frames_inside(make, settings):
    run, _ = make
    inside = settings("inside", method="quantum_peft", method_settings={**FIELDS, "frame": "gradient", "frame_rank": 8})
    inside, outside = train(inside), train(run("outside"))
    assert (outside.before, outside.after) == (inside.before, inside.after)
    ours, theirs = (load_file(result.exported / "adapter_model.safetensors") for result in (outside, inside))
    assert all((ours[key] == theirs[key]).all() for key in ours)


def test_hash_of_a_cell_covers_the_content_of_the_file(make, tmp_path):
    from qpeft.user_files import file_hashes, without_folders

    _, file = make
    first = file_hashes("quantum_peft", {"frames": str(file)}, {})
    moved = Path(shutil.copy(file, tmp_path / "unbroken.safetensors"))
    assert file_hashes("quantum_peft", {"frames": str(moved)}, {}) == first
    moved.write_bytes(file.read_bytes() + b"1")
    assert file_hashes("quantum_peft", {"frames": str(moved)}, {}) != first
    assert without_folders({"frames": str(file)}) == {"frames": "frames.safetensors"}
