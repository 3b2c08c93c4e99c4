"""Issue 67, section 2, paragraph "Low": input that ended in a wrong exit code, or not at all."""

import io
import json
import os
import select
import subprocess
import sys

import pytest
import tiny_models

import qpeft
from qpeft.__main__ import main
from qpeft.errors import ConfigError, DataError
from qpeft_lab.compare.study import load_study
from qpeft_lab.data.sources import load_rows
from qpeft_lab.files import locked, output_file, read_yaml


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return tiny_models.save_base(tmp_path_factory.mktemp("base"), tiny_models.gpt2(vocab_size=300))


@pytest.fixture
def train(qpeft_cli, base_folder, text_file, tmp_path):
    """Call `qpeft train` on the tiny base."""
    usual = f"--model {base_folder} --data {text_file} --steps 4 --seq-len 16"

    def call(options, code=0):
        return qpeft_cli(f"train {usual} --out {tmp_path}/run {options}", code=code)

    return call


@pytest.mark.parametrize("method", ["lora", "qpa"])
def test_rank_above_the_memory_is_refused_before_work(train, tmp_path, monkeypatch, method):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 10**7}))
    result = train(f"--method {method} --r 100000", code=2)
    assert "GB of memory" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["qpa", "quantum_peft"])
def test_ten_million_layers_are_refused_before_work(train, method):
    assert "at most 10,000" in train(f"--method {method} --n-layers 10000000", code=2).output


def call_main(monkeypatch, line):
    """The exit code of the command line as a process starts it."""
    monkeypatch.setattr(sys, "argv", ["qpeft", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_closed_standard_output_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    out = tmp_path / "circuit.qasm"
    assert call_main(monkeypatch, f"circuits export --n-qubits 2 --out {out}") == 0
    sys.stdout.close()
    assert out.exists()


def test_device_as_data_is_refused():
    with pytest.raises(DataError, match="/dev/null is neither a file nor a folder"):
        load_rows("/dev/null", "train")


def test_link_to_itself_is_refused(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(ConfigError, match="is a link to itself"):
        output_file(loop, is_folder=True)
    with pytest.raises(ConfigError, match="is a link to itself"):
        qpeft.folders.folder_to_replace(loop, ())


def test_lock_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match=r"\.lock is a folder"), locked(tmp_path):
        pass


def test_export_to_the_root_is_refused(qpeft_cli, tmp_path):
    result = qpeft_cli(f"export {tmp_path} --out /", code=2)
    assert "root of the file system" in result.output


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: {c: *x}}", "&x [*x]"])
def test_alias_that_contains_itself_is_refused(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match="anchor x contains itself"):
        read_yaml(tmp_path / "run.yaml", "`a: 1`")


def test_anchors_can_be_repeated(tmp_path):
    (tmp_path / "run.yaml").write_text("a: &x [1]\nb: *x\nc: &y {d: 2}\ne: {<<: *y}")
    expected = {"a": [1], "b": [1], "c": {"d": 2}, "e": {"d": 2}}
    assert read_yaml(tmp_path / "run.yaml", "`a: 1`") == expected


STUDY = """
name: s
title: T
question: Which?
methods: [{key: lora, method: lora}]
run: {model: embedded, data: numpy-docs}
"""


@pytest.mark.parametrize("field", ["seeds: [true]", "tuning: {seed: true}"])
def test_seed_must_be_a_number(tmp_path, field):
    study = tmp_path / "study.yaml"
    study.write_text(f"{STUDY}{field}\n")
    with pytest.raises(ConfigError, match=r"seed.*valid integer"):
        load_study(str(study))


def test_rows_of_a_resumed_run_have_their_keys_in_the_same_order(train, tmp_path):
    train("--method lora --save-every 2")
    path = tmp_path / "run" / "metrics.jsonl"
    before = path.read_text().splitlines()
    for name in ("result.json", "adapter", "exported"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    path.write_text("".join(f"{row}\n" for row in before[:-1]))  # the last is to be written again
    train("--method lora --save-every 2")
    after = path.read_text().splitlines()

    assert after[0] == before[0]  # with its time: the run did not start again

    keys, keys_before = ([[*json.loads(row)] for row in rows] for rows in (after, before))
    assert keys == keys_before


PRELOAD = """
import os, subprocess, sys, time
code = '''
import importlib.abc, os, sys, time
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "qpeft_lab.compare.cell":
            os.write(1, bytes([10]))  # a line
            time.sleep(600)
sys.meta_path.insert(0, Slow())
import qpeft_lab.compare.preload
'''
subprocess.Popen([sys.executable, "-c", code])
time.sleep(600)
"""


def test_process_that_imports_ends_with_its_runner():
    """It keeps the pipe open as long as it lives: a minute before, 600 seconds without the watch."""
    runner = subprocess.Popen([sys.executable, "-c", PRELOAD], stdout=subprocess.PIPE)
    assert runner.stdout is not None

    with runner.stdout as pipe:
        assert pipe.readline() == b"\n"
        runner.kill()
        runner.wait()
        ended, _, _ = select.select([pipe], [], [], 30)
        assert ended
        assert pipe.read() == b""


# -- output


def test_drawing_on_a_terminal_of_another_encoding_is_ascii(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert call_main(monkeypatch, "circuits draw --n-qubits 2 --n-layers 1") == 0
    sys.stdout.flush()
    assert b"RY(t[0,0])" in shown.getvalue()
    assert os.linesep.encode() in shown.getvalue()
