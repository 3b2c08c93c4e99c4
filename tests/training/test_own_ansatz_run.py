"""A run with an ansatz of a user's file: it resumes, also after the file is moved, and refuses a changed file."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from runs import Killed, assert_same_result, kill_at

from qpeft.circuits import ansatz
from qpeft.errors import CheckpointError, ConfigError
from qpeft.training import train

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/own_ansatz.py"

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")


@pytest.fixture
def own(settings, tmp_path):
    """Settings of a run of QPA with the ansatz of a file."""
    file = tmp_path / "own_of_run.py"
    if not file.exists():
        file.write_text(EXAMPLE.read_text().replace("cz_ring", "ring_of_run"))

    def make(out):
        fields = {"r": 2, "n_layers": 2, "features": 4, "ansatz": f"{file}:ring_of_run"}
        return settings(out, method="qpa", method_settings=fields)

    return make, file


def test_killed_run_resumes_and_refuses_a_changed_file(own, tmp_path):
    make, file = own
    unbroken = train(make("unbroken"))
    given = make("killed")
    with pytest.raises(Killed):
        train(given, kill_at(5))
    (tmp_path / "moved").mkdir()
    moved = shutil.copy(file, tmp_path / "moved")
    given = replace(given, method_settings={**given.method_settings, "ansatz": f"{moved}:ring_of_run"})

    text = Path(moved).read_text()
    Path(moved).write_text(text.replace('"rx", "ry"', '"ry", "rx"'))
    with pytest.raises(CheckpointError, match=r"other files: ansatz was sha256 \w{12} \(\S*:ring_of_run\), now sha256"):
        train(given)
    Path(moved).unlink()
    with pytest.raises(ConfigError, match=r"own_of_run\.py does not exist"):
        train(given)
    file.rename(moved)
    ansatz._families.pop("ring_of_run")  # as in a new process
    assert_same_result(train(given).out, unbroken.out)
