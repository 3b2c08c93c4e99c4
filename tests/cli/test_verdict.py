"""`qpeft verdict`: what it says before it starts, and refusals. A whole study is marked `long`."""

import json

import pytest

from qpeft.errors import ConfigError
from qpeft_lab.compare.forecast import Speed
from qpeft_lab.files import locked
from qpeft_lab.verdict import PROTOCOL, planning
from qpeft_lab.verdict.circuit import removed_if_refused


@pytest.fixture
def arguments(base_folder, text, tmp_path):
    sizes = "--n-layers 1 --batch-size 2 --seq-len 16"
    return f"verdict ry_ladder --model {base_folder} --data {text} {sizes} --out {tmp_path}/out"


def test_usage_is_the_command_that_one_types(qpeft_cli):
    help_text = qpeft_cli("verdict --help", code=0).stdout
    assert "Usage: qpeft verdict [OPTIONS]" in help_text
    assert "Usage: qpeft verdict check [OPTIONS]" in qpeft_cli("verdict check --help").stdout


def test_announces_minutes_and_what_it_can_detect_before_it_asks(qpeft_cli, arguments, monkeypatch):
    monkeypatch.setattr(planning, "speed_of", lambda *_: Speed(start=0.0, step=0.01, example=0.001))
    done = qpeft_cli(f"{arguments} --minutes 60", code=2)
    assert "400 steps, 10 seeds, 7 adapters; about" in done.stderr
    assert "about 3.0 % of LoRA's gain, if seeds vary as on the embedded base" in done.stderr
    assert "nobody can be asked here; add --yes to start" in done.stderr
    assert "would decide" not in done.stderr

    short = qpeft_cli(f"{arguments} --minutes 8", code=2)
    assert "100 steps, 10 seeds" in short.stderr
    assert "the margin is 5 %" in short.stderr
    assert "; --minutes 9 would decide about small ones" in short.stderr


def test_too_few_minutes_are_refused_with_those_that_it_needs(
    qpeft_cli, arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr(planning, "speed_of", lambda *_: Speed(start=0.0, step=60.0, example=0.1))
    (file := tmp_path / "own.py").write_text(
        'from qpeft.circuits import Ansatz\ncircuit = Ansatz("ry_ladder", 3, 4)'
    )
    own = arguments.replace("ry_ladder", f"{file}:circuit").replace("--n-layers 1", "")
    for command in (arguments, own):
        done = qpeft_cli(f"{command} --yes", code=2)
        assert "the smallest study takes about" in done.stderr

    assert not (tmp_path / "out" / "own_circuit.py").exists()


def test_folder_of_a_running_study_is_left_alone(qpeft_cli, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "speed_of", lambda *_: Speed(start=0.0, step=0.01, example=0.001))
    out = tmp_path / "out"
    monkeypatch.setattr("qpeft_lab.compare.runner.run", lambda *_, **__: 1 / 0)
    qpeft_cli(f"{arguments} --n-seeds 3 --minutes 60 --yes")
    before = (out / PROTOCOL).read_bytes()
    with locked(out):
        done = qpeft_cli(f"{arguments} --n-seeds 4 --minutes 60 --yes", code=2)
    assert "another process uses" in done.stderr
    assert (out / PROTOCOL).read_bytes() == before


def test_refusal_leaves_the_study_that_another_process_has_begun(tmp_path):
    folder = tmp_path / "new"

    def refuse():
        folder.mkdir()
        (folder / PROTOCOL).write_text("{}")
        raise ConfigError("refused")

    with pytest.raises(ConfigError), removed_if_refused(folder):
        refuse()
    assert (folder / PROTOCOL).exists()


@pytest.mark.long
def test_a_whole_study(qpeft_cli, arguments, tmp_path):
    done = qpeft_cli(f"{arguments} --steps 6 --n-seeds 3 --minutes 1e4 --yes --json")
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text(encoding="utf-8"))
    assert done.exit_code == 0
    assert json.loads(done.stdout)["sentence"] == verdict["sentence"]

    checked = qpeft_cli(f"verdict check {tmp_path}/out/verdict.json")
    assert checked.exit_code == 0
    assert "follows from its rows" in checked.stdout
